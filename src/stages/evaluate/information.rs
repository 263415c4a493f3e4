//! Mutual information between images X, representations T and outputs Y over the course of training, per observed
//! epoch, layer and subset, as in the information-bottleneck analysis of backdoor training (IB-backdoor).
//!
//! Estimated from the trace that the hooks of `train/classifier` wrote, on pairs that the critics have not seen.
//!
//! Differs from the paper's code: all other samples of a batch are the negatives, the partner is not among them, and
//! the ceiling that is reported is the true one, ln B; values are read on held-out pairs, with the training value
//! beside them; the mean of the last five readouts is a mean; several critic seeds give an interval.

use crate::artifact::table::{Cell, Column};
use crate::artifact::{Packed, Table, Trace};
use crate::error::{Error, Result, ResultExt};
use crate::information::fit::{self, Settings, Task};
use crate::information::interval::{self, Estimate};
use crate::information::pairs::{Pairs, Variable};
use crate::information::subset::Subset;
use crate::param::{Count, Fraction, NonNegative, Positive};
use crate::stage::{Context, Problem, Resources, Stage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};

/// Estimates I(X;T) and I(T;Y) per observed epoch, layer and subset of samples, from a training trace.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The estimator.
    pub estimator: Estimator,
    /// What to estimate.
    pub quantities: Vec<Quantity>,
    /// Subsets of the observed samples: `all`, a class by assigned label (`0`), a role (`clean`, `backdoor`, `cover`),
    /// both (`0_backdoor`), or a mixture (`0_sample`: half backdoored, half clean samples of class 0, together as many
    /// as class 1 has).
    pub subsets: Vec<String>,
    /// Layers out of those observed; empty for all of them.
    pub layers: Vec<String>,
    /// Epochs out of those observed; empty for all of them.
    pub epochs: Vec<usize>,
    /// What Y is.
    pub y: Output,
    /// Standard deviation of Gaussian noise that the estimator adds to every coordinate of T, one draw a sample. Noise
    /// makes I(X;T) finite; more of it costs no re-training.
    pub noise: NonNegative,
    /// Share of the pairs that is held out from the critic and read; at least one batch.
    pub held_out: Fraction,
    /// Critic seeds, each with its own held-out pairs, initial weights and order.
    pub repeats: Count,
    /// The form of the critic.
    pub critic: Critic,
    /// Units of each hidden layer of the critic.
    pub hidden: Count,
    /// Coordinates of the embeddings of a separable critic.
    pub embedding: Count,
    /// Whether every coordinate is brought to mean 0 and variance 1 before the critic reads it: an invertible map, which
    /// leaves mutual information as it is and lets critics learn faster. Without it, pixels lie in [0, 1].
    pub standardize: bool,
    /// Readouts of a critic, evenly over its steps; the last five count.
    #[schemars(range(min = 1, max = 10_000))]
    pub readouts: usize,
    /// Stops a critic once so many readouts brought no better value on validation pairs, as many as the held-out ones and
    /// carved from its training pairs; the five readouts with the best validation values then count. 0 for critics that
    /// take all their steps, with all pairs that are not held out.
    #[schemars(range(max = 10_000))]
    pub early_stopping: usize,
    /// Training of the critics of I(X;T).
    pub xt: InputTraining,
    /// Training of the critics of I(T;Y).
    pub ty: OutputTraining,
}

impl Default for Params {
    fn default() -> Params {
        let names = ["0", "0_backdoor", "0_clean", "0_sample", "1", "2", "3"];
        Params {
            estimator: Estimator::Infonce,
            quantities: vec![Quantity::Xt, Quantity::Ty],
            subsets: names.map(String::from).to_vec(),
            layers: Vec::new(),
            epochs: Vec::new(),
            y: Output::Logits,
            noise: number(NonNegative::new(0.0)),
            held_out: number(Fraction::new(0.25)),
            repeats: number(Count::new(3)),
            critic: Critic::Concat,
            hidden: number(Count::new(128)),
            embedding: number(Count::new(32)),
            standardize: true,
            readouts: 20,
            early_stopping: 5,
            xt: InputTraining::default(),
            ty: OutputTraining::default(),
        }
    }
}

/// A default, which lies in its type's range.
fn number<T>(value: Option<T>) -> T {
    value.unwrap_or_else(|| unreachable!("defaults lie in their ranges"))
}

/// An estimator of mutual information.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Estimator {
    /// InfoNCE with all other samples of a batch as negatives; a lower bound that cannot exceed ln B.
    Infonce,
}

/// A pair of variables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Quantity {
    /// I(X;T): what the representation knows of the image.
    Xt,
    /// I(T;Y): what the representation knows of the output.
    Ty,
}

impl Quantity {
    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Quantity::Xt => "I(X;T)",
            Quantity::Ty => "I(T;Y)",
        }
    }
}

/// What Y is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Output {
    /// The network's logits, as in the paper's code.
    Logits,
    /// The label that training sees, one-hot: then I(T;Y) is at most H(Y), and 0 within a class.
    Labels,
}

/// The form of a critic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Critic {
    /// One network over both variables, as in the paper.
    Concat,
    /// Two networks and their scalar product: much faster, less expressive.
    Separable,
}

/// How the learning rate of a critic goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Down to zero along half a cosine.
    Cosine,
    /// Always the same.
    Constant,
}

macro_rules! training {
    ($(#[$doc:meta])* $name:ident, batch: $batch:literal, steps: $steps:literal, learning_rate: $rate:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            /// Pairs of a batch; the estimate cannot exceed the logarithm of it.
            #[schemars(range(min = 2, max = 65_536))]
            pub batch: usize,
            /// Steps of the optimiser.
            pub steps: Count,
            /// Learning rate of AdamW.
            pub learning_rate: Positive,
            /// How the learning rate goes.
            pub schedule: Schedule,
            /// Weight decay of AdamW.
            pub weight_decay: NonNegative,
            /// Largest norm of the gradient.
            pub clip: Positive,
        }

        impl Default for $name {
            fn default() -> $name {
                $name {
                    batch: $batch,
                    steps: number(Count::new($steps)),
                    learning_rate: number(Positive::new($rate)),
                    schedule: Schedule::Cosine,
                    weight_decay: number(NonNegative::new(1e-4)),
                    clip: number(Positive::new(5.0)),
                }
            }
        }

        impl $name {
            fn settings(&self, params: &Params) -> Settings {
                Settings {
                    form: match params.critic {
                        Critic::Concat => fit::Form::Concat,
                        Critic::Separable => fit::Form::Separable,
                    },
                    hidden: params.hidden.get(),
                    embedding: params.embedding.get(),
                    standardize: params.standardize,
                    batch: self.batch,
                    steps: self.steps.get(),
                    learning_rate: self.learning_rate.get(),
                    schedule: match self.schedule {
                        Schedule::Cosine => fit::Schedule::Cosine,
                        Schedule::Constant => fit::Schedule::Constant,
                    },
                    weight_decay: self.weight_decay.get(),
                    clip: self.clip.get(),
                    readouts: params.readouts.min(self.steps.get()),
                    held_out: params.held_out.get(),
                    patience: (params.early_stopping > 0).then_some(params.early_stopping),
                }
            }
        }
    };
}

// The paper's 350 passes over half of the 35 batches of a class of CIFAR-10.
training!(
    /// How the critics of I(X;T) are trained; defaults as in the paper's code.
    InputTraining, batch: 128, steps: 6000, learning_rate: 3e-4
);
// The paper's 200 passes over half of the 9 batches of a class of CIFAR-10.
training!(
    /// How the critics of I(T;Y) are trained; defaults as in the paper's code.
    OutputTraining, batch: 512, steps: 900, learning_rate: 5e-4
);

crate::ports! {
    /// What is read.
    pub struct Inputs {
        /// Representations and logits over the epochs.
        trace: Trace,
        /// The training images that the trace observed.
        dataset: Packed,
    }
}

/// The stage.
pub struct Information;

impl Stage for Information {
    const NAME: &'static str = "evaluate/information";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Table;

    fn draws(_: &Params) -> bool {
        true
    }

    fn check(params: &Params) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut problem = |parameter, message: String, hint: &str| {
            problems.push(Problem { parameter, message, hint: (!hint.is_empty()).then(|| hint.to_string()) });
        };
        let mut seen: Vec<&String> = Vec::new();
        for text in &params.subsets {
            if let Err(message) = Subset::parse(text) {
                problem("subsets", message, "");
            } else if seen.contains(&text) {
                problem("subsets", format!("`{text}` is listed twice"), "remove one of them");
            }
            seen.push(text);
        }
        for (parameter, is_empty) in
            [("subsets", params.subsets.is_empty()), ("quantities", params.quantities.is_empty())]
        {
            if is_empty {
                problem(parameter, "must not be empty".into(), "leave it out for the default");
            }
        }
        if params.quantities.len() > 1 && params.quantities[0] == params.quantities[1] || params.quantities.len() > 2 {
            problem("quantities", "a quantity is listed twice".into(), "remove one of them");
        }
        if !(0.0 < params.held_out.get() && params.held_out.get() < 1.0) {
            problem(
                "held_out",
                format!("must lie above 0 and below 1, got {}", params.held_out.get()),
                "0.25 holds out a quarter",
            );
        }
        for (parameter, batch) in [("xt.batch", params.xt.batch), ("ty.batch", params.ty.batch)] {
            if batch < 2 {
                problem(
                    parameter,
                    format!("must be at least 2, got {batch}"),
                    "the others of a batch are the negatives",
                );
            }
        }
        if params.readouts == 0 {
            problem("readouts", "must be at least 1, got 0".into(), "20 is plenty");
        }
        problems
    }

    fn resources(_: &Params) -> Resources {
        Resources { parallel: true, gpu: false, memory_mib: 768 }
    }

    fn run(cx: &Context, params: Params, inputs: Inputs) -> Result<Table> {
        let observed = Observed::new(cx, &params, &inputs)?;
        let mut found: Vec<Found> =
            cx.checkpoint.load().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let n_epochs = observed.epochs.len();
        let n_estimates = observed.cells().iter().filter(|(_, _, is_enough)| *is_enough).count();
        let per_epoch = observed.layers.len() * n_estimates * params.repeats.get();
        observed.warn_of_small_subsets(cx);
        for (at, &epoch) in observed.epochs.iter().enumerate() {
            if found.iter().any(|f| f.epoch == epoch) {
                continue;
            }
            let headline = found.last().map(headline).unwrap_or_default();
            found.extend(observed.estimate_epoch(cx, epoch, (at * per_epoch, n_epochs * per_epoch), &headline)?);
            cx.checkpoint.save(&serde_json::to_vec(&found)?)?;
        }
        if let Some(text) = observed.summary(&found) {
            cx.headline(text);
        }
        Ok(observed.table(&found))
    }
}

/// The estimates of one epoch, layer and subset.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Found {
    epoch: usize,
    layer: String,
    subset: String,
    quantity: Quantity,
    /// The bits of estimate, train, low, high, ceiling, so that a resumed run gives the same bytes; then the numbers of
    /// training and held-out pairs. `None` for a subset that is too small.
    values: Option<([u64; 5], [usize; 2])>,
}

impl Found {
    fn number(&self, at: usize) -> Cell {
        self.values.map(|(bits, _)| f64::from_bits(bits[at])).into()
    }
}

fn to_values(e: Estimate) -> ([u64; 5], [usize; 2]) {
    ([e.estimate, e.train, e.low, e.high, e.ceiling].map(f64::to_bits), [e.n_train, e.n_held_out])
}

/// One line about one estimate.
fn headline(found: &Found) -> String {
    let value = match found.number(0) {
        Cell::Float(value) => format!("{value:.2} nats"),
        _ => "too few samples".to_string(),
    };
    format!("epoch {} {}: {} {value}", found.epoch, found.subset, found.quantity.name())
}

/// Everything that is the same for all epochs.
struct Observed<'a> {
    params: &'a Params,
    inputs: &'a Inputs,
    epochs: Vec<usize>,
    layers: Vec<&'a String>,
    /// Each subset with the positions of its samples in the trace.
    subsets: Vec<(String, Vec<usize>)>,
    /// One-hot labels, [n, classes].
    labels: Vec<f32>,
    n_classes: usize,
}

/// Samples of a variable of one subset.
enum Samples<'a> {
    Reals(Vec<f32>, usize),
    Images(Vec<&'a [u8]>),
}

impl Samples<'_> {
    fn variable(&self) -> Variable<'_> {
        match self {
            Samples::Reals(values, width) => Variable::Reals { values, width: *width },
            Samples::Images(rows) => Variable::Bytes { rows: rows.clone() },
        }
    }
}

impl<'a> Observed<'a> {
    fn new(cx: &Context, params: &'a Params, inputs: &'a Inputs) -> Result<Observed<'a>> {
        let (info, split) = (&inputs.trace.info, &inputs.dataset.train);
        if let Some(row) = info.rows.iter().find(|&&row| row >= split.len()) {
            return Err(Error::user(format!(
                "the trace observes training row {row}, but the dataset has {} training images",
                split.len()
            ))
            .hint("give `dataset` the packed dataset that the traced model was trained on"));
        }
        let mut epochs = if params.epochs.is_empty() { info.epochs.clone() } else { params.epochs.clone() };
        epochs.sort_unstable();
        epochs.dedup();
        if let Some(epoch) = epochs.iter().find(|epoch| !info.epochs.contains(epoch)) {
            return Err(Error::user(format!("epoch {epoch} was not observed; the trace has epochs {:?}", info.epochs))
                .hint("add it to `observe.epochs` of the training stage, or leave `epochs` out"));
        }
        if let Some(layer) = params.layers.iter().find(|layer| !info.layers.contains(layer)) {
            return Err(Error::user(format!(
                "layer `{layer}` was not observed; the trace has {}",
                info.layers.join(", ")
            ))
            .hint("add it to `observe.layers` of the training stage, or leave `layers` out"));
        }
        let chosen = |layer: &&String| params.layers.is_empty() || params.layers.contains(layer);
        let labels: Vec<i64> = info.rows.iter().map(|&row| split.label[row]).collect();
        let roles: Vec<_> = info.rows.iter().map(|&row| split.role[row]).collect();
        let mut subsets = Vec::new();
        for text in &params.subsets {
            let subset = Subset::parse(text).map_err(Error::user)?;
            let stream = cx.rng(&format!("subset/{subset}"));
            subsets.push((subset.to_string(), subset.positions(&labels, &roles, &stream)));
        }
        let n_known = inputs.dataset.about.classes.len();
        let n_classes = labels.iter().map(|&label| label.max(0) as usize + 1).max().unwrap_or(1).max(n_known);
        let mut one_hot = vec![0.0; labels.len() * n_classes];
        for (row, &label) in one_hot.chunks_exact_mut(n_classes).zip(&labels) {
            row[label.max(0) as usize] = 1.0;
        }
        let layers = info.layers.iter().filter(chosen).collect();
        Ok(Observed { params, inputs, epochs, layers, subsets, labels: one_hot, n_classes })
    }

    fn settings(&self, quantity: Quantity) -> Settings {
        match quantity {
            Quantity::Xt => self.params.xt.settings(self.params),
            Quantity::Ty => self.params.ty.settings(self.params),
        }
    }

    /// Subset and quantity of every row of an epoch and layer: the positions among `subsets`, whether it is large enough.
    fn cells(&self) -> Vec<(usize, Quantity, bool)> {
        let quantities = &self.params.quantities;
        let cells = (0..self.subsets.len()).flat_map(|at| quantities.iter().map(move |&quantity| (at, quantity)));
        cells.map(|(at, q)| (at, q, self.settings(q).parts(self.subsets[at].1.len()).is_some())).collect()
    }

    fn warn_of_small_subsets(&self, cx: &Context) {
        for (at, quantity, is_enough) in self.cells() {
            if !is_enough {
                let (name, positions) = &self.subsets[at];
                let batch = self.settings(quantity).batch;
                let parts = if self.params.early_stopping > 0 { 3 } else { 2 };
                cx.warn(format!(
                    "no {} for subset `{name}`: {} samples are fewer than {parts} batches of {batch}",
                    quantity.name(),
                    positions.len()
                ));
            }
        }
    }

    /// The layer's values with the estimator's noise, [n, width]; the draws belong to the epoch, layer and sample, so that
    /// all subsets and both quantities see the same T.
    fn representation(&self, cx: &Context, epoch: usize, layer: &str) -> Result<(usize, Vec<f32>)> {
        let (width, values) = self.inputs.trace.get(epoch, layer)?;
        let mut values = values.to_vec();
        let std = self.params.noise.get();
        if std > 0.0 && width > 0 {
            let stream = cx.rng(&format!("noise/{epoch}/{layer}"));
            for (row, &at) in values.chunks_exact_mut(width).zip(&self.inputs.trace.info.rows) {
                let mut draws = stream.at(at as u64);
                row.iter_mut().for_each(|value| *value += (draws.normal() * std) as f32);
            }
        }
        Ok((width, values))
    }

    fn estimate_epoch(
        &self,
        cx: &Context,
        epoch: usize,
        (before, total): (usize, usize),
        headline: &str,
    ) -> Result<Vec<Found>> {
        let take = |values: &[f32], width: usize, positions: &[usize]| -> Samples<'_> {
            let rows = positions.iter().flat_map(|&at| values[at * width..(at + 1) * width].iter().copied());
            Samples::Reals(rows.collect(), width)
        };
        let (n_logits, logits) = match self.params.y {
            Output::Logits if self.params.quantities.contains(&Quantity::Ty) => {
                self.inputs.trace.get(epoch, "logits")?
            }
            _ => (self.n_classes, self.labels.as_slice()),
        };
        let split = &self.inputs.dataset.train;
        // Per layer and subset: T, and X and Y per subset only.
        let mut of_t: Vec<Vec<Samples<'_>>> = Vec::new();
        for layer in &self.layers {
            let (width, values) = self.representation(cx, epoch, layer)?;
            of_t.push(self.subsets.iter().map(|(_, positions)| take(&values, width, positions)).collect());
        }
        let of_y: Vec<Samples<'_>> = self.subsets.iter().map(|(_, at)| take(logits, n_logits, at)).collect();
        let image = |&at: &usize| split.image(self.inputs.trace.info.rows[at]);
        let of_x: Vec<Samples<'_>> =
            self.subsets.iter().map(|(_, at)| Samples::Images(at.iter().map(image).collect())).collect();

        let cells = self.cells();
        let settings: Vec<Settings> = cells.iter().map(|&(_, quantity, _)| self.settings(quantity)).collect();
        let mut rows = Vec::new();
        let mut pairs = Vec::new();
        for (layer, of_t) in self.layers.iter().zip(&of_t) {
            for (&(at, quantity, is_enough), settings) in cells.iter().zip(&settings) {
                let name = &self.subsets[at].0;
                // A name and not a position, so that another subset, layer or epoch changes nothing here.
                let stream = cx.rng(&format!("critic/{epoch}/{layer}/{name}/{}", quantity.name()));
                let (a, b) = match quantity {
                    Quantity::Xt => (&of_x[at], &of_t[at]),
                    Quantity::Ty => (&of_t[at], &of_y[at]),
                };
                pairs.push((Pairs { a: a.variable(), b: b.variable() }, settings, stream, is_enough));
                rows.push(Found { epoch, layer: layer.to_string(), subset: name.clone(), quantity, values: None });
            }
        }
        let repeats = self.params.repeats.get();
        let tasks: Vec<Task<'_>> = pairs
            .iter()
            .filter(|(_, _, _, is_enough)| *is_enough)
            .flat_map(|(pairs, settings, stream, _)| {
                (0..repeats).map(move |repeat| Task { pairs, settings, stream: stream.child(&repeat.to_string()) })
            })
            .collect();
        let n_done = AtomicU64::new(before as u64);
        let done = || {
            let n = n_done.fetch_add(1, Ordering::Relaxed) + 1;
            cx.progress(n, total as u64, "critics", headline);
        };
        let fits = fit::stack(&tasks, &|| cx.should_stop(), &done).context(format!("epoch {epoch}"))?;
        let mut of_cells = fits.chunks_exact(repeats);
        for (row, (_, _, stream, is_enough)) in rows.iter_mut().zip(&pairs) {
            if *is_enough {
                let fits: Vec<_> = of_cells.next().unwrap_or_default().iter().collect();
                row.values = interval::join(&fits, &stream.child("bootstrap")).map(to_values);
            }
        }
        Ok(rows)
    }

    /// Both quantities of the first subset at the last epoch and layer.
    fn summary(&self, found: &[Found]) -> Option<String> {
        let (epoch, layer, subset) = (self.epochs.last()?, self.layers.last()?, &self.subsets.first()?.0);
        let of = |f: &&Found| f.epoch == *epoch && f.layer == **layer && f.subset == *subset;
        let values: Vec<String> = found
            .iter()
            .filter(of)
            .filter_map(|f| Some(format!("{} {:.2}", f.quantity.name(), f.number(0).number()?)))
            .collect();
        (!values.is_empty()).then(|| format!("{} nats ({subset}, epoch {epoch})", values.join(" ")))
    }

    fn table(&self, found: &[Found]) -> Table {
        let repeats = self.params.repeats.get();
        let nats = |name: &str, definition: &str| Column::new(name, definition).unit("nats").digits(3);
        let readouts = match self.params.early_stopping {
            0 => "the last five readouts",
            _ => "the five readouts with the best validation values",
        };
        let mut table = Table::new(vec![
            Column::new("epoch", "training epoch after which the representations were observed"),
            Column::new("layer", "where T is read: the layer's output, averaged over positions"),
            Column::new("subset", "samples, by assigned label and role"),
            Column::new("quantity", "X image, T representation, Y see below"),
            Column::new("estimator", "bound on mutual information"),
            nats("estimate_nats", &format!("on held-out pairs: mean of {readouts}, mean over critic seeds")),
            nats("train_nats", "the same on the critic's training pairs; far above the estimate where it overfits")
                .hidden(),
            nats("interval_low", &interval::definition(repeats)),
            nats("interval_high", &interval::definition(repeats)),
            nats("ceiling_nats", "ln(batch): the estimator cannot exceed it, whatever the truth"),
            Column::new("n_train", "training pairs of a critic").hidden(),
            Column::new("n_held_out", "held-out pairs of a critic").hidden(),
            Column::new("at_ceiling", "whether the estimate is above 0.9 of the ceiling: the truth may be far larger"),
        ]);
        for f in found {
            let n = |at: usize| Cell::from(f.values.map(|(_, n)| n[at]));
            let at_ceiling =
                f.number(0).number().zip(f.number(4).number()).map(|(value, ceiling)| value > 0.9 * ceiling);
            table.push(vec![
                f.epoch.into(),
                f.layer.as_str().into(),
                f.subset.as_str().into(),
                f.quantity.name().into(),
                "infonce".into(),
                f.number(0),
                f.number(1),
                f.number(2),
                f.number(3),
                f.number(4),
                n(0),
                n(1),
                at_ceiling.into(),
            ]);
        }
        let y = match self.params.y {
            Output::Logits => "the logits",
            Output::Labels => "the assigned label; I(T;Y) is then 0 within a class",
        };
        let (info, noise) = (&self.inputs.trace.info, self.params.noise.get());
        table.notes = vec![
            format!("I in nats by InfoNCE, all other samples of a batch as negatives; a lower bound. Y is {y}."),
            format!(
                "T carries network noise sigma_xt = {}, sigma_ty = {} and estimator noise {noise}.",
                info.sigma_xt, info.sigma_ty
            ),
            format!("Interval: {}.", interval::definition(repeats)),
        ];
        if info.sigma_xt == 0.0 && noise == 0.0 {
            table.notes.push(
                "T is a deterministic function of X here, so the true I(X;T) is the entropy of a finite sample's images: \
                 its estimate says how well a critic tells images apart. Set `noise`, or train with sigma_xt > 0."
                    .into(),
            );
        }
        table
    }
}

#[cfg(test)]
#[path = "information_tests.rs"]
mod tests;
