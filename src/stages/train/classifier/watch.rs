//! What happens after every epoch: observation, validation, test metrics, early stopping.

use super::observe::Observer;
use super::{Params, Select};
use crate::artifact::{Packed, Split, Trace};
use crate::error::Result;
use crate::nn::augment::Normalise;
use crate::nn::{Network, loss, predict};
use crate::rng::Stream;
use crate::stage::Context;
use crate::stages::evaluate::backdoor::Scores;
use crate::stages::train::fit::{Hooks, Verdict};
use crate::stages::train::history::{History, Row};
use crate::stages::train::state::{Reader, Writer};

/// The hooks of the classifier.
pub struct Watch<'a> {
    cx: &'a Context,
    params: &'a Params,
    dataset: &'a Packed,
    normalise: &'a Normalise,
    judges: Judges<'a>,
    observer: Option<Observer>,
    best: Option<Best>,
}

/// The images that epochs are judged by: never trained on.
pub struct Judges<'a> {
    /// The training split; the test split in a legacy training.
    pub split: &'a Split,
    /// Rows of it, ascending; none if nothing is chosen.
    pub rows: Vec<usize>,
}

/// The epoch with the best validation accuracy.
#[derive(Clone)]
struct Best {
    epoch: usize,
    accuracy: f64,
    loss: f64,
    /// Parameters and running statistics, where they are to be kept.
    weights: Option<(Vec<f32>, Vec<f32>)>,
}

/// The weights that are kept.
pub struct Chosen {
    /// Whose they are, from 1.
    pub epoch: usize,
    clean_accuracy: Option<f64>,
    attack_success: Option<f64>,
}

impl Chosen {
    /// `ACC 66.9 %  ASR 100.0 %`.
    pub fn headline(&self) -> String {
        let share = |name: &str, value: Option<f64>| value.map(|v| format!("{name} {v:.1} %"));
        let shares = [share("ACC", self.clean_accuracy), share("ASR", self.attack_success)];
        shares.into_iter().flatten().collect::<Vec<_>>().join("  ")
    }
}

impl<'a> Watch<'a> {
    /// Hooks for a training on `rows` that `judges` look at.
    ///
    /// # Errors
    /// A layer that the network does not have.
    pub fn new(
        cx: &'a Context,
        params: &'a Params,
        dataset: &'a Packed,
        normalise: &'a Normalise,
        (rows, judges): (&[usize], Judges<'a>),
        network: &Network,
    ) -> Result<Watch<'a>> {
        let observer = match &params.observe {
            Some(observe) => Some(Observer::new(cx, observe, (&dataset.train, rows), network)?),
            None => None,
        };
        Ok(Watch { cx, params, dataset, normalise, judges, observer, best: None })
    }

    /// The weights that are kept, left in `network`, and the trace.
    ///
    /// # Errors
    /// A stop request.
    pub fn finish(self, network: &mut Network, history: &History) -> Result<(Chosen, Trace)> {
        let last = history.rows.last();
        let mut chosen = Chosen {
            epoch: last.map_or(0, |row| row.epoch),
            clean_accuracy: last.and_then(|row| row.clean_accuracy),
            attack_success: last.and_then(|row| row.attack_success),
        };
        if let Some(Best { epoch, weights: Some((params, buffers)), .. }) = &self.best
            && *epoch != chosen.epoch
        {
            network.params_mut().copy_from_slice(params);
            network.buffers_mut().copy_from_slice(buffers);
            let scores = self.test(network, None)?;
            let attack = scores.attack.as_ref();
            chosen = Chosen {
                epoch: *epoch,
                clean_accuracy: scores.clean_accuracy,
                attack_success: attack.and_then(|a| a.success),
            };
        }
        Ok((chosen, self.observer.map(Observer::finish).unwrap_or_default()))
    }

    fn keeps_best(&self) -> bool {
        self.params.legacy || self.params.select == Select::BestValidation
    }

    /// In-network noise for measuring after `epoch`. Validation, test and triggered images draw from streams of their
    /// own, numbered so.
    fn noise(&self, epoch: usize, which: u64) -> Stream {
        self.cx.rng("noise/evaluation").at(3 * epoch as u64 + which)
    }

    /// Whether test images are shown to the noisy network, too.
    fn is_noisy(&self) -> bool {
        let noise = &self.params.noise;
        noise.at_evaluation && (noise.sigma_xt.get() > 0.0 || noise.sigma_ty.get() > 0.0)
    }

    /// Mean loss and accuracy on the validation rows.
    fn validate(&self, network: &mut Network, epoch: usize) -> Result<Option<(f64, f64)>> {
        let Judges { split, rows } = &self.judges;
        if rows.is_empty() {
            return Ok(None);
        }
        network.noise(self.params.noise.at_evaluation.then(|| self.noise(epoch, 0)));
        let logits = self.logits(network, split, rows)?;
        let labels: Vec<i64> = rows.iter().map(|&row| split.label[row]).collect();
        let n_classes = network.config().n_classes;
        let losses = loss::losses(&logits, &labels, n_classes)?;
        let predicted = predict::classes(&logits, n_classes);
        let n_correct = predicted.iter().zip(&labels).filter(|(predicted, label)| predicted == label).count();
        let n = labels.len() as f64;
        let mean_loss = losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / n;
        Ok(Some((mean_loss, 100.0 * n_correct as f64 / n)))
    }

    /// Scores on the test images: under the noise drawn for an epoch, or without noise.
    fn test(&self, network: &mut Network, noise_of: Option<usize>) -> Result<Scores> {
        let n_classes = network.config().n_classes;
        let Packed { test, triggered, .. } = self.dataset;
        let mut classes = |split: &Split, which| -> Result<Vec<i64>> {
            network.noise(noise_of.map(|epoch| self.noise(epoch, which)));
            let rows: Vec<usize> = (0..split.len()).collect();
            Ok(predict::classes(&self.logits(network, split, &rows)?, n_classes))
        };
        let clean = classes(test, 1)?;
        match triggered {
            None => Scores::count((&clean, test), None, n_classes),
            Some(split) => Scores::count((&clean, test), Some((&classes(split, 2)?, split)), n_classes),
        }
    }

    fn logits(&self, network: &mut Network, split: &Split, rows: &[usize]) -> Result<Vec<f32>> {
        let mut all = Vec::new();
        predict::each_batch(network, split, rows, self.normalise, |_, logits| {
            self.cx.check_stop()?;
            all.extend_from_slice(logits);
            Ok(())
        })?;
        Ok(all)
    }
}

impl Hooks for Watch<'_> {
    fn only_watches(&self) -> bool {
        true
    }

    fn epoch(&mut self, network: &mut Network, row: &mut Row) -> Result<Verdict> {
        // All that a stop request can interrupt comes first; what it found is kept at the end.
        let seen = match &self.observer {
            Some(observer) => observer.look(self.cx, network, (&self.dataset.train, self.normalise), row.epoch)?,
            None => Vec::new(),
        };
        let validated = self.validate(network, row.epoch)?;
        let best = validated.map(|(loss, accuracy)| match &self.best {
            Some(best) if (best.accuracy, -best.loss) >= (accuracy, -loss) => best.clone(),
            _ => {
                let keep = self.keeps_best();
                let weights = keep.then(|| (network.params().to_vec(), network.buffers().to_vec()));
                Best { epoch: row.epoch, accuracy, loss, weights }
            }
        });
        let stop = match (&self.params.early_stopping, &best) {
            (Some(stopping), Some(best)) => row.epoch - best.epoch >= stopping.patience.get(),
            _ => false,
        };
        let every = self.params.evaluate_every;
        let is_last = stop || row.epoch == self.params.epochs.get();
        if is_last || (every > 0 && row.epoch.is_multiple_of(every)) {
            let scores = self.test(network, None)?;
            row.clean_accuracy = scores.clean_accuracy;
            row.attack_success = scores.attack.as_ref().and_then(|attack| attack.success);
            row.attack_success_all = scores.attack.as_ref().and_then(|attack| attack.success_all);
            if self.is_noisy() {
                let scores = self.test(network, Some(row.epoch))?;
                row.clean_accuracy_noise = scores.clean_accuracy;
                row.attack_success_noise = scores.attack.as_ref().and_then(|attack| attack.success);
            }
        }
        network.noise(None);

        if let Some(observer) = &mut self.observer {
            observer.keep(row.epoch, seen)?;
        }
        self.best = best;
        row.validation_loss = validated.map(|(loss, _)| loss);
        row.validation_accuracy = validated.map(|(_, accuracy)| accuracy);
        Ok(Verdict { watched: row.validation_loss.unwrap_or(row.loss), stop })
    }

    fn save(&self, out: &mut Writer) {
        if let Some(observer) = &self.observer {
            observer.save(out);
        }
        out.count(u64::from(self.best.is_some()));
        if let Some(Best { epoch, accuracy, loss, weights }) = &self.best {
            out.count(*epoch as u64);
            out.number(*accuracy);
            out.number(*loss);
            if let Some((params, buffers)) = weights {
                out.floats(params);
                out.floats(buffers);
            }
        }
    }

    fn restore(&mut self, from: &mut Reader) -> Option<()> {
        let observer = match &self.observer {
            Some(observer) => Some(observer.restore(from)?),
            None => None,
        };
        let best = match from.count()? {
            0 => None,
            _ => {
                let (epoch, accuracy, loss) = (from.count()? as usize, from.number()?, from.number()?);
                let keep = self.keeps_best();
                let weights = if keep { Some((from.floats()?, from.floats()?)) } else { None };
                Some(Best { epoch, accuracy, loss, weights })
            }
        };
        (self.observer, self.best) = (observer, best);
        Some(())
    }
}
