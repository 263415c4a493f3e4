//! The mean cross-entropy on a batch that stays, and its gradient: a function of a network's parameters, for those who ask
//! for it again and again (Hessian products, loss landscapes).
//!
//! In evaluation mode, so that batches of any size are taken in pieces that fit into memory, the same for any number of
//! threads.

use super::augment::{self, Normalise};
use super::gates::Gates;
use super::network::{Mode, Network};
use super::{loss, predict};
use crate::artifact::Split;
use crate::error::{Error, Result};
use std::sync::Arc;

/// Images with the labels that the loss asks for.
#[derive(Clone)]
pub struct BatchLoss {
    /// [n, H, W, 3], normalised.
    images: Vec<f32>,
    /// [n].
    labels: Vec<i64>,
    /// The gradient while it is summed over pieces, [n_parameters].
    sum: Vec<f32>,
    /// Of every piece, while they are held.
    gates: Vec<Arc<Gates>>,
}

/// What a network makes of the batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Value {
    /// Mean cross-entropy, in nats.
    pub loss: f64,
    /// Images that are classified as their label.
    pub n_hits: usize,
}

impl BatchLoss {
    /// Of `images` [n, H, W, 3], normalised, and `labels` [n].
    ///
    /// # Errors
    /// No images, or images of different lengths.
    pub fn new(images: Vec<f32>, labels: Vec<i64>) -> Result<BatchLoss> {
        if labels.is_empty() || images.is_empty() || !images.len().is_multiple_of(labels.len()) {
            return Err(Error::stage(format!("{} values are no batch of {} images", images.len(), labels.len())));
        }
        Ok(BatchLoss { images, labels, sum: Vec::new(), gates: Vec::new() })
    }

    /// Of the images `rows` of `split` as they are, with `labels` [rows].
    ///
    /// # Errors
    /// As [`BatchLoss::new`]; a row that is not there.
    pub fn of_split(split: &Split, rows: &[usize], labels: Vec<i64>, normalise: &Normalise) -> Result<BatchLoss> {
        let mut images = vec![0.0; rows.len() * split.image_bytes()];
        augment::plain(split, rows, normalise, &mut images)?;
        BatchLoss::new(images, labels)
    }

    /// Number of images.
    pub fn n(&self) -> usize {
        self.labels.len()
    }

    /// The loss: a forward pass.
    ///
    /// # Errors
    /// Images or labels that do not fit the network.
    pub fn value(&self, network: &mut Network) -> Result<Value> {
        let n_classes = network.config().n_classes;
        let (mut sum, mut n_hits) = (0.0, 0);
        for (images, labels) in pieces(&self.images, &self.labels) {
            let logits = network.forward(images, labels.len(), Mode::Eval)?;
            sum += loss::losses(logits, labels, n_classes)?.iter().map(|&loss| f64::from(loss)).sum::<f64>();
            n_hits += hits(logits, labels, n_classes);
        }
        Ok(Value { loss: sum / self.n() as f64, n_hits })
    }

    /// Holds the [gates](super::gates) of `network` at its present parameters in the gradients to come: a forward pass.
    ///
    /// # Errors
    /// Images that do not fit the network; not enough memory on a GPU.
    pub fn hold(&mut self, network: &mut Network) -> Result<()> {
        self.gates.clear();
        for (images, labels) in pieces(&self.images, &self.labels) {
            network.forward(images, labels.len(), Mode::Eval)?;
            self.gates.push(Arc::new(network.gates()?));
        }
        Ok(())
    }

    /// The loss, its gradient left in the network: a forward and a backward pass.
    ///
    /// # Errors
    /// Images or labels that do not fit the network.
    pub fn gradient(&mut self, network: &mut Network) -> Result<Value> {
        let result = self.sum_of_pieces(network);
        network.hold(None);
        result
    }

    fn sum_of_pieces(&mut self, network: &mut Network) -> Result<Value> {
        let n_classes = network.config().n_classes;
        let n = self.labels.len();
        let (mut sum, mut n_hits) = (0.0, 0);
        let is_whole = n <= predict::BATCH;
        self.sum.clear();
        self.sum.resize(if is_whole { 0 } else { network.n_parameters() }, 0.0);
        for (piece, (images, labels)) in pieces(&self.images, &self.labels).enumerate() {
            network.hold(self.gates.get(piece).cloned());
            let logits = network.forward(images, labels.len(), Mode::Eval)?;
            let mut on_logits = vec![0.0; logits.len()];
            let losses = loss::cross_entropy(logits, labels, n_classes, 0.0, &mut on_logits)?;
            sum += losses.iter().map(|&loss| f64::from(loss)).sum::<f64>();
            n_hits += hits(logits, labels, n_classes);
            // That was the mean over the piece.
            let share = labels.len() as f32 / n as f32;
            on_logits.iter_mut().for_each(|g| *g *= share);
            network.backward(&on_logits)?;
            self.sum.iter_mut().zip(network.grads()).for_each(|(sum, g)| *sum += g);
        }
        if !is_whole {
            network.grads_mut().copy_from_slice(&self.sum);
        }
        Ok(Value { loss: sum / n as f64, n_hits })
    }
}

fn pieces<'a>(images: &'a [f32], labels: &'a [i64]) -> impl Iterator<Item = (&'a [f32], &'a [i64])> {
    let image = images.len() / labels.len();
    images.chunks(predict::BATCH * image).zip(labels.chunks(predict::BATCH))
}

fn hits(logits: &[f32], labels: &[i64], n_classes: usize) -> usize {
    predict::classes(logits, n_classes).iter().zip(labels).filter(|(said, label)| said == label).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::reference::{check, values, wide};
    use crate::nn::{Architecture, golden};

    #[test]
    fn pieces_add_up() {
        const N: usize = predict::BATCH + 30;
        let (mut network, _) = golden::hashed(Architecture::Resnet8, 1, (8, 8));
        let n_classes = network.config().n_classes;
        let images = values(5, N * 8 * 8 * 3);
        let labels: Vec<i64> = (0..N).map(|i| (i % n_classes) as i64).collect();
        let mut batch = BatchLoss::new(images.clone(), labels.clone()).unwrap();
        let value = batch.gradient(&mut network).unwrap();
        let gradient = network.grads().to_vec();
        assert_eq!(value, batch.value(&mut network).unwrap());

        let logits = network.forward(&images, N, Mode::Eval).unwrap();
        let mut on_logits = vec![0.0; logits.len()];
        let losses = loss::cross_entropy(logits, &labels, n_classes, 0.0, &mut on_logits).unwrap();
        let n_hits = hits(logits, &labels, n_classes);
        network.backward(&on_logits).unwrap();
        check("gradient", &gradient, &wide(network.grads()), 1e-5);
        let mean = losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / N as f64;
        assert!((value.loss - mean).abs() < 1e-6 && value.n_hits == n_hits);
        assert!(BatchLoss::new(images, vec![0; 7]).is_err() && BatchLoss::new(Vec::new(), Vec::new()).is_err());
    }
}
