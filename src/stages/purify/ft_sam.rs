//! FT-SAM: fine-tuning with sharpness-aware minimisation.
//!
//! Zhu et al., "Enhancing Fine-tuning Based Backdoor Defense with Sharpness-aware Minimization" (ICCV 2023,
//! arXiv:2304.11823). Every step goes by the gradient at the worst point nearby, `rho w^2 g / | |w| g |` away
//! ([`Neighbourhood::Proportional`]). Defaults are BackdoorBench's for CIFAR-10 (`defense/ft-sam.py`): rho 2 (8 for GTSRB
//! and Tiny ImageNet), label smoothing 0.1, batches of 256, 100 epochs.
//!
//! Differs from the code: the rate moves with epochs, not with steps, along one cosine.

use super::repair::{Inputs, Outputs, Repair, fine_tuning};
use crate::error::Result;
use crate::nn::sam::{Neighbourhood, Sam};
use crate::nn::{Network, optim, schedule};
use crate::param::{Count, Fraction, NonNegative, Positive, valid};
use crate::stage::{Context, Problem, Resources, Stage};
use crate::stages::train::fit::{Hooks, Step};
use crate::stages::train::recipe::{self, AugmentParams, Recipe};
use crate::stages::train::sharpness::sharp_backward;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Fine-tunes all weights with adaptive sharpness-aware minimisation.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Radius of the neighbourhood, relative to the weights.
    pub rho: Positive,
    /// Passes over the clean split.
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
    /// Share of the target that is spread over all classes.
    pub label_smoothing: Fraction,
}

impl Default for Params {
    fn default() -> Params {
        Params {
            rho: const { valid(Positive::new(2.0)) },
            epochs: const { valid(Count::new(100)) },
            batch_size: const { valid(Count::new(256)) },
            learning_rate: const { valid(Positive::new(0.01)) },
            momentum: const { valid(Fraction::new(0.9)) },
            weight_decay: const { valid(NonNegative::new(5e-4)) },
            schedule: schedule::Params::default(),
            augment: AugmentParams::default(),
            label_smoothing: const { valid(Fraction::new(0.1)) },
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
            label_smoothing: self.label_smoothing.get(),
            ..fine_tuning()
        }
    }
}

/// The stage.
pub struct FtSam;

impl Stage for FtSam {
    const NAME: &'static str = "purify/ft_sam";
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
        // The second pass of a step keeps the running statistics, which a GPU cannot.
        Resources { gpu: false, ..recipe::resources(None, params.batch_size.get()) }
    }

    fn run(cx: &Context, params: Params, Inputs { model, clean }: Inputs) -> Result<Outputs> {
        let mut repair = Repair::begin(cx, model, &clean, Fraction::ZERO)?;
        let recipe = params.recipe();
        let sam = Sam::new(Neighbourhood::Proportional, params.rho.get())?;
        let history = repair.fit(&recipe, &mut Sharpness { sam, smoothing: recipe.label_smoothing })?;
        let history = repair.table(&history);
        let summary = format!("rho {}, {}", params.rho.get(), recipe.summary());
        cx.headline(format!("{} images, rho {}", repair.rows.len(), params.rho.get()));
        Ok(Outputs { model: repair.end(FtSam::NAME, &summary, Vec::new()), history })
    }
}

struct Sharpness {
    sam: Sam,
    smoothing: f64,
}

impl Hooks for Sharpness {
    fn backward(&mut self, network: &mut Network, step: &Step) -> Result<()> {
        sharp_backward(&mut self.sam, self.smoothing, network, step)
    }
}
