//! AWM: weights that adversarial perturbations of all images need are masked out, softly.
//!
//! Chai & Chen, "One-shot Neural Backdoor Erasing via Adversarial Weight Masking" (NeurIPS 2022, arXiv:2207.04497).
//! Every weight of a convolution has a mask in [0, 1] ([`Reach::Weight`]). Each epoch looks for a universal perturbation
//! by a pass of gradient ascent over the clean split, shortened to `radius` in L1, and then trains the masks by Adam on
//! `alpha CE(x) + (1 - alpha) CE(clip(x + d)) + gamma |m|_1`, in evaluation mode.
//!
//! alpha, gamma, radius and the inner rate are those of the backdoor-toolbox's version; Adam's step and the number of
//! epochs are ours.

use super::repair::{Inputs, Outputs, Repair, Trained, fine_tuning};
use crate::artifact::Split;
use crate::error::Result;
use crate::nn::augment::{self, Normalise};
use crate::nn::coordinates::Coordinates;
use crate::nn::mask::{Reach, Weights};
use crate::nn::optim::Optimiser;
use crate::nn::{Mode, Network, bilevel, loss, optim, schedule};
use crate::param::{Count, Fraction, NonNegative, Positive, valid};
use crate::stage::{Context, Problem, Resources, Stage};
use crate::stages::train::fit::{Hooks, Step};
use crate::stages::train::recipe::{self, AugmentParams, Recipe};
use crate::stages::train::state::{Reader, Writer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Learns soft masks of weights against universal perturbations.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Weight of the loss on images as they are; the rest goes to perturbed ones.
    pub alpha: Fraction,
    /// Weight of the sum of all masks.
    pub gamma: NonNegative,
    /// Most that the perturbation of normalised images may sum up to.
    pub radius: Positive,
    /// Learning rate of the perturbation.
    pub inner_rate: Positive,
    /// Passes over the clean split, a perturbation each.
    pub epochs: Count,
    /// Images a step; the last step of an epoch takes what is left.
    pub batch_size: Count,
    /// Adam's step on the masks.
    pub learning_rate: Positive,
    /// Random changes to the images.
    pub augment: AugmentParams,
}

impl Default for Params {
    fn default() -> Params {
        Params {
            alpha: const { valid(Fraction::new(0.9)) },
            gamma: const { valid(NonNegative::new(1e-8)) },
            radius: const { valid(Positive::new(1000.0)) },
            inner_rate: const { valid(Positive::new(10.0)) },
            epochs: const { valid(Count::new(50)) },
            batch_size: const { valid(Count::new(128)) },
            learning_rate: const { valid(Positive::new(0.01)) },
            augment: AugmentParams::default(),
        }
    }
}

impl Params {
    fn recipe(&self) -> Recipe {
        let adam = optim::Config { kind: optim::Kind::Adamw, momentum: 0.0, nesterov: false, weight_decay: 0.0 };
        Recipe {
            epochs: self.epochs.get(),
            batch_size: self.batch_size.get(),
            optimiser: adam,
            learning_rate: self.learning_rate.get(),
            schedule: schedule::Params { kind: schedule::Kind::Constant, ..schedule::Params::default() },
            augment: (&self.augment).into(),
            ..fine_tuning()
        }
    }
}

/// The stage.
pub struct Awm;

impl Stage for Awm {
    const NAME: &'static str = "purify/awm";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn draws(_: &Params) -> bool {
        true
    }

    fn check(params: &Params) -> Vec<Problem> {
        params.recipe().problems()
    }

    fn resources(params: &Params) -> Resources {
        recipe::resources(None, params.batch_size.get())
    }

    fn run(cx: &Context, params: Params, Inputs { model, clean }: Inputs) -> Result<Outputs> {
        let mut repair = Repair::begin(cx, model, &clean, Fraction::ZERO)?;
        repair.network.want_input_grad(true);
        let masks = Weights::new(repair.network.graph(), repair.network.params(), Reach::Weight);
        let recipe = params.recipe();
        let mut hooks = Masking {
            params: &params,
            trained: Trained::new(masks, &mut repair.network),
            source: (repair.images, repair.rows.clone(), repair.normalise.clone()),
            n_steps: repair.rows.len().div_ceil(recipe.batch_size),
            perturbation: Vec::new(),
            limits: limits(&repair.normalise),
        };
        let history = repair.fit(&recipe, &mut hooks)?;
        repair.network.want_input_grad(false);
        let history = repair.table(&history);
        let masks = hooks.trained.coordinates.values();
        let mean = masks.iter().map(|&m| f64::from(m)).sum::<f64>() / masks.len() as f64;
        cx.headline(format!("{} masks, mean {mean:.3}", masks.len()));
        let summary = format!("{} masks, mean {mean:.3}, {}", masks.len(), recipe.summary());
        Ok(Outputs { model: repair.end(Awm::NAME, &summary, Vec::new()), history })
    }
}

/// Black and white of every channel, normalised.
fn limits(normalise: &Normalise) -> [[f32; 3]; 2] {
    [0.0, 255.0].map(|value| {
        let mut limit = [0.0; 3];
        normalise.floats(&[value; 3], &mut limit);
        limit
    })
}

struct Masking<'a> {
    params: &'a Params,
    trained: Trained<Weights>,
    source: (&'a Split, Vec<usize>, Normalise),
    /// Steps in an epoch.
    n_steps: usize,
    /// Of this epoch, [H, W, 3].
    perturbation: Vec<f32>,
    limits: [[f32; 3]; 2],
}

impl Masking<'_> {
    /// The perturbation that does most harm to the network as it is.
    fn look_for_perturbation(&mut self, network: &mut Network) -> Result<()> {
        let (split, rows, normalise) = &self.source;
        let n_values = split.image_bytes();
        let mut batches = Vec::new();
        for batch in rows.chunks(self.params.batch_size.get()) {
            let mut images = vec![0.0; batch.len() * n_values];
            augment::plain(split, batch, normalise, &mut images)?;
            batches.push((images, batch.iter().map(|&row| split.label[row]).collect::<Vec<_>>()));
        }
        let labelled = batches.iter().map(|(images, labels)| (&images[..], Some(&labels[..])));
        self.perturbation = bilevel::universal(network, labelled, n_values, (self.params.inner_rate.get(), 0.0))?;
        shorten(&mut self.perturbation, self.params.radius.get());
        Ok(())
    }
}

/// Scales `values` so that their absolute values sum up to `radius` at most.
fn shorten(values: &mut [f32], radius: f64) {
    let sum: f64 = values.iter().map(|&v| f64::from(v.abs())).sum();
    if sum > radius {
        let scale = (radius / sum) as f32;
        values.iter_mut().for_each(|v| *v *= scale);
    }
}

impl Hooks for Masking<'_> {
    fn mode(&self) -> Mode {
        Mode::Eval
    }

    fn backward(&mut self, network: &mut Network, step: &Step) -> Result<()> {
        network.backward(step.grad_logits)?;
        self.trained.pull(network);
        let clean = self.trained.gradient.clone();
        if step.number.is_multiple_of(self.n_steps) {
            self.look_for_perturbation(network)?;
        }
        let mut moved = step.images.to_vec();
        let [black, white] = self.limits;
        for image in moved.chunks_exact_mut(self.perturbation.len()) {
            for (i, (value, d)) in image.iter_mut().zip(&self.perturbation).enumerate() {
                *value = (*value + d).clamp(black[i % 3], white[i % 3]);
            }
        }
        let n_classes = network.config().n_classes;
        let logits = network.forward(&moved, step.labels.len(), Mode::Eval)?;
        let mut on_logits = vec![0.0; logits.len()];
        loss::cross_entropy(logits, step.labels, n_classes, 0.0, &mut on_logits)?;
        network.backward(&on_logits)?;
        self.trained.pull(network);
        let (alpha, gamma) = (self.params.alpha.get() as f32, self.params.gamma.get() as f32);
        // Masks are not negative: their sum has slope 1.
        for (g, clean) in self.trained.gradient.iter_mut().zip(&clean) {
            *g = alpha * clean + (1.0 - alpha) * *g + gamma;
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
        out.floats(&self.perturbation);
        self.trained.save(out);
    }

    fn restore(&mut self, from: &mut Reader) -> Option<()> {
        let perturbation = from.floats()?;
        self.trained.restore(from)?;
        self.perturbation = perturbation;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn perturbations_stay_within_their_radius() {
        let mut values = [3.0, -1.0, 0.0];
        shorten(&mut values, 5.0);
        assert_eq!(values, [3.0, -1.0, 0.0]);
        shorten(&mut values, 2.0);
        assert_eq!(values, [1.5, -0.5, 0.0]);
    }

    #[test]
    fn pixels_lie_between_black_and_white() {
        let [black, white] = limits(&Normalise::new([0.5, 0.4, 0.3], [0.25, 0.2, 0.1]).unwrap());
        let check = |got: [f32; 3], expected: [f32; 3]| {
            assert!(got.iter().zip(expected).all(|(g, e)| (g - e).abs() < 1e-4), "{got:?} instead of {expected:?}");
        };
        check(black, [-2.0, -2.0, -3.0]);
        check(white, [2.0, 3.0, 7.0]);
    }
}
