//! NAD: a fine-tuned teacher shows the backdoored student where to look.
//!
//! Li et al., "Neural Attention Distillation" (ICLR 2021, arXiv:2101.05930). The teacher is the backdoored model after
//! fine-tuning; the student starts as the backdoored model and minimises cross-entropy plus, for its last three stages,
//! `beta_l` times the mean squared difference of both attention maps ([`attention`]). Defaults are BackdoorBench's
//! (`config/defense/nad`), the stages those of the paper.
//!
//! Differs from BackdoorBench: it reads the last two stages and a pooled one, whose map is constant.

use super::repair::{Inputs, Outputs, Repair, fine_tuning};
use crate::error::Result;
use crate::nn::{LayerGradient, Mode, Network, Work, attention, optim, schedule};
use crate::param::{Count, Fraction, NonNegative, Positive, valid};
use crate::stage::{Context, Problem, Resources, Stage};
use crate::stages::train::fit::{Hooks, NoHooks, Step};
use crate::stages::train::recipe::{self, AugmentParams, Recipe};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Fine-tunes with attention distilled from a fine-tuned teacher.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Weights of the attention distances in the last three stages, the deepest last.
    pub betas: [NonNegative; 3],
    /// Passes over the clean split for the teacher.
    pub teacher_epochs: Count,
    /// Passes over the clean split for the student.
    pub epochs: Count,
    /// Images a step; the last step of an epoch takes what is left.
    pub batch_size: Count,
    /// The learning rate that the schedule starts from, or climbs to.
    pub learning_rate: Positive,
    /// Momentum of SGD.
    pub momentum: Fraction,
    /// Weight decay on every parameter.
    pub weight_decay: NonNegative,
    /// How the learning rate moves.
    pub schedule: schedule::Params,
    /// Random changes to the images.
    pub augment: AugmentParams,
}

impl Default for Params {
    fn default() -> Params {
        Params {
            betas: const {
                [valid(NonNegative::new(500.0)), valid(NonNegative::new(1000.0)), valid(NonNegative::new(1000.0))]
            },
            teacher_epochs: const { valid(Count::new(10)) },
            epochs: const { valid(Count::new(100)) },
            batch_size: const { valid(Count::new(256)) },
            learning_rate: const { valid(Positive::new(0.01)) },
            momentum: const { valid(Fraction::new(0.9)) },
            weight_decay: const { valid(NonNegative::new(5e-4)) },
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
                weight_decay: self.weight_decay.get(),
            },
            learning_rate: self.learning_rate.get(),
            schedule: self.schedule.clone(),
            augment: (&self.augment).into(),
            ..fine_tuning()
        }
    }
}

/// The stage.
pub struct Nad;

impl Stage for Nad {
    const NAME: &'static str = "purify/nad";
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
        let one = recipe::resources(None, params.batch_size.get());
        Resources { memory_mib: 2 * one.memory_mib, ..one }
    }

    fn run(cx: &Context, params: Params, Inputs { model, clean }: Inputs) -> Result<Outputs> {
        let mut tutor = Repair::begin(cx, model.clone(), &clean, Fraction::ZERO)?;
        let teaching = Recipe { epochs: params.teacher_epochs.get(), ..params.recipe() };
        tutor.fit_part("teacher", &Recipe { schedule: schedule::Params::default(), ..teaching }, &mut NoHooks)?;
        let mut repair = Repair::begin(cx, model, &clean, Fraction::ZERO)?;
        repair.network.set_work(tutor.network.work());
        let layers: Vec<String> = last_stages(&repair.network).into_iter().collect();
        let betas = params.betas.map(NonNegative::get);
        let mut hooks = Distil { teacher: tutor.network, layers: layers.into_iter().zip(betas).collect() };
        let recipe = params.recipe();
        let history = repair.fit(&recipe, &mut hooks)?;
        if let Some(last) = history.rows.last() {
            cx.headline(format!("{} images, train {:.1} %", repair.rows.len(), last.accuracy));
        }
        let history = repair.table(&history);
        let summary = format!("betas {betas:?}, {}", recipe.summary());
        Ok(Outputs { model: repair.end(Nad::NAME, &summary, Vec::new()), history })
    }
}

/// The last three stages: layers that are no blocks, neither stem, pool nor logits.
fn last_stages(network: &Network) -> [String; 3] {
    let mut stages =
        network.layer_names().into_iter().rev().filter(|name| name.starts_with("layer") && !name.contains('.'));
    let mut next = || stages.next().unwrap_or_default();
    let (third, second, first) = (next(), next(), next());
    [first, second, third]
}

struct Distil {
    teacher: Network,
    layers: Vec<(String, f64)>,
}

impl Hooks for Distil {
    fn backward(&mut self, network: &mut Network, step: &Step) -> Result<()> {
        let n = step.labels.len();
        self.teacher.forward(step.images, n, Mode::Eval)?;
        let Work { forward, backward } = network.work();
        network.set_work(Work { forward: forward + n as u64, backward });
        let mut gradients = Vec::with_capacity(self.layers.len());
        for (layer, beta) in &self.layers {
            let (shape, features) = self.teacher.feature_map(layer)?;
            let wanted = attention::maps(features, n, shape.channels);
            let (shape, features) = network.feature_map(layer)?;
            let mut gradient = vec![0.0; features.len()];
            attention::distance(features, (n, shape.channels), &wanted, *beta, &mut gradient);
            gradients.push(gradient);
        }
        let entries: Vec<(&str, LayerGradient)> = self
            .layers
            .iter()
            .zip(&gradients)
            .map(|((layer, _), gradient)| (layer.as_str(), LayerGradient::Map(gradient)))
            .collect();
        network.backward_from(&entries, Some(step.grad_logits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Architecture, Config};

    #[test]
    fn every_architecture_has_three_stages() {
        for architecture in Architecture::ALL {
            let config = Config { architecture, n_classes: 2, size: (32, 32), sigma_xt: 0.0, sigma_ty: 0.0 };
            let stages = last_stages(&Network::new(&config).unwrap());
            assert!(stages.is_sorted() && stages.iter().all(|name| name.starts_with("layer")), "{stages:?}");
        }
    }
}
