//! Mutual information between images X, representations T and outputs Y over the course of training, per observed
//! epoch, layer and subset, as in the information-bottleneck analysis of backdoor training (IB-backdoor).
//!
//! Estimated from the trace that the hooks of `train/classifier` wrote, on pairs that the critics have not seen.
//!
//! Differs from the paper's code: all other samples of a batch are the negatives, the partner is not among them, and
//! the ceiling that is reported is the true one, ln B; values are read on held-out pairs, with the training value
//! beside them; the mean of the last five readouts is a mean; several critic seeds give an interval; MINE's moving
//! average acts.

pub mod estimates;
pub mod observed;
pub mod params;
mod tables;

use self::estimates::Progress;
use self::observed::{Observed, Row};
pub use self::params::Params;
use crate::artifact::{Packed, Table, Trace};
use crate::error::Result;
use crate::information::subset::Subset;
use crate::stage::{Context, Problem, Resources, Stage};

crate::ports! {
    /// What is read.
    pub struct Inputs {
        /// Representations and logits over the epochs.
        trace: Trace,
        /// The training images that the trace observed.
        dataset: Packed,
    }
}

crate::ports! {
    /// What comes out.
    pub struct Outputs => {
        /// One estimate per epoch, layer, subset and quantity.
        table: Table,
        /// The value of every critic on training and held-out pairs over its steps.
        convergence: Table,
    }
}

/// The stage.
pub struct Information;

impl Stage for Information {
    const NAME: &'static str = "evaluate/information";
    const VERSION: u32 = 3;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Outputs;

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
        problems.extend(params.common().problems(&[("xt.batch", params.xt.batch), ("ty.batch", params.ty.batch)]));
        problems
    }

    fn resources(_: &Params) -> Resources {
        Resources { parallel: true, gpu: false, memory_mib: 768 }
    }

    fn run(cx: &Context, params: Params, inputs: Inputs) -> Result<Outputs> {
        let observed = Observed::new(cx, &params, &inputs)?;
        let mut rows: Vec<Row> =
            cx.checkpoint.load().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let n_estimates = observed.cells().iter().filter(|(_, _, is_enough)| *is_enough).count();
        let per_epoch = observed.layers.len() * n_estimates * params.repeats.get();
        let total = observed.epochs.len() * per_epoch;
        observed.warn_of_small_subsets(cx);
        for (at, &epoch) in observed.epochs.iter().enumerate() {
            if rows.iter().any(|row| row.epoch == epoch) {
                continue;
            }
            let headline = rows.last().map(headline).unwrap_or_default();
            let progress = Progress { before: at * per_epoch, total, headline: &headline };
            rows.extend(observed.estimate_epoch(cx, epoch, progress)?);
            cx.checkpoint.save(&serde_json::to_vec(&rows)?)?;
        }
        if let Some(text) = summary(&rows) {
            cx.headline(text);
        }
        Ok(Outputs {
            table: tables::estimates(&params, &inputs, &rows),
            convergence: tables::convergence(&params, &rows),
        })
    }
}

/// One line about one estimate.
fn headline(row: &Row) -> String {
    let value = match &row.found {
        Some(found) => format!("{:.2} nats", found.estimate.get()),
        None => "too few samples".to_string(),
    };
    format!("epoch {} {}: {} {value}", row.epoch, row.subset, row.quantity.name())
}

/// Both quantities of the first subset at the last epoch and layer.
fn summary(rows: &[Row]) -> Option<String> {
    let (subset, last) = (&rows.first()?.subset, rows.last()?);
    let of = |row: &&Row| row.epoch == last.epoch && row.layer == last.layer && row.subset == *subset;
    let value = |row: &Row| Some(format!("{} {:.2}", row.quantity.name(), row.found.as_ref()?.estimate.get()));
    let values: Vec<String> = rows.iter().filter(of).filter_map(value).collect();
    (!values.is_empty()).then(|| format!("{} nats ({subset}, epoch {})", values.join(" "), last.epoch))
}

#[cfg(test)]
#[path = "information_tests.rs"]
mod tests;
