//! ANP: neurons that adversarial noise on the normalisation finds sensitive are removed.
//!
//! Wu & Wang, "Adversarial Neuron Pruning Purifies Backdoored Deep Models" (NeurIPS 2021, arXiv:2110.14430, section 4 and
//! algorithm 1). Every channel of every normalisation gets a mask m in [0, 1] and adversarial noise (d, x) of at most
//! `epsilon`: `gamma = (m + d) gamma_0`, `beta = (1 + x) beta_0` ([`Channels`]). Masks minimise
//! `alpha CE(m) + (1 - alpha) max CE(m, d, x)` by SGD; the noise starts uniform and takes steps of `epsilon / steps` along
//! the sign of its gradient, and stays within its bound. Then channels whose mask is at most a threshold lose their
//! scale.
//!
//! Differs from the paper's code: epochs over the clean split instead of 2000 draws from it; noise is held within
//! `epsilon` after its steps, as in the paper; the threshold is chosen on held-out clean images.

use super::repair::{Inputs, Pruned, Repair, Trained, fine_tuning, held_out_problem, mask_thresholds};
use crate::error::Result;
use crate::nn::coordinates::Coordinates;
use crate::nn::mask::Channels;
use crate::nn::optim::Optimiser;
use crate::nn::{Mode, Network, loss, optim, schedule};
use crate::param::{Count, Fraction, Positive, valid};
use crate::rng::Stream;
use crate::stage::{Context, Problem, Resources, Stage};
use crate::stages::train::fit::{Hooks, Step};
use crate::stages::train::recipe::{self, AugmentParams, Recipe};
use crate::stages::train::state::{Reader, Writer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Learns masks of neurons under adversarial noise, and removes those with the smallest.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Largest noise, relative to scales and shifts.
    pub epsilon: Positive,
    /// Steps of the noise.
    pub steps: Count,
    /// Weight of the loss without noise.
    pub alpha: Fraction,
    /// Share of the held-out accuracy that pruning may cost.
    pub max_drop: Fraction,
    /// Share of the clean split that is held out to measure it.
    pub held_out: Fraction,
    /// Passes over the rest of the clean split.
    pub epochs: Count,
    /// Images a step; the last step of an epoch takes what is left.
    pub batch_size: Count,
    /// The learning rate of the masks.
    pub learning_rate: Positive,
    /// Momentum of the masks' SGD.
    pub momentum: Fraction,
    /// Random changes to the images.
    pub augment: AugmentParams,
}

impl Default for Params {
    fn default() -> Params {
        Params {
            epsilon: const { valid(Positive::new(0.4)) },
            steps: Count::ONE,
            alpha: const { valid(Fraction::new(0.2)) },
            max_drop: const { valid(Fraction::new(0.05)) },
            held_out: const { valid(Fraction::new(0.2)) },
            epochs: const { valid(Count::new(200)) },
            batch_size: const { valid(Count::new(256)) },
            learning_rate: const { valid(Positive::new(0.2)) },
            momentum: const { valid(Fraction::new(0.9)) },
            augment: AugmentParams::default(),
        }
    }
}

impl Params {
    fn recipe(&self) -> Recipe {
        Recipe {
            epochs: self.epochs.get(),
            batch_size: self.batch_size.get(),
            optimiser: optim::Config {
                kind: optim::Kind::Sgd,
                momentum: self.momentum.get(),
                nesterov: false,
                weight_decay: 0.0,
            },
            learning_rate: self.learning_rate.get(),
            schedule: schedule::Params { kind: schedule::Kind::Constant, ..schedule::Params::default() },
            augment: (&self.augment).into(),
            ..fine_tuning()
        }
    }
}

/// The stage.
pub struct Anp;

impl Stage for Anp {
    const NAME: &'static str = "purify/anp";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Pruned;

    fn draws(_: &Params) -> bool {
        true
    }

    fn check(params: &Params) -> Vec<Problem> {
        let mut problems = params.recipe().problems();
        problems.extend(held_out_problem(params.held_out));
        problems
    }

    fn resources(params: &Params) -> Resources {
        // Batch statistics that leave the running ones alone are not to be had on a GPU.
        Resources { gpu: false, ..recipe::resources(None, params.batch_size.get()) }
    }

    fn run(cx: &Context, params: Params, Inputs { model, clean }: Inputs) -> Result<Pruned> {
        let mut repair = Repair::begin(cx, model, &clean, params.held_out)?;
        let original = repair.network.params().to_vec();
        let masks = Channels::new(repair.network.graph(), &original);
        let n = masks.values().len();
        let recipe = params.recipe();
        let mut hooks = Adversary {
            params: &params,
            trained: Trained::new(masks, &mut repair.network),
            draws: cx.rng("noise-on-neurons"),
            scale: vec![0.0; n],
            shift: vec![0.0; n],
        };
        repair.fit(&recipe, &mut hooks)?;
        repair.network.params_mut().copy_from_slice(&original);
        let masks = hooks.trained.coordinates;
        let (summary, notes, pruning) = mask_thresholds(&mut repair, &masks, params.max_drop)?;
        cx.headline(notes.join(", "));
        let summary = format!("{summary}, {}", recipe.summary());
        Ok(Pruned { model: repair.end(Anp::NAME, &summary, notes), pruning })
    }
}

struct Adversary<'a> {
    params: &'a Params,
    trained: Trained<Channels>,
    draws: Stream,
    /// Noise on scales and on shifts, by channel.
    scale: Vec<f32>,
    shift: Vec<f32>,
}

impl Adversary<'_> {
    /// The gradient of the loss under the present noise stays in the network.
    fn under_noise(&self, network: &mut Network, step: &Step) -> Result<()> {
        self.trained.coordinates.write_perturbed((&self.scale, &self.shift), network.params_mut());
        let n_classes = network.config().n_classes;
        let logits = network.forward(step.images, step.labels.len(), Mode::Batch)?;
        let mut on_logits = vec![0.0; logits.len()];
        loss::cross_entropy(logits, step.labels, n_classes, 0.0, &mut on_logits)?;
        network.backward(&on_logits)
    }
}

impl Hooks for Adversary<'_> {
    fn mode(&self) -> Mode {
        Mode::Batch
    }

    fn backward(&mut self, network: &mut Network, step: &Step) -> Result<()> {
        network.backward(step.grad_logits)?;
        self.trained.pull(network);
        let clean = self.trained.gradient.clone();
        let epsilon = self.params.epsilon.get();
        let mut draw = self.draws.at(step.number as u64);
        for noise in self.scale.iter_mut().chain(&mut self.shift) {
            *noise = draw.uniform_in(-epsilon, epsilon) as f32;
        }
        let (bound, ascent) = (epsilon as f32, (epsilon / self.params.steps.get() as f64) as f32);
        let (mut on_scale, mut on_shift) = (vec![0.0; clean.len()], vec![0.0; clean.len()]);
        for _ in 0..self.params.steps.get() {
            self.under_noise(network, step)?;
            self.trained.coordinates.pull_back_noise(network.grads(), (&mut on_scale, &mut on_shift));
            let pairs = self.scale.iter_mut().zip(&on_scale).chain(self.shift.iter_mut().zip(&on_shift));
            pairs.for_each(|(noise, &g)| *noise = ascended(*noise, g, ascent, bound));
        }
        self.under_noise(network, step)?;
        self.trained.pull(network);
        let alpha = self.params.alpha.get() as f32;
        for (g, clean) in self.trained.gradient.iter_mut().zip(&clean) {
            *g = alpha * clean + (1.0 - alpha) * *g;
        }
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

/// A step along the sign of the gradient, within the bound; none without a gradient.
fn ascended(noise: f32, gradient: f32, step: f32, bound: f32) -> f32 {
    let sign = f32::from(i8::from(gradient > 0.0) - i8::from(gradient < 0.0));
    (noise + step * sign).clamp(-bound, bound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_climbs_within_its_bound() {
        assert_eq!(ascended(-0.3, 2.0, 0.4, 0.4), 0.4 - 0.3);
        assert_eq!(ascended(0.3, 1e-9, 0.4, 0.4), 0.4);
        assert_eq!(ascended(-0.3, -1.0, 0.4, 0.4), -0.4);
        assert_eq!(ascended(0.3, 0.0, 0.4, 0.4), 0.3);
    }
}
