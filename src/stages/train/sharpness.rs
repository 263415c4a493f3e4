//! Flatness as an aim of a training: the trace of the Fisher information in the loss, and sharpness-aware steps.
//!
//! Defences leave a sharp minimum that way ([FIP](crate::stages::purify::fip), [FT-SAM](crate::stages::purify::ft_sam)),
//! and an attacker who knows them trains in a flat one from the start ([`super::classifier`]).

use super::fit::Step;
use super::state::{Reader, Writer};
use crate::artifact::table::Column;
use crate::artifact::{Split, Table};
use crate::error::Result;
use crate::nn::augment::{self, Normalise};
use crate::nn::coordinates::Coordinates;
use crate::nn::fisher::Trace;
use crate::nn::sam::Sam;
use crate::nn::{Mode, Network, loss};
use crate::param::{Count, NonNegative};
use crate::rng::Stream;

/// `weight Tr F` in a loss: F is the empirical Fisher information on some rows of a split, estimated on images drawn anew
/// each time, without augmentation ([`Trace`]).
pub struct FisherTerm<'a> {
    weight: f64,
    every: usize,
    batch_size: usize,
    split: &'a Split,
    rows: Vec<usize>,
    normalise: Normalise,
    /// Sub-stream k says which images, and with which signs, step k sees.
    draws: Stream,
    /// What was estimated.
    pub traces: Traces,
    trace: Trace,
    /// Room for the gradient.
    added: Vec<f32>,
}

impl<'a> FisherTerm<'a> {
    /// A term of weight `weight` (0: none) in every `every`-th step, on `batch_size` of the rows (all of them if there
    /// are fewer).
    pub fn new(
        (weight, every, batch_size): (NonNegative, Count, Count),
        (split, rows, normalise): (&'a Split, &[usize], &Normalise),
        draws: Stream,
    ) -> FisherTerm<'a> {
        FisherTerm {
            weight: weight.get(),
            every: every.get(),
            batch_size: batch_size.get(),
            split,
            rows: rows.to_vec(),
            normalise: normalise.clone(),
            draws,
            traces: Traces::default(),
            trace: Trace::new(),
            added: Vec::new(),
        }
    }

    /// Its weight in the loss.
    pub fn weight(&self) -> f64 {
        self.weight
    }

    /// Whether step `number` has it.
    pub fn is_due(&self, number: usize) -> bool {
        self.weight > 0.0 && number.is_multiple_of(self.every)
    }

    /// Images [n, H, W, 3] and labels [n] of step `number`, and the stream that drew them.
    ///
    /// # Errors
    /// A row that is not there.
    pub fn batch(&self, number: usize) -> Result<(Vec<f32>, Vec<i64>, Stream)> {
        let mut draw = self.draws.at(number as u64);
        let batch = draw.pick(&self.rows, self.batch_size.min(self.rows.len()));
        let labels = batch.iter().map(|&row| self.split.label[row]).collect();
        let mut images = vec![0.0; batch.len() * self.split.image_bytes()];
        augment::plain(self.split, &batch, &self.normalise, &mut images)?;
        Ok((images, labels, draw))
    }

    /// Adds the term's gradient in step `number` to `gradient`; both are in `coordinates`. The network's own gradients
    /// are overwritten.
    ///
    /// # Errors
    /// See [`Trace::estimate`].
    pub fn add(
        &mut self,
        network: &mut Network,
        coordinates: &mut dyn Coordinates,
        number: usize,
        gradient: &mut [f32],
    ) -> Result<()> {
        let (images, labels, mut draw) = self.batch(number)?;
        let signs: Vec<f32> = labels.iter().map(|_| if draw.chance(0.5) { 1.0 } else { -1.0 }).collect();
        self.added.resize(gradient.len(), 0.0);
        let trace = self.trace.estimate(network, coordinates, (&images, &labels), &signs, &mut self.added)?;
        self.traces.sum += trace;
        self.traces.n += 1;
        let weight = self.weight as f32;
        gradient.iter_mut().zip(&self.added).for_each(|(g, added)| *g += weight * added);
        Ok(())
    }
}

/// Estimates of a trace over a training.
#[derive(Clone, Debug, Default)]
pub struct Traces {
    /// Of the epoch so far.
    sum: f64,
    n: u64,
    /// Mean of every epoch; NaN where there was none.
    of_epochs: Vec<f64>,
}

impl Traces {
    /// Closes an epoch.
    pub fn end_epoch(&mut self) {
        self.of_epochs.push(self.sum / self.n as f64);
        (self.sum, self.n) = (0.0, 0);
    }

    /// The mean of the last epoch, if it had any.
    pub fn last(&self) -> Option<f64> {
        self.of_epochs.last().copied().filter(|trace| trace.is_finite())
    }

    /// Adds the column `fisher_trace` to the history of the training.
    pub fn add_column(&self, history: &mut Table) {
        let definition = "trace of the empirical Fisher information, mean of its estimates over the epoch";
        history.columns.push(Column::new("fisher_trace", definition).digits(3));
        history.rows.iter_mut().zip(&self.of_epochs).for_each(|(row, &trace)| row.push(trace.into()));
    }

    /// Writes what a checkpoint must keep.
    pub fn save(&self, out: &mut Writer) {
        out.number(self.sum);
        out.count(self.n);
        out.numbers(&self.of_epochs);
    }

    /// What [`Traces::save`] wrote.
    pub fn read(from: &mut Reader) -> Option<Traces> {
        Some(Traces { sum: from.number()?, n: from.count()?, of_epochs: from.numbers()? })
    }
}

/// The backward pass of a sharpness-aware step: leaves the gradient at the worst point nearby in the network, whose
/// parameters keep their bits. `smoothing` is the share of the target that is spread over all classes.
///
/// # Errors
/// A gradient that is not finite; a second pass on a GPU, which cannot keep the running statistics.
pub fn sharp_backward(sam: &mut Sam, smoothing: f64, network: &mut Network, step: &Step) -> Result<()> {
    network.backward(step.grad_logits)?;
    let (params, grads) = network.params_and_grads();
    sam.perturb(params, grads)?;
    let n_classes = network.config().n_classes;
    // The running statistics have seen this batch, and are to see no perturbed weights.
    let logits = network.forward(step.images, step.labels.len(), Mode::Batch)?;
    let mut on_logits = vec![0.0; logits.len()];
    loss::cross_entropy(logits, step.labels, n_classes, smoothing, &mut on_logits)?;
    network.backward(&on_logits)?;
    sam.restore(network.params_mut())
}
