//! The estimator selection of the information-bottleneck analysis (IB-backdoor): every estimator on Gaussian variables
//! whose mutual information is known in closed form.
//!
//! The pair of the published experiment (B ~ N(0, 3 I₅), A = B[..3] + N(0, 0.5 I₃), 3/2 ln 7 = 2.919 nats), independent
//! variables of the same widths (0 nats), and a linear channel of two coordinates at several noise levels
//! (ln(1 + 3 / noise) nats).
//!
//! Differs from the paper's code: values are read on held-out pairs, several critic seeds give an interval, and the
//! learning rate follows a cosine; its critic has 512 units a layer and sees 250 passes, which changes the values little.

use super::information::estimates::{self, Bits, Found, Job, Progress, course_columns, moments, nats};
use super::information::params::{Common, Critic, Schedule, Training, number, training};
use crate::artifact::Table;
use crate::artifact::table::{Cell, Column};
use crate::error::{Result, ResultExt};
use crate::information::estimator::{Chosen, Constants, ESTIMATORS};
use crate::information::gaussian::Gaussian;
use crate::information::interval;
use crate::information::pairs::{Pairs, Variable};
use crate::param::{Count, Fraction, NonNegative, Positive};
use crate::stage::{Context, Problem, Resources, Stage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Tries estimators of mutual information on Gaussian variables whose information is known.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The estimators.
    pub estimators: Vec<Chosen>,
    /// Samples of every distribution.
    pub n_samples: Count,
    /// Variances of the noise of the linear channel, whose input has variance 3.
    pub noises: Vec<Positive>,
    /// Share of the pairs that is held out from the critic and read; at least one batch.
    pub held_out: Fraction,
    /// Critic seeds, each with its own held-out pairs, initial weights and order.
    pub repeats: Count,
    /// Share of a new batch in MINE's moving average of the partition function, above 0; 1 leaves the gradient biased.
    pub mine_rate: Fraction,
    /// Scores beyond this count as this in SMILE's partition function, in nats.
    pub smile_clip: Positive,
    /// The form of the critic.
    pub critic: Critic,
    /// Units of each hidden layer of the critic.
    pub hidden: Count,
    /// Coordinates of the embeddings of a separable critic.
    pub embedding: Count,
    /// Readouts of a critic, evenly over its steps; the last five count.
    #[schemars(range(min = 1, max = 10_000))]
    pub readouts: usize,
    /// Training of the critics.
    pub training: SelectionTraining,
}

impl Default for Params {
    fn default() -> Params {
        Params {
            estimators: ESTIMATORS.iter().map(Chosen).collect(),
            n_samples: number(Count::new(10_000)),
            noises: [0.5, 1.0, 3.0].map(|noise| number(Positive::new(noise))).to_vec(),
            held_out: number(Fraction::new(0.25)),
            repeats: number(Count::new(3)),
            mine_rate: number(Fraction::new(Constants::default().mine_rate)),
            smile_clip: number(Positive::new(Constants::default().smile_clip)),
            critic: Critic::Concat,
            hidden: number(Count::new(128)),
            embedding: number(Count::new(32)),
            readouts: 20,
            training: SelectionTraining::default(),
        }
    }
}

training!(
    /// How the critics are trained.
    SelectionTraining, batch: 128, steps: 3000, learning_rate: 1e-3
);

impl Params {
    fn common(&self, estimator: Chosen) -> Common {
        Common {
            estimator,
            constants: Constants { mine_rate: self.mine_rate.get(), smile_clip: self.smile_clip.get() },
            critic: self.critic,
            hidden: self.hidden.get(),
            embedding: self.embedding.get(),
            standardize: true,
            readouts: self.readouts,
            held_out: self.held_out.get(),
            early_stopping: 0,
        }
    }

    fn distributions(&self) -> Vec<(String, Gaussian)> {
        let mut all =
            vec![("gaussian_pair".to_string(), Gaussian::PAIR), ("independent".to_string(), Gaussian::INDEPENDENT)];
        all.extend(
            self.noises.iter().map(|noise| (format!("channel_{}", noise.get()), Gaussian::channel(noise.get()))),
        );
        all
    }
}

crate::ports! {
    /// What comes out.
    pub struct Outputs => {
        /// One estimate per estimator and distribution, beside the truth.
        table: Table,
        /// The value of every critic on training and held-out pairs over its steps.
        convergence: Table,
    }
}

/// The stage.
pub struct EstimatorSelection;

impl Stage for EstimatorSelection {
    const NAME: &'static str = "evaluate/estimator_selection";
    const VERSION: u32 = 2;
    type Params = Params;
    type Inputs = ();
    type Outputs = Outputs;

    fn draws(_: &Params) -> bool {
        true
    }

    fn check(params: &Params) -> Vec<Problem> {
        let mut problems = params.common(Chosen::default()).problems(&[("training.batch", params.training.batch)]);
        let mut problem = |parameter, message: &str, hint: &str| {
            problems.push(Problem { parameter, message: message.to_string(), hint: Some(hint.to_string()) });
        };
        if params.estimators.is_empty() {
            problem("estimators", "must not be empty", "leave it out for all of them");
        }
        let is_repeated = |(at, chosen): (usize, &Chosen)| params.estimators[..at].contains(chosen);
        if params.estimators.iter().enumerate().any(is_repeated) {
            problem("estimators", "an estimator is listed twice", "remove one of them");
        }
        if params.noises.iter().enumerate().any(|(at, noise)| params.noises[..at].contains(noise)) {
            problem("noises", "a noise level is listed twice", "remove one of them");
        }
        let settings = params.common(Chosen::default()).settings(params.training.training());
        if settings.parts(params.n_samples.get()).is_none() {
            problem(
                "n_samples",
                "must hold two batches, one to train and one to read",
                "set a smaller `training.batch`",
            );
        }
        problems
    }

    fn resources(_: &Params) -> Resources {
        Resources { parallel: true, gpu: false, memory_mib: 256 }
    }

    fn run(cx: &Context, params: Params, (): ()) -> Result<Outputs> {
        let distributions = params.distributions();
        let mut rows: Vec<Row> =
            cx.checkpoint.load().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let per_distribution = params.estimators.len() * params.repeats.get();
        for (at, (name, gaussian)) in distributions.iter().enumerate() {
            if rows.iter().any(|row| row.distribution == *name) {
                continue;
            }
            let headline = rows.last().map(Row::headline).unwrap_or_default();
            let total = distributions.len() * per_distribution;
            let progress = Progress { before: at * per_distribution, total, headline: &headline };
            rows.extend(try_all(cx, &params, (name, *gaussian), progress).context(format!("distribution `{name}`"))?);
            cx.checkpoint.save(&serde_json::to_vec(&rows)?)?;
        }
        let of_pair = rows.iter().filter(|row| row.distribution == "gaussian_pair");
        let values: Vec<String> =
            of_pair.map(|row| format!("{} {:.2}", row.estimator, row.found.estimate.get())).collect();
        cx.headline(format!("{} of {:.2} nats", values.join(" "), Gaussian::PAIR.information()));
        Ok(Outputs { table: table(&params, &rows), convergence: convergence(&rows) })
    }
}

/// What one estimator found of one distribution.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Row {
    estimator: String,
    distribution: String,
    truth: Bits,
    found: Found,
}

impl Row {
    fn headline(&self) -> String {
        let (found, truth) = (self.found.estimate.get(), self.truth.get());
        format!("{} on {}: {found:.2} of {truth:.2} nats", self.estimator, self.distribution)
    }
}

/// All estimators on the same samples.
fn try_all(
    cx: &Context,
    params: &Params,
    (name, gaussian): (&str, Gaussian),
    progress: Progress<'_>,
) -> Result<Vec<Row>> {
    let (a, b) = gaussian.sample(params.n_samples.get(), &cx.rng(&format!("samples/{name}")));
    let (width_a, width_b) = gaussian.widths;
    let job = |&estimator: &Chosen| Job {
        pairs: Pairs {
            a: Variable::Reals { values: &a, width: width_a },
            b: Variable::Reals { values: &b, width: width_b },
        },
        settings: params.common(estimator).settings(params.training.training()),
        stream: cx.rng(&format!("critic/{}/{name}", estimator.0.name)),
    };
    let jobs: Vec<Job<'_>> = params.estimators.iter().map(job).collect();
    let found = estimates::estimate(cx, &jobs, params.repeats.get(), progress)?;
    let row = |(estimator, found): (&Chosen, Found)| Row {
        estimator: estimator.0.name.to_string(),
        distribution: name.to_string(),
        truth: gaussian.information().into(),
        found,
    };
    Ok(params.estimators.iter().zip(found).map(row).collect())
}

fn table(params: &Params, rows: &[Row]) -> Table {
    let interval = interval::definition(params.repeats.get());
    let mut table = Table::new(vec![
        Column::new("estimator", "bound on, or estimator of, mutual information"),
        Column::new("distribution", "Gaussian variables, see below"),
        nats("true_nats", "closed form"),
        nats("estimate_nats", "on held-out pairs: mean of the last five readouts, mean over critic seeds"),
        nats("ceiling_nats", "what the estimator cannot exceed, whatever the truth; empty where it has no ceiling"),
        nats("interval_low", &interval),
        nats("interval_high", &interval),
        nats("error_nats", "estimate less truth"),
        nats("known_error_nats", "MINE, NWJ: standard deviation that a perfect critic leaves; SMILE: the clip's bias"),
        nats("train_nats", "the estimate on the critic's training pairs").hidden(),
        Column::new("n_train", "training pairs of a critic").hidden(),
        Column::new("n_held_out", "held-out pairs of a critic").hidden(),
    ]);
    for Row { estimator, distribution, truth, found } in rows {
        table.push(vec![
            estimator.as_str().into(),
            distribution.as_str().into(),
            (*truth).into(),
            found.estimate.into(),
            found.ceiling.into(),
            found.interval[0].into(),
            found.interval[1].into(),
            (found.estimate.get() - truth.get()).into(),
            found.known_error.into(),
            found.train.into(),
            found.n_train.into(),
            found.n_held_out.into(),
        ]);
    }
    let of_estimator = |chosen: &Chosen| format!("{}: {}", chosen.0.name, chosen.0.doc);
    table.notes = vec![
        "gaussian_pair: B ~ N(0, 3 I5), A = B[..3] + N(0, 0.5 I3). independent: the same widths. channel_v: two \
         coordinates of variance 3 and noise of variance v."
            .to_string(),
        format!("Interval: {interval}."),
    ];
    table.notes.extend(params.estimators.iter().map(of_estimator));
    table
}

fn convergence(rows: &[Row]) -> Table {
    let mut columns = vec![
        Column::new("estimator", "bound on, or estimator of, mutual information"),
        Column::new("distribution", "Gaussian variables"),
        nats("true_nats", "closed form"),
    ];
    columns.extend(course_columns());
    let mut table = Table::new(columns);
    for row in rows {
        for moment in moments(&row.found) {
            let mut cells: Vec<Cell> =
                vec![row.estimator.as_str().into(), row.distribution.as_str().into(), row.truth.into()];
            cells.extend(moment);
            table.push(cells);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn params(changes: Value) -> Params {
        serde_json::from_value(changes).unwrap()
    }

    /// A row and a course for everything, values near the truth beside it, more noise with less information. The oracles
    /// of every estimator are tests of `information::fit`.
    #[test]
    fn estimates_stand_beside_the_truth() {
        let small = json!({
            "estimators": ["infonce", "smile"], "noises": [0.5, 3.0], "n_samples": 3000, "repeats": 2, "hidden": 24,
            "readouts": 6, "training": { "batch": 64, "steps": 250, "learning_rate": 6e-3 },
        });
        let Outputs { table, convergence } =
            EstimatorSelection::run(&Context::for_test(0, EstimatorSelection::NAME), params(small), ()).unwrap();
        let numbers = |name: &str| -> Vec<Option<f64>> {
            let at = table.column(name).unwrap();
            table.rows.iter().map(|row| row[at].number()).collect()
        };
        let names: Vec<_> = table.rows.iter().map(|row| (row[0].text().unwrap(), row[1].text().unwrap())).collect();
        let distributions = ["gaussian_pair", "independent", "channel_0.5", "channel_3"];
        let want: Vec<_> = distributions.iter().flat_map(|&d| [("infonce", d), ("smile", d)]).collect();
        assert_eq!(names, want);
        assert_eq!(convergence.rows.len(), 8 * 2 * 6);
        let (truth, value) = (numbers("true_nats"), numbers("estimate_nats"));
        for (at, name) in names.iter().enumerate() {
            let (truth, value) = (truth[at].unwrap(), value[at].unwrap());
            let tolerance = if name.1 == "gaussian_pair" { 0.5 } else { 0.06 + 0.1 * truth };
            assert!((value - truth).abs() < tolerance, "{name:?}: {value} of {truth}");
            assert!(numbers("interval_low")[at] <= Some(value) && numbers("interval_high")[at] >= Some(value));
            assert!((numbers("error_nats")[at].unwrap() - (value - truth)).abs() < 1e-12);
            let ceiling = (name.0 == "infonce").then(|| 64f64.ln());
            assert_eq!(numbers("ceiling_nats")[at], ceiling);
        }
        assert!(value[4] > value[6] && value[5] > value[7], "more noise, less information: {value:?}");
    }

    #[test]
    fn bad_parameters_are_pointed_at() {
        let check = |changes: Value| {
            let problems = EstimatorSelection::check(&params(changes));
            problems.into_iter().map(|p| format!("{}: {}", p.parameter, p.message)).collect::<Vec<_>>()
        };
        assert!(check(json!({})).is_empty());
        for (changes, want) in [
            (json!({ "estimators": [] }), "estimators: must not be empty"),
            (json!({ "estimators": ["nwj", "mine", "nwj"] }), "estimators: an estimator is listed twice"),
            (json!({ "noises": [1.0, 1.0] }), "noises: a noise level is listed twice"),
            (json!({ "n_samples": 255 }), "n_samples: must hold two batches"),
            (json!({ "mine_rate": 0.0 }), "mine_rate: must lie above 0"),
            (json!({ "readouts": 0 }), "readouts: must be at least 1"),
        ] {
            let found = check(changes);
            assert!(found.len() == 1 && found[0].starts_with(want), "{want}: {found:?}");
        }
    }
}
