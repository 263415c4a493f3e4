//! Fine-tuning on a clean split: the defence that every other one is compared with.
//!
//! All weights go on training on clean images. Defaults are BackdoorBench's (`defense/ft.py`,
//! `config/defense/ft/cifar10.yaml`): 100 epochs of batches of 256, SGD at 0.01 with momentum 0.9 and weight decay
//! 5e-4, cosine, the augmentation of training. Differs from BackdoorBench: full precision, and the last partial batch
//! is trained on.

pub use super::repair::{Inputs, Outputs};

use super::repair::Repair;
use crate::error::Result;
use crate::kernels::Precision;
use crate::nn::{optim, schedule};
use crate::param::{Count, Fraction, NonNegative, Positive, valid};
use crate::stage::{Context, Problem, Resources, Stage};
use crate::stages::train::fit::NoHooks;
use crate::stages::train::recipe::{self, AugmentParams, Recipe};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Goes on training all weights on a clean split.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Passes over the clean split.
    pub epochs: Count,
    /// Images a step; the last step of an epoch takes what is left.
    pub batch_size: Count,
    /// The optimiser.
    pub optimiser: optim::Kind,
    /// The learning rate that the schedule starts from, or climbs to.
    pub learning_rate: Positive,
    /// Momentum of SGD.
    pub momentum: Fraction,
    /// Whether SGD looks ahead.
    pub nesterov: bool,
    /// Weight decay on every parameter.
    pub weight_decay: NonNegative,
    /// How the learning rate moves. `plateau` watches the loss on the clean split.
    pub schedule: schedule::Params,
    /// Random changes to the images.
    pub augment: AugmentParams,
    /// Share of the target that is spread over all classes.
    pub label_smoothing: Fraction,
    /// In what precision the network computes; other than `f32` on a GPU only.
    pub precision: Precision,
}

impl Default for Params {
    fn default() -> Params {
        Params {
            epochs: const { valid(Count::new(100)) },
            batch_size: const { valid(Count::new(256)) },
            optimiser: optim::Kind::Sgd,
            learning_rate: const { valid(Positive::new(0.01)) },
            momentum: const { valid(Fraction::new(0.9)) },
            nesterov: false,
            weight_decay: const { valid(NonNegative::new(5e-4)) },
            schedule: schedule::Params::default(),
            augment: AugmentParams::default(),
            label_smoothing: Fraction::ZERO,
            precision: Precision::F32,
        }
    }
}

impl Params {
    fn recipe(&self) -> Recipe {
        Recipe {
            epochs: self.epochs.get(),
            batch_size: self.batch_size.get(),
            optimiser: optim::Config {
                kind: self.optimiser,
                momentum: self.momentum.get(),
                nesterov: self.nesterov,
                weight_decay: self.weight_decay.get(),
            },
            learning_rate: self.learning_rate.get(),
            schedule: self.schedule.clone(),
            augment: (&self.augment).into(),
            label_smoothing: self.label_smoothing.get(),
            precision: self.precision,
        }
    }
}

/// The stage.
pub struct FineTune;

impl Stage for FineTune {
    const NAME: &'static str = "purify/fine_tune";
    const VERSION: u32 = 3;
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
        let recipe = params.recipe();
        let history = repair.fit(&recipe, &mut NoHooks)?;
        if let Some(last) = history.rows.last() {
            cx.headline(format!("{} images, train {:.1} %", repair.rows.len(), last.accuracy));
        }
        let history = repair.table(&history);
        Ok(Outputs { model: repair.end(FineTune::NAME, &recipe.summary(), Vec::new()), history })
    }
}
