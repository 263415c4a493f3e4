//! What a trace shows of the chosen subsets, layers and epochs, and the estimates of one epoch.

use super::Inputs;
use super::estimates::{self, Bits, Found, Job, Progress};
use super::params::{Output, Params, Quantity};
use crate::error::{Error, Result, ResultExt};
use crate::information::gaussian::channel_limit;
use crate::information::pairs::{Pairs, Variable};
use crate::information::subset::Subset;
use crate::stage::Context;
use serde::{Deserialize, Serialize};

/// The estimate of one epoch, layer, subset and quantity.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// Training epoch.
    pub epoch: usize,
    /// Layer of T.
    pub layer: String,
    /// Subset, by name.
    pub subset: String,
    /// What is estimated.
    pub quantity: Quantity,
    /// The estimate; `None` for a subset that is too small.
    pub found: Option<Found>,
    /// What no estimate can rightly exceed, given the estimator's noise.
    pub limit: Option<Bits>,
}

/// Everything that is the same for all epochs.
pub struct Observed<'a> {
    params: &'a Params,
    inputs: &'a Inputs,
    /// Epochs, ascending.
    pub epochs: Vec<usize>,
    /// Layers, in network order.
    pub layers: Vec<&'a String>,
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
    /// Checks the parameters against the trace and picks the subsets.
    ///
    /// # Errors
    /// A row, an epoch or a layer that the trace or the dataset does not have.
    pub fn new(cx: &Context, params: &'a Params, inputs: &'a Inputs) -> Result<Observed<'a>> {
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

    /// Subset and quantity of every row of an epoch and layer: the positions among `subsets`, whether it is large enough.
    pub fn cells(&self) -> Vec<(usize, Quantity, bool)> {
        let quantities = &self.params.quantities;
        let cells = (0..self.subsets.len()).flat_map(|at| quantities.iter().map(move |&quantity| (at, quantity)));
        cells.map(|(at, q)| (at, q, self.params.settings(q).parts(self.subsets[at].1.len()).is_some())).collect()
    }

    /// Says which quantities of which subsets have too few samples.
    pub fn warn_of_small_subsets(&self, cx: &Context) {
        for (at, quantity, is_enough) in self.cells() {
            if !is_enough {
                let (name, positions) = &self.subsets[at];
                let batch = self.params.settings(quantity).batch;
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

    /// Estimates all quantities of an epoch, all critics as one stack.
    ///
    /// # Errors
    /// As [`estimates::estimate`].
    pub fn estimate_epoch(&self, cx: &Context, epoch: usize, progress: Progress<'_>) -> Result<Vec<Row>> {
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

        let mut rows = Vec::new();
        let mut jobs = Vec::new();
        for (layer, of_t) in self.layers.iter().zip(&of_t) {
            for (at, quantity, is_enough) in self.cells() {
                let name = &self.subsets[at].0;
                let limit = channel_limit_of(&of_t[at], self.params.noise.get());
                let row = Row { epoch, layer: layer.to_string(), subset: name.clone(), quantity, found: None, limit };
                rows.push(row);
                if !is_enough {
                    continue;
                }
                let (a, b) = match quantity {
                    Quantity::Xt => (&of_x[at], &of_t[at]),
                    Quantity::Ty => (&of_t[at], &of_y[at]),
                };
                jobs.push(Job {
                    pairs: Pairs { a: a.variable(), b: b.variable() },
                    settings: self.params.settings(quantity),
                    // A name and not a position, so that another subset, layer or epoch changes nothing here.
                    stream: cx.rng(&format!("critic/{epoch}/{layer}/{name}/{}", quantity.name())),
                });
            }
        }
        let found = estimates::estimate(cx, &jobs, self.params.repeats.get(), progress);
        let mut found = found.context(format!("epoch {epoch}"))?.into_iter();
        let is_enough = self.cells().into_iter().map(|(_, _, is_enough)| is_enough).cycle();
        for (row, _) in rows.iter_mut().zip(is_enough).filter(|(_, is_enough)| *is_enough) {
            row.found = found.next();
        }
        Ok(rows)
    }
}

/// What T can share with anything that does not know the estimator's noise; `None` without noise or samples.
fn channel_limit_of(samples: &Samples<'_>, noise: f64) -> Option<Bits> {
    match samples {
        Samples::Reals(values, width) if noise > 0.0 && !values.is_empty() => {
            Some(channel_limit(values, *width, noise * noise).into())
        }
        _ => None,
    }
}
