//! RNP: unlearn the clean images, learn which neurons bring them back, and remove those that do not.
//!
//! Li et al., "Reconstructive Neuron Pruning for Backdoor Defense" (ICML 2023, arXiv:2305.14876, section 3). First the
//! loss on the clean split is maximised until the network fails on it: what is left of it is the backdoor. Then, with
//! those weights frozen, masks on the channels of every normalisation are learnt that make the clean images right again
//! ([`Channels`]). Channels whose mask is at most a threshold lose their scale in the original model.
//!
//! Defaults are the paper's code's: gradients clipped at length 20 while unlearning, until 20 % accuracy or 20 epochs;
//! masks by SGD at 0.2 on 0.2 CE. Differs from it: the threshold is chosen on held-out clean images, not 0.7.

use super::repair::{Inputs, Pruned, Repair, Trained, fine_tuning, held_out_problem, mask_thresholds};
use crate::error::Result;
use crate::nn::coordinates::Coordinates;
use crate::nn::mask::Channels;
use crate::nn::optim::{Optimiser, clip};
use crate::nn::{Mode, Network, optim, schedule};
use crate::param::{Count, Fraction, NonNegative, Positive, valid};
use crate::stage::{Context, Problem, Resources, Stage};
use crate::stages::train::fit::{Hooks, Step, Verdict};
use crate::stages::train::history::Row;
use crate::stages::train::recipe::{self, AugmentParams, Recipe};
use crate::stages::train::state::{Reader, Writer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Longest gradient of a step of unlearning.
const LONGEST: f64 = 20.0;

/// Unlearns clean images, and removes the neurons that do not help to recover them.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Most passes over the clean split while unlearning.
    pub unlearning_epochs: Count,
    /// The learning rate of unlearning, a tenth of it after half of the passes.
    pub unlearning_rate: Positive,
    /// Unlearning ends once no more than this share of the clean images is right.
    pub unlearnt: Fraction,
    /// Weight of the loss that masks are learnt by.
    pub alpha: NonNegative,
    /// Share of the held-out accuracy that pruning may cost.
    pub max_drop: Fraction,
    /// Share of the clean split that is held out to measure it.
    pub held_out: Fraction,
    /// Passes over the rest of the clean split while masks are learnt.
    pub epochs: Count,
    /// Images a step; the last step of an epoch takes what is left.
    pub batch_size: Count,
    /// The learning rate of the masks.
    pub learning_rate: Positive,
    /// Random changes to the images.
    pub augment: AugmentParams,
}

impl Default for Params {
    fn default() -> Params {
        Params {
            unlearning_epochs: const { valid(Count::new(20)) },
            unlearning_rate: const { valid(Positive::new(0.01)) },
            unlearnt: const { valid(Fraction::new(0.2)) },
            alpha: const { valid(NonNegative::new(0.2)) },
            max_drop: const { valid(Fraction::new(0.05)) },
            held_out: const { valid(Fraction::new(0.2)) },
            epochs: const { valid(Count::new(20)) },
            batch_size: const { valid(Count::new(128)) },
            learning_rate: const { valid(Positive::new(0.2)) },
            augment: AugmentParams::default(),
        }
    }
}

impl Params {
    fn unlearning(&self) -> Recipe {
        let epochs = self.unlearning_epochs.get();
        let (kind, milestones) = match epochs {
            1 => (schedule::Kind::Constant, Vec::new()),
            _ => (schedule::Kind::MultiStep, vec![epochs / 2]),
        };
        Recipe {
            epochs,
            batch_size: self.batch_size.get(),
            learning_rate: self.unlearning_rate.get(),
            schedule: schedule::Params { kind, milestones, ..schedule::Params::default() },
            augment: (&self.augment).into(),
            ..fine_tuning()
        }
    }

    fn recovery(&self) -> Recipe {
        let sgd = optim::Config { kind: optim::Kind::Sgd, momentum: 0.9, nesterov: false, weight_decay: 0.0 };
        Recipe {
            epochs: self.epochs.get(),
            batch_size: self.batch_size.get(),
            optimiser: sgd,
            learning_rate: self.learning_rate.get(),
            schedule: schedule::Params { kind: schedule::Kind::Constant, ..schedule::Params::default() },
            augment: (&self.augment).into(),
            ..fine_tuning()
        }
    }
}

/// The stage.
pub struct Rnp;

impl Stage for Rnp {
    const NAME: &'static str = "purify/rnp";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Pruned;

    fn draws(_: &Params) -> bool {
        true
    }

    fn check(params: &Params) -> Vec<Problem> {
        held_out_problem(params.held_out).into_iter().collect()
    }

    fn resources(params: &Params) -> Resources {
        // Batch statistics that leave the running ones alone are not to be had on a GPU.
        Resources { gpu: false, ..recipe::resources(None, params.batch_size.get()) }
    }

    fn run(cx: &Context, params: Params, Inputs { model, clean }: Inputs) -> Result<Pruned> {
        let mut repair = Repair::begin(cx, model, &clean, params.held_out)?;
        let original = (repair.network.params().to_vec(), repair.network.buffers().to_vec());
        let unlearning = repair.fit_part("unlearn", &params.unlearning(), &mut Unlearn { until: params.unlearnt })?;
        let left = unlearning.rows.last().map_or(100.0, |row| row.accuracy);
        if left > 100.0 * params.unlearnt.get() {
            cx.warn(format!("unlearning ended with {left:.1} % of the clean images right: raise `unlearning_epochs`"));
        }
        let masks = Channels::new(repair.network.graph(), repair.network.params());
        let trained = Trained::new(masks, &mut repair.network);
        let mut hooks = Recover { alpha: params.alpha.get() as f32, trained };
        let recipe = params.recovery();
        repair.fit(&recipe, &mut hooks)?;
        repair.network.params_mut().copy_from_slice(&original.0);
        repair.network.buffers_mut().copy_from_slice(&original.1);
        let (summary, mut notes, pruning) = mask_thresholds(&mut repair, &hooks.trained.coordinates, params.max_drop)?;
        cx.headline(notes.join(", "));
        notes.push(format!(
            "{left:.1} % of the clean images right after {} epochs of unlearning",
            unlearning.rows.len()
        ));
        let summary = format!("{summary}, {}", recipe.summary());
        Ok(Pruned { model: repair.end(Rnp::NAME, &summary, notes), pruning })
    }
}

struct Unlearn {
    until: Fraction,
}

impl Hooks for Unlearn {
    fn backward(&mut self, network: &mut Network, step: &Step) -> Result<()> {
        let upwards: Vec<f32> = step.grad_logits.iter().map(|g| -g).collect();
        network.backward(&upwards)?;
        clip(network.grads_mut(), LONGEST);
        Ok(())
    }

    fn epoch(&mut self, _: &mut Network, row: &mut Row) -> Result<Verdict> {
        Ok(Verdict { watched: row.loss, stop: row.accuracy <= 100.0 * self.until.get() })
    }
}

struct Recover {
    alpha: f32,
    trained: Trained<Channels>,
}

impl Hooks for Recover {
    fn mode(&self) -> Mode {
        Mode::Batch
    }

    fn backward(&mut self, network: &mut Network, step: &Step) -> Result<()> {
        network.backward(step.grad_logits)?;
        self.trained.pull(network);
        self.trained.gradient.iter_mut().for_each(|g| *g *= self.alpha);
        Ok(())
    }

    fn n_trained(&self, _: &Network) -> usize {
        self.trained.coordinates.values().len()
    }

    fn update(&mut self, network: &mut Network, optimiser: &mut Optimiser, rate: f64) {
        self.trained.update(network, optimiser, rate, |masks| masks.iter_mut().for_each(|m| *m = m.clamp(0.0, 1.0)));
    }

    fn save(&self, out: &mut Writer) {
        self.trained.save(out);
    }

    fn restore(&mut self, from: &mut Reader) -> Option<()> {
        self.trained.restore(from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_gradients_are_shortened() {
        let mut gradient = [3.0, 4.0];
        clip(&mut gradient, 20.0);
        assert_eq!(gradient, [3.0, 4.0]);
        clip(&mut gradient, 2.5);
        assert_eq!(gradient, [1.5, 2.0]);
    }
}
