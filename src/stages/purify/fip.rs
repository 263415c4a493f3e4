//! FIP: fine-tuning towards flat minima, with the trace of the Fisher information as the measure of sharpness.
//!
//! Karim et al., "Fisher Information guided Purification against Backdoor Attacks". On the clean split, with F the
//! empirical Fisher information and (theta', F') weights and Fisher diagonal of the backdoored model:
//!
//! `L = CE + eta_f Tr F(theta) + eta_r / 2 sum_i diag(F')_i (theta_i - theta'_i)^2`
//!
//! The trace and its gradient take a mixture of samples with random signs and one Hessian product
//! ([`fisher`]), on images without augmentation.
//!
//! `legacy = true` is what the released code (`src/Regularizer.py`) computes instead: the mean of `g'v` over 20 Gaussian
//! vectors v, whose expectation is zero, with g the gradient of the mean log-likelihood over all pairs of an image and a
//! label of the batch, partial sums counted once for every tensor that follows, and no consolidation. Its batches differ
//! from the code's in that they are drawn without replacement.
//!
//! Differs from the code: eta_f, eta_r, learning rate and epochs are the paper's. Nothing decays, and the rate is
//! constant, as in the code.

use super::repair::{Inputs, Outputs, Repair, Trained, fine_tuning};
use crate::error::Result;
use crate::nn::coordinates::{Coordinates, Plain};
use crate::nn::fisher;
use crate::nn::hvp::HessianProduct;
use crate::nn::optim::{Optimiser, clip};
use crate::nn::{Mode, Network, optim, predict, schedule};
use crate::param::{Count, Fraction, NonNegative, Positive, valid};
use crate::rng::Stream;
use crate::stage::{Context, Problem, Resources, Stage};
use crate::stages::train::fit::{Hooks, Step, Verdict};
use crate::stages::train::history::Row;
use crate::stages::train::recipe::{self, AugmentParams, Recipe};
use crate::stages::train::sharpness::{FisherTerm, Traces};
use crate::stages::train::state::{Reader, Writer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Fine-tunes all weights with the Fisher information's trace and elastic consolidation.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Weight of the trace of the Fisher information, or of the noise term if `legacy`; 0 leaves it out.
    pub eta_f: NonNegative,
    /// Weight of the consolidation at the backdoored model; 0 leaves it out.
    pub eta_r: NonNegative,
    /// The trace enters every so many steps.
    pub every: Count,
    /// Images that the trace is estimated on, drawn anew each time.
    pub fisher_batch: Count,
    /// Whether the noise term of the released code takes the place of the trace; there is no consolidation then,
    /// whatever `eta_r`.
    pub legacy: bool,
    /// Passes over the clean split.
    pub epochs: Count,
    /// Images a step; the last step of an epoch takes what is left.
    pub batch_size: Count,
    /// The learning rate that the schedule starts from, or climbs to.
    pub learning_rate: Positive,
    /// Momentum of SGD.
    pub momentum: Fraction,
    /// How the learning rate moves.
    pub schedule: schedule::Params,
    /// Largest Euclidean norm of a step's whole gradient; a longer one is shortened. The paper has no limit: on a sharp
    /// model the trace's gradient is then larger than the rate can bear.
    pub clip: Option<Positive>,
    /// Random changes to the images of the cross-entropy.
    pub augment: AugmentParams,
}

impl Default for Params {
    fn default() -> Params {
        Params {
            eta_f: const { valid(NonNegative::new(0.001)) },
            eta_r: const { valid(NonNegative::new(5.0)) },
            every: Count::ONE,
            fisher_batch: const { valid(Count::new(128)) },
            legacy: false,
            epochs: const { valid(Count::new(100)) },
            batch_size: const { valid(Count::new(128)) },
            learning_rate: const { valid(Positive::new(0.01)) },
            momentum: const { valid(Fraction::new(0.95)) },
            schedule: schedule::Params { kind: schedule::Kind::Constant, ..schedule::Params::default() },
            clip: None,
            augment: AugmentParams::default(),
        }
    }
}

impl Params {
    pub(super) fn recipe(&self) -> Recipe {
        let sgd =
            optim::Config { kind: optim::Kind::Sgd, momentum: self.momentum.get(), nesterov: false, weight_decay: 0.0 };
        Recipe {
            epochs: self.epochs.get(),
            batch_size: self.batch_size.get(),
            optimiser: sgd,
            learning_rate: self.learning_rate.get(),
            schedule: self.schedule.clone(),
            augment: (&self.augment).into(),
            ..fine_tuning()
        }
    }

    /// What tables must say of these parameters.
    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.legacy {
            notes.push(format!(
                "legacy: the released code's noise term (weight {}) in place of the Fisher trace, no consolidation",
                self.eta_f.get()
            ));
        } else {
            if self.eta_f.get() == 0.0 {
                notes.push("ablation: no Fisher trace".to_string());
            }
            if self.eta_r.get() == 0.0 {
                notes.push("ablation: no consolidation".to_string());
            }
        }
        notes
    }
}

/// The stage.
pub struct Fip;

impl Stage for Fip {
    const NAME: &'static str = "purify/fip";
    const VERSION: u32 = 2;
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
        resources(params)
    }

    fn run(cx: &Context, params: Params, inputs: Inputs) -> Result<Outputs> {
        purify(cx, &params, inputs, Fip::NAME, |network| Ok(Plain::new(network.params())))
    }
}

pub(super) fn resources(params: &Params) -> Resources {
    let batch = params.batch_size.get().max(params.fisher_batch.get());
    // The noise term needs batch statistics that leave the running ones alone, which a GPU does not have.
    Resources { gpu: !params.legacy, ..recipe::resources(None, batch) }
}

/// The method over the coordinates that `coordinates` gives.
pub(super) fn purify<C: Coordinates>(
    cx: &Context,
    params: &Params,
    Inputs { model, clean }: Inputs,
    stage: &str,
    coordinates: impl FnOnce(&Network) -> Result<C>,
) -> Result<Outputs> {
    let mut repair = Repair::begin(cx, model, &clean, Fraction::ZERO)?;
    let recipe = params.recipe();
    let trained = Trained::new(coordinates(&repair.network)?, &mut repair.network);
    let n_trained = trained.coordinates.values().len();
    let consolidation = match params.legacy || params.eta_r.get() == 0.0 {
        true => None,
        false => {
            let of = (repair.images, &repair.rows[..], &repair.normalise);
            let diagonal = fisher::diagonal(&mut repair.network, &trained.coordinates, of, || cx.check_stop())?;
            let anchor = trained.coordinates.values().to_vec();
            Some(Consolidation { weight: params.eta_r.get() as f32, diagonal, anchor })
        }
    };
    let of = (repair.images, &repair.rows[..], &repair.normalise);
    let fisher = FisherTerm::new((params.eta_f, params.every, params.fisher_batch), of, cx.rng("fisher"));
    let is_legacy = params.legacy;
    let mut hooks = Purify {
        is_legacy,
        trained,
        consolidation,
        fisher,
        product: HessianProduct::new(),
        noise: vec![0.0; n_trained],
        clip: params.clip,
    };
    let history = repair.fit(&recipe, &mut hooks)?;
    let mut history = repair.table(&history);
    if params.eta_f.get() > 0.0 && !params.legacy {
        hooks.fisher.traces.add_column(&mut history);
    }
    let last = hooks.fisher.traces.last().map_or(String::new(), |trace| format!(", Tr F {trace:.3}"));
    cx.headline(format!("{} images, {n_trained} values{last}", repair.rows.len()));
    let summary = format!(
        "eta_f {}, eta_r {}, {n_trained} values trained, {}{}",
        params.eta_f.get(),
        params.eta_r.get(),
        recipe.summary(),
        if params.legacy { ", legacy" } else { "" }
    );
    Ok(Outputs { model: repair.end(stage, &summary, params.notes()), history })
}

/// The quadratic that holds values where the backdoored model had them.
struct Consolidation {
    weight: f32,
    diagonal: Vec<f32>,
    anchor: Vec<f32>,
}

struct Purify<'a, C> {
    is_legacy: bool,
    trained: Trained<C>,
    consolidation: Option<Consolidation>,
    fisher: FisherTerm<'a>,
    product: HessianProduct,
    /// Room for the noise term's gradient.
    noise: Vec<f32>,
    clip: Option<Positive>,
}

impl<C: Coordinates> Purify<'_, C> {
    /// Adds the gradient of the released code's noise term.
    fn add_noise(&mut self, network: &mut Network, number: usize) -> Result<()> {
        let (images, labels, mut draw) = self.fisher.batch(number)?;
        let direction = noise_direction(network, &mut draw);
        mean_over_pairs(network, &images, &labels)?;
        let Purify { product, noise, .. } = self;
        network.holding_gates(|network| {
            product.of_network(network, &direction, noise, |network| mean_over_pairs(network, &images, &labels))
        })?;
        let weight = self.fisher.weight() as f32;
        self.trained.gradient.iter_mut().zip(&self.noise).for_each(|(g, noise)| *g += weight * noise);
        Ok(())
    }
}

impl<C: Coordinates> Hooks for Purify<'_, C> {
    fn backward(&mut self, network: &mut Network, step: &Step) -> Result<()> {
        network.backward(step.grad_logits)?;
        self.trained.pull(network);
        if let Some(Consolidation { weight, diagonal, anchor }) = &self.consolidation {
            let at = self.trained.coordinates.values().iter().zip(anchor).zip(diagonal);
            for (g, ((value, anchor), fisher)) in self.trained.gradient.iter_mut().zip(at) {
                *g += weight * fisher * (value - anchor);
            }
        }
        if self.fisher.is_due(step.number) {
            if self.is_legacy {
                self.add_noise(network, step.number)?;
            } else {
                let Trained { coordinates, gradient } = &mut self.trained;
                self.fisher.add(network, coordinates, step.number, gradient)?;
            }
        }
        if let Some(limit) = self.clip {
            clip(&mut self.trained.gradient, limit.get());
        }
        Ok(())
    }

    fn n_trained(&self, _: &Network) -> usize {
        self.trained.coordinates.values().len()
    }

    fn update(&mut self, network: &mut Network, optimiser: &mut Optimiser, rate: f64) {
        self.trained.update(network, optimiser, rate, |_| {});
    }

    fn epoch(&mut self, _: &mut Network, row: &mut Row) -> Result<Verdict> {
        self.fisher.traces.end_epoch();
        Ok(Verdict { watched: row.loss, stop: false })
    }

    fn save(&self, out: &mut Writer) {
        self.trained.save(out);
        self.fisher.traces.save(out);
    }

    fn restore(&mut self, from: &mut Reader) -> Option<()> {
        let mut later = from.clone();
        later.floats()?;
        let traces = Traces::read(&mut later)?;
        self.trained.restore(from)?;
        self.fisher.traces = traces;
        *from = later;
        Some(())
    }
}

/// The released code's number of random vectors.
const N_VECTORS: usize = 20;

/// The mean of the random vectors, each tensor weighted by the share of partial sums that it is in.
fn noise_direction(network: &Network, draw: &mut Stream) -> Vec<f32> {
    // The mean of 20 standard normal draws is one of variance 1/20.
    let mut direction = draw.normals(network.n_parameters(), 1.0 / (N_VECTORS as f64).sqrt());
    let tensors = &network.graph().parameters;
    for (i, tensor) in tensors.iter().enumerate() {
        let share = (tensors.len() - i) as f32 / tensors.len() as f32;
        direction[tensor.range.clone()].iter_mut().for_each(|v| *v *= share);
    }
    direction
}

/// Leaves the gradient of the mean of log p(y_j | x_i) over all i and j in the network, over batch statistics.
fn mean_over_pairs(network: &mut Network, images: &[f32], labels: &[i64]) -> Result<()> {
    let (n, n_classes) = (labels.len(), network.config().n_classes);
    let mut shares = vec![0.0f64; n_classes];
    labels.iter().for_each(|&label| shares[label as usize] += 1.0 / n as f64);
    let logits = network.forward(images, n, Mode::Batch)?;
    let mut on_logits = vec![0.0; logits.len()];
    for (logits, target) in logits.chunks_exact(n_classes).zip(on_logits.chunks_exact_mut(n_classes)) {
        for ((target, p), share) in target.iter_mut().zip(predict::probabilities(logits)).zip(&shares) {
            *target = ((share - p) / n as f64) as f32;
        }
    }
    network.backward(&on_logits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Architecture, Config};

    /// Against a central difference of the definition.
    #[test]
    fn the_legacy_likelihood_is_over_all_pairs() {
        let config =
            Config { architecture: Architecture::Resnet8, n_classes: 4, size: (8, 8), sigma_xt: 0.0, sigma_ty: 0.0 };
        let mut network = Network::new(&config).unwrap();
        network.init(&Context::for_test(1, Fip::NAME).rng("init"));
        let mut stream = Context::for_test(1, Fip::NAME).rng("images");
        let (images, labels) = (stream.normals(5 * 192, 1.0), [0, 3, 3, 1, 0]);
        mean_over_pairs(&mut network, &images, &labels).unwrap();
        let gradient = network.grads().to_vec();
        let length = gradient.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        let start = network.params().to_vec();
        let mut at = |step: f64| {
            let moved = start.iter().zip(&gradient).map(|(w, g)| w + (step / length) as f32 * g);
            network.params_mut().copy_from_slice(&moved.collect::<Vec<_>>());
            let logits = network.forward(&images, 5, Mode::Batch).unwrap();
            let rows = logits.chunks_exact(4).map(predict::probabilities);
            let each = rows.map(|p: Vec<f64>| labels.iter().map(|&l| p[l as usize].ln()).sum::<f64>());
            each.sum::<f64>() / 25.0
        };
        let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
        assert!((slope / length - 1.0).abs() < 0.02, "difference {slope}, gradient {length}");
    }

    #[test]
    fn early_tensors_count_more_in_the_noise() {
        let config =
            Config { architecture: Architecture::Resnet8, n_classes: 4, size: (8, 8), sigma_xt: 0.0, sigma_ty: 0.0 };
        let network = Network::new(&config).unwrap();
        let direction = noise_direction(&network, &mut Context::for_test(1, Fip::NAME).rng("noise"));
        let tensors = &network.graph().parameters;
        for (i, tensor) in tensors.iter().enumerate().filter(|(_, tensor)| tensor.range.len() > 1000) {
            let own = &direction[tensor.range.clone()];
            let deviation = (own.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / own.len() as f64).sqrt();
            let expected = (tensors.len() - i) as f64 / tensors.len() as f64 / 20f64.sqrt();
            assert!((deviation / expected - 1.0).abs() < 0.1, "{}: {deviation} instead of {expected}", tensor.name);
        }
    }
}
