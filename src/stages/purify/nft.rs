//! NFT: only a mask a neuron is trained, on mixtures of clean images.
//!
//! Karim et al., "Augmented Neural Fine-Tuning for Efficient Backdoor Purification" (ECCV 2024, arXiv:2407.10052). Every
//! output of a convolution and of the linear layer has one factor ([`Reach::Neuron`]), trained by SGD on MixUp's loss
//! (Zhang et al. 2018, with Beta(1, 1)) plus `eta / n_c` times the masks' distance from 1 in L1, n_c being the clean
//! images of a class. Masks of layer l, from 0, stay between `0.8 exp(-l / 2)` and 1. Defaults are the code's: rate 0.05,
//! momentum 0.95, cosine, 1000 steps on 500 images.

use super::repair::{Inputs, Outputs, Repair, Trained, fine_tuning};
use crate::error::Result;
use crate::nn::coordinates::Coordinates;
use crate::nn::mask::{Reach, Weights};
use crate::nn::optim::Optimiser;
use crate::nn::{Network, loss, optim, schedule};
use crate::param::{Count, Fraction, NonNegative, Positive, valid};
use crate::rng::Stream;
use crate::stage::{Context, Problem, Resources, Stage};
use crate::stages::train::fit::{Hooks, Step};
use crate::stages::train::recipe::{self, AugmentParams, Recipe};
use crate::stages::train::state::{Reader, Writer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Trains a mask for every neuron on mixtures of clean images.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Weight of the masks' distance from 1, divided by the number of clean images of a class.
    pub eta: NonNegative,
    /// The least that a mask of the first layer may become; that of layer l is smaller by exp(-l / 2).
    pub floor: Fraction,
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
    /// Random changes to the images before they are mixed.
    pub augment: AugmentParams,
}

impl Default for Params {
    fn default() -> Params {
        Params {
            eta: const { valid(NonNegative::new(0.001)) },
            floor: const { valid(Fraction::new(0.8)) },
            epochs: const { valid(Count::new(250)) },
            batch_size: const { valid(Count::new(128)) },
            learning_rate: const { valid(Positive::new(0.05)) },
            momentum: const { valid(Fraction::new(0.95)) },
            schedule: schedule::Params::default(),
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
            schedule: self.schedule.clone(),
            augment: (&self.augment).into(),
            ..fine_tuning()
        }
    }
}

/// The stage.
pub struct Nft;

impl Stage for Nft {
    const NAME: &'static str = "purify/nft";
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
        let masks = Weights::new(repair.network.graph(), repair.network.params(), Reach::Neuron);
        let floors = floors(&masks, params.floor.get());
        let per_class = repair.rows.len() as f64 / repair.network.config().n_classes as f64;
        let mut hooks = Mixing {
            trained: Trained::new(masks, &mut repair.network),
            floors,
            weight: (params.eta.get() / per_class) as f32,
            draws: cx.rng("mixtures"),
            share: 1.0,
            partners: Vec::new(),
        };
        let recipe = params.recipe();
        let history = repair.fit(&recipe, &mut hooks)?;
        let history = repair.table(&history);
        let masks = hooks.trained.coordinates.values();
        let mean = masks.iter().map(|&m| f64::from(m)).sum::<f64>() / masks.len() as f64;
        cx.headline(format!("{} masks, mean {mean:.3}", masks.len()));
        let summary = format!("{} masks, mean {mean:.3}, {}", masks.len(), recipe.summary());
        Ok(Outputs { model: repair.end(Nft::NAME, &summary, Vec::new()), history })
    }
}

/// The least that every mask may become.
fn floors(masks: &Weights, first: f64) -> Vec<f32> {
    let layers = masks.layers().enumerate();
    layers.flat_map(|(l, own)| std::iter::repeat_n((first * libm::exp(-0.5 * l as f64)) as f32, own.len())).collect()
}

struct Mixing {
    trained: Trained<Weights>,
    floors: Vec<f32>,
    weight: f32,
    draws: Stream,
    /// Of every image itself in the mixture of the present step.
    share: f32,
    /// Labels of the images that it is mixed with.
    partners: Vec<i64>,
}

impl Hooks for Mixing {
    fn prepare(&mut self, number: usize, images: &mut [f32], labels: &[i64]) {
        let mut draw = self.draws.at(number as u64);
        self.share = draw.uniform() as f32;
        let partners = draw.permutation(labels.len());
        mix(images, self.share, &partners);
        self.partners.clear();
        self.partners.extend(partners.iter().map(|&partner| labels[partner]));
    }

    fn backward(&mut self, network: &mut Network, step: &Step) -> Result<()> {
        let n_classes = network.config().n_classes;
        let mut on_logits = vec![0.0; step.grad_logits.len()];
        let (_, logits) = network.feature_map("logits")?;
        loss::cross_entropy(logits, &self.partners, n_classes, 0.0, &mut on_logits)?;
        for (g, own) in on_logits.iter_mut().zip(step.grad_logits) {
            *g = self.share * own + (1.0 - self.share) * *g;
        }
        network.backward(&on_logits)?;
        self.trained.pull(network);
        // Masks never exceed 1, so their distance from it falls as they grow.
        for (g, &mask) in self.trained.gradient.iter_mut().zip(self.trained.coordinates.values()) {
            *g -= if mask < 1.0 { self.weight } else { 0.0 };
        }
        Ok(())
    }

    fn n_trained(&self, _: &Network) -> usize {
        self.trained.coordinates.values().len()
    }

    fn update(&mut self, network: &mut Network, optimiser: &mut Optimiser, rate: f64) {
        let floors = &self.floors;
        self.trained.update(network, optimiser, rate, |masks| {
            masks.iter_mut().zip(floors).for_each(|(mask, &floor)| *mask = mask.clamp(floor, 1.0));
        });
    }

    fn save(&self, out: &mut Writer) {
        self.trained.save(out);
    }

    fn restore(&mut self, from: &mut Reader) -> Option<()> {
        self.trained.restore(from)
    }
}

/// `x <- share x + (1 - share) x[partner]` for every image.
fn mix(images: &mut [f32], share: f32, partners: &[usize]) {
    let before = images.to_vec();
    let length = images.len() / partners.len();
    for (image, partner) in images.chunks_exact_mut(length).zip(partners) {
        let other = &before[partner * length..(partner + 1) * length];
        image.iter_mut().zip(other).for_each(|(value, other)| *value = share * *value + (1.0 - share) * other);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Architecture, Config};

    #[test]
    fn images_are_mixed_with_their_partners() {
        let mut images = [1.0, 2.0, 10.0, 20.0, 100.0, 200.0];
        mix(&mut images, 0.75, &[2, 0, 1]);
        assert_eq!(images, [25.75, 51.5, 7.75, 15.5, 77.5, 155.0]);
    }

    #[test]
    fn floors_fall_with_depth() {
        let config =
            Config { architecture: Architecture::Resnet8, n_classes: 4, size: (8, 8), sigma_xt: 0.0, sigma_ty: 0.0 };
        let network = Network::new(&config).unwrap();
        let floors = floors(&Weights::new(network.graph(), network.params(), Reach::Neuron), 0.8);
        assert_eq!(floors.len(), 16 * 3 + 32 * 3 + 64 * 3 + 4);
        assert_eq!((floors[0], floors[16]), (0.8, (0.8 * libm::exp(-0.5)) as f32));
        assert_eq!(floors[floors.len() - 1], (0.8 * libm::exp(-4.5)) as f32);
    }
}
