//! How to train: what every stage that fits a network by gradient descent needs to know.

use crate::kernels::Precision;
use crate::nn::augment::Augment;
use crate::nn::{Architecture, optim, schedule};
use crate::stage::{Problem, Resources};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Random changes to training images, drawn anew every epoch. A trigger moves with its image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AugmentParams {
    /// Black pixels added on every side before a window of the original size is cut out; 0 for no crop.
    #[schemars(range(max = 64))]
    pub crop: usize,
    /// Whether half of the images are mirrored.
    pub flip: bool,
    /// Rows and columns of a square that becomes 0 after normalisation (the channels' mean; black without `normalise`)
    /// in every image, its centre anywhere and clipped at the borders; 0 for none. DeVries & Taylor 2017 take 16 for
    /// CIFAR-10. It can cover a trigger.
    #[schemars(range(max = 1024))]
    pub cutout: usize,
}

impl Default for AugmentParams {
    /// BackdoorBench's for CIFAR-10 (`utils/aggregate_block/dataset_and_transform_generate.py`).
    fn default() -> AugmentParams {
        AugmentParams { crop: 4, flip: true, cutout: 0 }
    }
}

impl From<&AugmentParams> for Augment {
    fn from(params: &AugmentParams) -> Augment {
        Augment { crop: params.crop, flip: params.flip, cutout: params.cutout }
    }
}

/// How to train.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Passes over the training data.
    pub epochs: usize,
    /// Images a step; the last step of an epoch takes what is left.
    pub batch_size: usize,
    /// The optimiser.
    pub optimiser: optim::Config,
    /// The learning rate that the schedule starts from, or climbs to.
    pub learning_rate: f64,
    /// How the learning rate moves.
    pub schedule: schedule::Params,
    /// Random changes to the images.
    pub augment: Augment,
    /// Share of the target that is spread over all classes.
    pub label_smoothing: f64,
    /// In what precision the network computes.
    pub precision: Precision,
}

impl Recipe {
    /// What is wrong with this recipe, whatever the data.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = schedule_problems(&self.schedule, self.epochs, self.learning_rate);
        let mut problem = |parameter, message: String, hint: &str| {
            problems.push(Problem { parameter, message, hint: Some(hint.into()) });
        };
        let optim::Config { kind, momentum, nesterov, .. } = self.optimiser;
        if momentum >= 1.0 {
            let message = format!("a momentum of {momentum} never forgets");
            problem("momentum", message, "choose it below 1; 0.9 is usual");
        }
        if nesterov && (kind != optim::Kind::Sgd || momentum == 0.0) {
            let message = "`nesterov` needs `optimiser = \"sgd\"` with a momentum".into();
            problem("nesterov", message, "set `momentum = 0.9`, or leave `nesterov` out");
        }
        if self.label_smoothing >= 1.0 {
            problem("label_smoothing", "nothing of the label would be left".into(), "0.1 is usual");
        }
        problems
    }

    /// One line for the history of a model.
    pub fn summary(&self) -> String {
        format!(
            "{} epochs of batches of {}, {}, learning rate {} ({}), {}",
            self.epochs,
            self.batch_size,
            self.optimiser.kind.name(),
            self.learning_rate,
            self.schedule.kind.name(),
            self.precision.name()
        )
    }
}

/// What a stage that trains `architecture` needs of the machine.
pub fn resources(architecture: Option<Architecture>, batch_size: usize) -> Resources {
    // Values per 32x32 image that live at once, a quarter above what resident memory showed at batch 128 (ResNet-18
    // 1.0 GB, VGG-16 0.7 GB, ResNet-20 0.3 GB in all), and parameters with gradients, moments, a checkpoint and the
    // best epoch. An unknown architecture counts as the largest.
    let (values, parameters) = match architecture {
        Some(Architecture::Resnet8) => (300_000, 80_000),
        Some(Architecture::Resnet20) => (700_000, 280_000),
        Some(Architecture::Vgg16Bn) => (900_000, 15_000_000),
        Some(Architecture::Resnet18 | Architecture::PreactResnet18) | None => (1_800_000, 12_000_000),
    };
    let bytes = 4 * (values * batch_size.max(crate::nn::predict::BATCH) + 6 * parameters) as u64;
    Resources { parallel: true, gpu: true, memory_mib: 128 + (bytes >> 20) }
}

/// What is wrong with a schedule for a training of `epochs` epochs at `rate`.
fn schedule_problems(p: &schedule::Params, epochs: usize, rate: f64) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut problem = |parameter, message: String, hint: &str| {
        problems.push(Problem { parameter, message, hint: Some(hint.into()) });
    };
    if p.kind == schedule::Kind::MultiStep {
        if p.milestones.is_empty() {
            problem(
                "schedule.milestones",
                "`multi-step` needs milestones".into(),
                "write, say, `milestones = [50, 75]`",
            );
        }
        if !p.milestones.windows(2).all(|pair| pair[0] < pair[1]) {
            problem("schedule.milestones", "milestones must ascend".into(), "sort them, each once");
        }
        if let Some(&late) = p.milestones.iter().find(|&&m| m == 0 || m >= epochs) {
            let message = format!("milestone {late} does not lie within {epochs} epochs");
            problem("schedule.milestones", message, "milestones lie between 1 and one below `epochs`");
        }
    } else if !p.milestones.is_empty() {
        let message = format!("`{}` has no milestones", p.kind.name());
        problem("schedule.milestones", message, "set `kind = \"multi-step\"`, or leave them out");
    }
    if p.kind == schedule::Kind::OneCycle && p.warmup > 0 {
        problem("schedule.warmup", "`one-cycle` climbs by itself".into(), "set `rise` instead of `warmup`");
    }
    if p.warmup > epochs {
        let message = format!("{} epochs of warm-up in a training of {epochs}", p.warmup);
        problem("schedule.warmup", message, "choose fewer");
    }
    if matches!(p.kind, schedule::Kind::Cosine | schedule::Kind::Plateau) && p.minimum.get() > rate {
        let message = format!("the minimum {} lies above the learning rate {rate}", p.minimum.get());
        problem("schedule.minimum", message, "choose it below `learning_rate`");
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, parameter: &str) {
        let params = serde_json::from_str(text).unwrap();
        let problems = schedule_problems(&params, 10, 0.1);
        assert_eq!(problems.iter().map(|p| p.parameter).collect::<Vec<_>>(), [parameter], "{text}");
    }

    #[test]
    fn impossible_schedules_are_refused() {
        check(r#"{"kind": "multi-step"}"#, "schedule.milestones");
        check(r#"{"kind": "multi-step", "milestones": [3, 10]}"#, "schedule.milestones");
        check(r#"{"kind": "multi-step", "milestones": [5, 3]}"#, "schedule.milestones");
        check(r#"{"kind": "cosine", "milestones": [5]}"#, "schedule.milestones");
        check(r#"{"kind": "one-cycle", "warmup": 1}"#, "schedule.warmup");
        check(r#"{"kind": "constant", "warmup": 11}"#, "schedule.warmup");
        check(r#"{"kind": "cosine", "minimum": 0.2}"#, "schedule.minimum");
        assert!(schedule_problems(&schedule::Params::default(), 10, 0.1).is_empty());
    }

    #[test]
    fn impossible_optimisers_are_refused() {
        let recipe = |momentum, nesterov, kind| Recipe {
            epochs: 1,
            batch_size: 1,
            optimiser: optim::Config { kind, momentum, nesterov, weight_decay: 0.0 },
            learning_rate: 0.1,
            schedule: schedule::Params::default(),
            augment: Augment::NONE,
            label_smoothing: 0.0,
            precision: Precision::F32,
        };
        let names = |recipe: Recipe| recipe.problems().iter().map(|p| p.parameter).collect::<Vec<_>>();
        assert_eq!(names(recipe(1.0, false, optim::Kind::Sgd)), ["momentum"]);
        assert_eq!(names(recipe(0.0, true, optim::Kind::Sgd)), ["nesterov"]);
        assert_eq!(names(recipe(0.9, true, optim::Kind::Adamw)), ["nesterov"]);
        assert!(names(recipe(0.9, true, optim::Kind::Sgd)).is_empty());
    }
}
