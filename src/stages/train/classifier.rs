//! Trains a classifier on packed images, watching it on the way.
//!
//! Defaults are BackdoorBench's protocol for CIFAR-10 (`config/attack/prototype/cifar10.yaml`: 100 epochs, batch 128,
//! SGD at 0.01 with momentum 0.9 and weight decay 5e-4, cosine; crop, flip and normalisation from
//! `utils/aggregate_block/dataset_and_transform_generate.py`; the last epoch is kept). It drops the last partial batch,
//! this stage trains on it. Backdoor analysis by the information bottleneck trains with in-network noise, at rate 0.1
//! with batches of 256 and a plateau schedule, on images in [0, 1] without augmentation; `noise`, `normalise`,
//! `augment` and `schedule` say so. There the schedule and the best epoch follow the test set, and its accuracy is that
//! of the best epoch; here nothing follows the test set unless `legacy = true` asks for it.
//!
//! The training may be the attacker's: one who knows the defences trains a smooth model ([`Adaptive`]), and WaNet and
//! BppAttack put their trigger on other images in every batch ([`Dynamic`]).

mod adaptive;
mod attacker;
mod observe;
mod watch;

pub use adaptive::Adaptive;
pub use observe::Observe;

use super::fit::Fit;
use super::recipe::{self, AugmentParams, Recipe};
use super::sharpness::FisherTerm;
use crate::artifact::model::ModelInfo;
use crate::artifact::{Model, Packed, Table, Trace, Trigger};
use crate::error::{Error, Result};
use crate::kernels::Precision;
use crate::nn::augment::Normalise;
use crate::nn::{Architecture, Config, Network, optim, schedule};
use crate::param::{Count, Fraction, NonNegative, Positive};
use crate::stage::{Context, Problem, Resources, Stage};
use crate::stages::poison::dynamic::Dynamic;
use adaptive::Smooth;
use attacker::Attacker;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use watch::{Judges, Watch};

/// Trains a classifier; with `observe`, writes the trace that information estimates are made from.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The architecture.
    pub model: Architecture,
    /// Passes over the training data.
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
    /// Weight decay on every parameter: added to the gradient by SGD, taken from the weight by AdamW.
    pub weight_decay: NonNegative,
    /// How the learning rate moves.
    pub schedule: schedule::Params,
    /// Random changes to training images.
    pub augment: AugmentParams,
    /// Whether inputs are centred and scaled by the dataset's channel statistics; otherwise they lie in [0, 1].
    pub normalise: bool,
    /// Share of the target that is spread over all classes.
    pub label_smoothing: Fraction,
    /// In what precision the network computes; other than `f32` on a GPU only.
    pub precision: Precision,
    /// Share of the training images that is set aside to choose by, never trained on.
    pub validation: Fraction,
    /// Ends the training when the validation accuracy no longer improves; needs `validation`.
    pub early_stopping: Option<EarlyStopping>,
    /// Which epoch's weights are kept.
    pub select: Select,
    /// Test accuracy and attack success are measured every so many epochs, and at the end; 0 for the end only. For
    /// the curves alone: nothing is chosen by them.
    pub evaluate_every: usize,
    /// Noise inside the network.
    pub noise: Noise,
    /// The choices of the published information-bottleneck code: the plateau schedule follows the loss on the clean test
    /// images, and the epoch with the best test accuracy is kept, which is then no estimate any more.
    pub legacy: bool,
    /// What to record of inner representations.
    pub observe: Option<Observe>,
    /// An attacker who knows the defences and trains a smooth model; an honest training if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adaptive: Option<Adaptive>,
}

/// When to stop before the last epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EarlyStopping {
    /// Epochs without a better validation accuracy that are waited for.
    pub patience: Count,
}

/// Which epoch's weights are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Select {
    /// Those of the last epoch.
    #[default]
    Last,
    /// Those of the epoch with the best validation accuracy (the lower loss, then the earlier epoch, among equals);
    /// needs `validation`.
    BestValidation,
}

/// Gaussian noise inside the network, active while training and while observing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Noise {
    /// Standard deviation of the noise after the stem and after every block; the information-bottleneck code has 0.4.
    pub sigma_xt: NonNegative,
    /// Standard deviation of the noise before the classifying layer; the information-bottleneck code has 0.4.
    pub sigma_ty: NonNegative,
    /// Whether it is active when validation accuracy is measured; test accuracy and attack success are then measured
    /// both without it and, in columns of their own, under one draw of it.
    pub at_evaluation: bool,
}

impl Default for Noise {
    fn default() -> Noise {
        Noise { sigma_xt: defaults::NO_NOISE, sigma_ty: defaults::NO_NOISE, at_evaluation: false }
    }
}

/// A default outside its range does not compile.
mod defaults {
    use crate::param::{Count, Fraction, NonNegative, Positive};

    const fn checked<T: Copy>(value: Option<T>) -> T {
        match value {
            Some(value) => value,
            None => panic!("a default lies outside its range"),
        }
    }

    pub const EPOCHS: Count = checked(Count::new(100));
    pub const BATCH_SIZE: Count = checked(Count::new(128));
    pub const LEARNING_RATE: Positive = checked(Positive::new(0.01));
    pub const MOMENTUM: Fraction = checked(Fraction::new(0.9));
    pub const WEIGHT_DECAY: NonNegative = checked(NonNegative::new(5e-4));
    pub const NO_NOISE: NonNegative = checked(NonNegative::new(0.0));
    pub const NO_SHARE: Fraction = checked(Fraction::new(0.0));
}

impl Default for Params {
    fn default() -> Params {
        Params {
            model: Architecture::Resnet18,
            epochs: defaults::EPOCHS,
            batch_size: defaults::BATCH_SIZE,
            optimiser: optim::Kind::Sgd,
            learning_rate: defaults::LEARNING_RATE,
            momentum: defaults::MOMENTUM,
            nesterov: false,
            weight_decay: defaults::WEIGHT_DECAY,
            schedule: schedule::Params::default(),
            augment: AugmentParams::default(),
            normalise: true,
            label_smoothing: defaults::NO_SHARE,
            precision: Precision::F32,
            validation: defaults::NO_SHARE,
            early_stopping: None,
            select: Select::Last,
            evaluate_every: 1,
            noise: Noise::default(),
            legacy: false,
            observe: None,
            adaptive: None,
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

crate::ports! {
    /// What it trains on.
    pub struct Inputs {
        /// Packed images; the test images are for monitoring only.
        dataset: Packed,
        /// The trigger of the attack that made `dataset`, where the attacker controls the training and puts it on other
        /// images in every batch. What is validated, observed and regularised are still the images of `dataset`.
        trigger: Option<Trigger>,
    }
}

crate::ports! {
    /// What it makes.
    pub struct Outputs => {
        /// The classifier.
        model: Model,
        /// Representations of a fixed sample of the training images, at the observed epochs.
        trace: Trace,
        /// One row an epoch.
        history: Table,
    }
}

/// The stage.
pub struct Classifier;

impl Stage for Classifier {
    const NAME: &'static str = "train/classifier";
    const VERSION: u32 = 3;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn draws(_: &Params) -> bool {
        true
    }

    fn check(params: &Params) -> Vec<Problem> {
        let mut problems = params.recipe().problems();
        let mut problem = |parameter, message: String, hint: &str| {
            problems.push(Problem { parameter, message, hint: Some(hint.into()) });
        };
        let validation = params.validation.get();
        if validation >= 1.0 {
            problem("validation", "no image would be left to train on".into(), "0.1 is usual");
        }
        if validation == 0.0 && params.early_stopping.is_some() {
            let message = "early stopping needs a validation split".into();
            problem("early_stopping", message, "set `validation = 0.1`");
        }
        if validation == 0.0 && params.select == Select::BestValidation {
            let message = "`best-validation` needs a validation split".into();
            problem("select", message, "set `validation = 0.1`");
        }
        if params.legacy && (validation > 0.0 || params.early_stopping.is_some() || params.select != Select::Last) {
            let message =
                "chooses by the test images, and `validation`, `early_stopping` or `select` say otherwise".into();
            problem("legacy", message, "leave out one of them");
        }
        if let Some(observe) = &params.observe {
            problems.extend(observe.problems(params.model, params.epochs.get()));
        }
        problems.extend(params.adaptive.as_ref().and_then(|adaptive| adaptive.problems(params.precision)));
        problems
    }

    fn absent(params: &Params) -> Vec<(&'static str, &'static str)> {
        match &params.observe {
            Some(_) => Vec::new(),
            None => vec![("trace", "set `observe.epochs`, say `observe = { epochs = [1, 10] }`")],
        }
    }

    fn resources(params: &Params) -> Resources {
        let fisher_batch = params.adaptive.as_ref().map_or(0, |adaptive| adaptive.fisher_batch.get());
        recipe::resources(Some(params.model), params.batch_size.get().max(fisher_batch))
    }

    fn run(cx: &Context, params: Params, Inputs { dataset, trigger }: Inputs) -> Result<Outputs> {
        let about = &dataset.about;
        let adaptive = params.adaptive.as_ref().filter(|adaptive| adaptive.is_on());
        adaptive.map_or(Ok(()), |adaptive| adaptive.check_place(&cx.place))?;
        let (rows, validation) = carve(cx, dataset.train.len(), params.validation.get());
        if rows.is_empty() {
            return Err(Error::stage("there is no image to train on").hint("lower `validation`, or take more images"));
        }
        let (mean, std) = if params.normalise { (about.mean, about.std) } else { ([0.0; 3], [1.0; 3]) };
        let normalise = Normalise::new(mean, std)?;
        let config = Config {
            architecture: params.model,
            n_classes: about.classes.len(),
            size: dataset.train.size,
            sigma_xt: params.noise.sigma_xt.get(),
            sigma_ty: params.noise.sigma_ty.get(),
        };
        let mut network = Network::new(&config)?;
        network.init(&cx.rng("init"));

        let recipe = params.recipe();
        let judges = match params.legacy {
            true => Judges { split: &dataset.test, rows: (0..dataset.test.len()).collect() },
            false => Judges { split: &dataset.train, rows: validation },
        };
        let mut watch = Watch::new(cx, &params, &dataset, &normalise, (&rows, judges), &network)?;
        let fit = Fit { cx, recipe: &recipe, split: &dataset.train, rows: &rows, normalise: &normalise };
        let mut smooth = match adaptive {
            Some(adaptive) => {
                let settings = (adaptive.reg_f, adaptive.every, adaptive.fisher_batch);
                let fisher = FisherTerm::new(settings, (&dataset.train, &rows, &normalise), cx.rng("fisher"));
                Some(Smooth::new(adaptive, fisher, recipe.label_smoothing, &network)?)
            }
            None => None,
        };
        let dynamic = match &trigger {
            Some(trigger) => Some(Dynamic::new(trigger, config.n_classes, cx.rng("trigger"))?),
            None => None,
        };
        dynamic.as_ref().map_or(Ok(()), |dynamic| dynamic.check(&dataset.train))?;
        let history = match (&mut smooth, &dynamic) {
            (None, None) => fit.run(&mut network, &mut watch)?,
            (smooth, dynamic) => {
                let (smooth, dynamic) = (smooth.as_mut(), dynamic.as_ref());
                fit.run(&mut network, &mut Attacker { watch: &mut watch, smooth, dynamic })?
            }
        };
        let (chosen, trace) = watch.finish(&mut network, &history)?;
        cx.headline(chosen.headline());

        let by = if params.legacy { " by the test images (legacy)" } else { "" };
        let mut table = history.table(&about.classes);
        if params.legacy {
            table.notes.push(LEGACY.into());
        }
        if let Some(smooth) = smooth.filter(|_| adaptive.is_some_and(|adaptive| adaptive.reg_f.get() > 0.0)) {
            smooth.fisher.traces.add_column(&mut table);
        }
        let smoothed: Vec<String> = adaptive.iter().flat_map(|adaptive| adaptive.summary()).collect();
        let mut notes = match smoothed.is_empty() {
            true => Vec::new(),
            false => vec![format!("adaptive attacker: {}", smoothed.join(", "))],
        };
        let dynamic: Vec<String> = dynamic.iter().map(Dynamic::summary).collect();
        notes.extend_from_slice(&dynamic);
        let summary = [vec![recipe.summary()], smoothed, dynamic].concat().join(", ");
        let info = ModelInfo {
            architecture: params.model.name().to_string(),
            n_classes: config.n_classes,
            size: config.size,
            mean,
            std,
            sigma_xt: config.sigma_xt,
            sigma_ty: config.sigma_ty,
            data: about.clone(),
            history: vec![format!("train/classifier: {summary}, epoch {} kept{by}", chosen.epoch)],
            chosen_by_test: params.legacy,
            notes,
            defence: None,
        };
        Ok(Outputs { model: Model { info, weights: network.weights() }, trace, history: table })
    }
}

/// What stands below the history of a legacy training.
const LEGACY: &str = "legacy: the validation images are the clean test images; the plateau schedule and the kept epoch \
                      follow them, so that their accuracy is the best of all epochs, not an estimate";

/// Rows to train on and rows to validate on, both ascending.
fn carve(cx: &Context, n: usize, share: f64) -> (Vec<usize>, Vec<usize>) {
    let n_validation = (share * n as f64).round() as usize;
    let mut order = cx.rng("validation").permutation(n);
    let mut rows = order.split_off(n_validation);
    order.sort_unstable();
    rows.sort_unstable();
    (rows, order)
}
