//! Anti-backdoor learning: train on poisoned images, find those that are learnt too easily, and unlearn them.
//!
//! Li, Lyu, Koren, Lyu, Li, Ma, "Anti-Backdoor Learning: Training Clean Models on Poisoned Data", NeurIPS 2021,
//! arXiv:2110.11571, sections 3.2 and 3.3. Backdoors are learnt in the first epochs. Three trainings of one network:
//!
//! 1. *Isolation*, with a loss that keeps clean images from being learnt as well: local gradient ascent,
//!    `sign(CE - gamma) CE` of every image (equation 4), or flooding, `|mean CE - gamma| + gamma` of a batch (Ishida et
//!    al. 2020). Then the `isolated` share of all training images with the smallest loss is set aside, measured without
//!    augmentation on running statistics.
//! 2. *Training* on the others.
//! 3. *Unlearning*: gradient ascent on the isolated ones.
//!
//! Defaults are BackdoorBench's (`defense/abl.py`, as it runs: the rates in its configuration are never read). Differs
//! from the paper's code: its local gradient ascent takes the sign of a batch's mean, which is flooding but for a
//! constant; here every image has its own sign, as in the equation. The defence sees images and assigned labels, no
//! clean split; roles are read only for the table that says how many isolated images are poisoned.

use super::fit::{Fit, Hooks, NoHooks, Step};
use super::history::History;
use super::recipe::{self, AugmentParams, Recipe};
use crate::artifact::model::{Defence, ModelInfo};
use crate::artifact::table::Column;
use crate::artifact::{Model, Packed, Split, Table};
use crate::error::{Error, Result};
use crate::kernels::Precision;
use crate::nn::augment::Normalise;
use crate::nn::{Architecture, Config, Network, loss, optim, predict, schedule};
use crate::param::{Count, Fraction, NonNegative, Positive, valid};
use crate::stage::{Context, Problem, Resources, Stage};
use crate::stages::evaluate::detection::{Scores, Verdict, blinded};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Trains a classifier on poisoned images without their backdoor (ABL): isolates images that are learnt too easily,
/// trains on the others, and unlearns the isolated ones.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The architecture.
    pub model: Architecture,
    /// Passes over all training images before some are isolated.
    pub isolation_epochs: Count,
    /// The loss meanwhile.
    pub isolation_loss: IsolationLoss,
    /// Where the loss is held, in nats.
    pub gamma: NonNegative,
    /// The learning rate meanwhile, constant.
    pub isolation_rate: Positive,
    /// Share of the training images with the smallest loss that is isolated; the number is rounded down.
    pub isolated: Fraction,
    /// Passes over the other images.
    pub epochs: Count,
    /// The learning rate that the schedule starts from, or climbs to.
    pub learning_rate: Positive,
    /// How it moves.
    pub schedule: schedule::Params,
    /// Passes over the isolated images while they are unlearnt.
    pub unlearning_epochs: Count,
    /// The learning rate meanwhile, constant.
    pub unlearning_rate: Positive,
    /// Images a step, in all three trainings; the last step of an epoch takes what is left.
    pub batch_size: Count,
    /// Momentum of SGD.
    pub momentum: Fraction,
    /// Whether SGD looks ahead.
    pub nesterov: bool,
    /// Weight decay on every parameter.
    pub weight_decay: NonNegative,
    /// Random changes to training images.
    pub augment: AugmentParams,
    /// Whether inputs are centred and scaled by the dataset's channel statistics; otherwise they lie in [0, 1].
    pub normalise: bool,
}

/// What keeps clean images from being learnt while poisoned ones are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum IsolationLoss {
    /// The mean loss of a batch is held at gamma: below it, the batch is ascended.
    #[default]
    Flooding,
    /// The loss of every image is held at gamma: below it, the image is ascended.
    LocalGradientAscent,
}

impl Default for Params {
    fn default() -> Params {
        Params {
            model: Architecture::Resnet18,
            isolation_epochs: const { valid(Count::new(20)) },
            isolation_loss: IsolationLoss::Flooding,
            gamma: const { valid(NonNegative::new(0.5)) },
            isolation_rate: const { valid(Positive::new(0.01)) },
            isolated: const { valid(Fraction::new(0.01)) },
            epochs: const { valid(Count::new(60)) },
            learning_rate: const { valid(Positive::new(0.01)) },
            schedule: schedule::Params {
                kind: schedule::Kind::MultiStep,
                milestones: vec![40],
                ..schedule::Params::default()
            },
            unlearning_epochs: const { valid(Count::new(20)) },
            unlearning_rate: const { valid(Positive::new(1e-4)) },
            batch_size: const { valid(Count::new(256)) },
            momentum: const { valid(Fraction::new(0.9)) },
            nesterov: true,
            weight_decay: const { valid(NonNegative::new(1e-4)) },
            augment: AugmentParams::default(),
            normalise: true,
        }
    }
}

impl Params {
    /// The training on the images that are not isolated.
    fn recipe(&self) -> Recipe {
        Recipe {
            epochs: self.epochs.get(),
            batch_size: self.batch_size.get(),
            optimiser: optim::Config {
                kind: optim::Kind::Sgd,
                momentum: self.momentum.get(),
                nesterov: self.nesterov,
                weight_decay: self.weight_decay.get(),
            },
            learning_rate: self.learning_rate.get(),
            schedule: self.schedule.clone(),
            augment: (&self.augment).into(),
            label_smoothing: 0.0,
            precision: Precision::F32,
        }
    }

    /// The same for so many epochs at a constant rate.
    fn constant(&self, epochs: Count, rate: Positive) -> Recipe {
        let schedule = schedule::Params { kind: schedule::Kind::Constant, ..schedule::Params::default() };
        Recipe { epochs: epochs.get(), learning_rate: rate.get(), schedule, ..self.recipe() }
    }
}

crate::ports! {
    /// What it trains on.
    pub struct Inputs {
        /// Packed images. Test images are not looked at; roles are read only to count what was isolated.
        dataset: Packed,
    }
}

crate::ports! {
    /// What it makes.
    pub struct Outputs => {
        /// The classifier.
        model: Model,
        /// One row an epoch of the three trainings, one behind the other.
        history: Table,
        /// How many of the isolated images are poisoned.
        isolation: Table,
    }
}

/// The stage.
pub struct Abl;

impl Stage for Abl {
    const NAME: &'static str = "train/abl";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn draws(_: &Params) -> bool {
        true
    }

    fn check(params: &Params) -> Vec<Problem> {
        let mut problems = params.recipe().problems();
        let message = match params.isolated.get() {
            0.0 => "nothing would be unlearnt",
            1.0 => "nothing would be left to train on",
            _ => return problems,
        };
        problems.push(Problem {
            parameter: "isolated",
            message: message.into(),
            hint: Some("the paper has 0.01".into()),
        });
        problems
    }

    fn resources(params: &Params) -> Resources {
        recipe::resources(Some(params.model), params.batch_size.get())
    }

    fn run(cx: &Context, params: Params, Inputs { dataset }: Inputs) -> Result<Outputs> {
        let about = &dataset.about;
        let seen = blinded(&dataset.train);
        let n_isolated = params.isolated.of(seen.len());
        if n_isolated == 0 || n_isolated == seen.len() {
            return Err(Error::user(format!(
                "`isolated = {}` of {} training images is {n_isolated} images",
                params.isolated.get(),
                seen.len()
            ))
            .hint("isolate at least one image, and leave at least one"));
        }
        let (mean, std) = if params.normalise { (about.mean, about.std) } else { ([0.0; 3], [1.0; 3]) };
        let normalise = Normalise::new(mean, std)?;
        let (n_classes, size) = (about.classes.len(), seen.size);
        let config = Config { architecture: params.model, n_classes, size, sigma_xt: 0.0, sigma_ty: 0.0 };
        let mut network = Network::new(&config)?;
        network.init(&cx.rng("init"));

        // The history may say what losses poisoned images had: nothing is decided by it.
        let split = &dataset.train;
        let all: Vec<usize> = (0..split.len()).collect();
        let part = |name: &str| cx.part(name);
        let isolating = part("isolation");
        let recipe = params.constant(params.isolation_epochs, params.isolation_rate);
        let mut hold = Hold { loss: params.isolation_loss, gamma: params.gamma.get() as f32, gradient: Vec::new() };
        let fit = Fit { cx: &isolating, recipe: &recipe, split, rows: &all, normalise: &normalise };
        let isolation = fit.run(&mut network, &mut hold)?;
        let losses = losses(cx, &mut network, &seen, &normalise)?;
        let (isolated, others) = isolate(&losses, n_isolated);

        let recipe = params.recipe();
        let fit = Fit { cx, recipe: &recipe, split, rows: &others, normalise: &normalise };
        let training = fit.run(&mut network, &mut NoHooks)?;

        let unlearning = part("unlearning");
        let recipe_of_unlearning = params.constant(params.unlearning_epochs, params.unlearning_rate);
        let fit = Fit { cx: &unlearning, recipe: &recipe_of_unlearning, split, rows: &isolated, normalise: &normalise };
        let unlearnt = fit.run(&mut network, &mut Ascend)?;

        let scores = Scores::count(&verdicts(&losses, &isolated), &split.role)?;
        cx.headline(format!("{n_isolated} images isolated: {}", scores.headline()));
        let summary = format!("{n_isolated} of {} images isolated and unlearnt", seen.len());
        let info = ModelInfo {
            architecture: params.model.name().to_string(),
            n_classes,
            size,
            mean,
            std,
            sigma_xt: 0.0,
            sigma_ty: 0.0,
            data: about.clone(),
            history: vec![format!("train/abl: {summary}, {}", recipe.summary())],
            chosen_by_test: false,
            notes: Vec::new(),
            defence: Some(Defence {
                name: "abl".into(),
                n_clean: 0,
                n_held_out: 0,
                work: network.work(),
                notes: vec![format!("{summary}; trained from scratch on the poisoned images, no clean ones")],
            }),
        };
        Ok(Outputs {
            model: Model { info, weights: network.weights() },
            history: history([("isolation", isolation), ("training", training), ("unlearning", unlearnt)], about),
            isolation: scores.table(Abl::NAME, "training", about),
        })
    }
}

/// The loss of isolation.
struct Hold {
    loss: IsolationLoss,
    gamma: f32,
    /// Room, [n, K].
    gradient: Vec<f32>,
}

impl Hooks for Hold {
    fn backward(&mut self, network: &mut Network, step: &Step) -> Result<()> {
        self.gradient.clear();
        self.gradient.extend_from_slice(step.grad_logits);
        hold(self.loss, self.gamma, step.losses, &mut self.gradient);
        network.backward(&self.gradient)
    }
}

/// Turns the gradient [n, K] of the mean of `losses` [n] into that of the loss that is held at `gamma`.
fn hold(loss: IsolationLoss, gamma: f32, losses: &[f32], gradient: &mut [f32]) {
    // The slope of |loss - gamma|.
    let sign = |loss: f64| f32::from(i8::from(loss > f64::from(gamma)) - i8::from(loss < f64::from(gamma)));
    let n_classes = gradient.len() / losses.len().max(1);
    let mean = losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / losses.len().max(1) as f64;
    for (row, &own) in gradient.chunks_exact_mut(n_classes.max(1)).zip(losses) {
        let sign = match loss {
            IsolationLoss::Flooding => sign(mean),
            IsolationLoss::LocalGradientAscent => sign(f64::from(own)),
        };
        row.iter_mut().for_each(|value| *value *= sign);
    }
}

/// The loss of unlearning: minus the cross-entropy.
struct Ascend;

impl Hooks for Ascend {
    fn backward(&mut self, network: &mut Network, step: &Step) -> Result<()> {
        let upwards: Vec<f32> = step.grad_logits.iter().map(|g| -g).collect();
        network.backward(&upwards)
    }
}

/// The loss of every image, without augmentation, on running statistics.
fn losses(cx: &Context, network: &mut Network, split: &Split, normalise: &Normalise) -> Result<Vec<f32>> {
    let n_classes = network.config().n_classes;
    let rows: Vec<usize> = (0..split.len()).collect();
    let mut losses = Vec::with_capacity(rows.len());
    predict::each_batch(network, split, &rows, normalise, |_, logits| {
        cx.check_stop()?;
        let done = losses.len();
        let labels = &split.label[done..done + logits.len() / n_classes];
        losses.extend(loss::losses(logits, labels, n_classes)?);
        Ok(())
    })?;
    Ok(losses)
}

/// The `n` rows with the smallest losses, the first of equals, and the others; both ascending.
fn isolate(losses: &[f32], n: usize) -> (Vec<usize>, Vec<usize>) {
    let mut order: Vec<usize> = (0..losses.len()).collect();
    order.sort_by(|&a, &b| losses[a].total_cmp(&losses[b]));
    let mut others = order.split_off(n.min(order.len()));
    order.sort_unstable();
    others.sort_unstable();
    (order, others)
}

fn verdicts(losses: &[f32], isolated: &[usize]) -> Vec<Verdict> {
    let verdict = |(row, &loss): (usize, &f32)| Verdict {
        score: -f64::from(loss),
        is_suspect: isolated.binary_search(&row).is_ok(),
    };
    losses.iter().enumerate().map(verdict).collect()
}

/// The three histories as one, epochs counted on.
fn history(parts: [(&str, History); 3], about: &crate::artifact::dataset::About) -> Table {
    let mut all = History::default();
    let mut phases = Vec::new();
    for (phase, part) in parts {
        for row in part.rows {
            phases.push(phase);
            all.rows.push(super::history::Row { epoch: phases.len(), ..row });
        }
    }
    let mut table = all.table(&about.classes);
    table
        .columns
        .push(Column::new("phase", "isolation: all images; training: the others; unlearning: the isolated ones"));
    table.rows.iter_mut().zip(phases).for_each(|(row, phase)| row.push(phase.into()));
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::Role;
    use crate::artifact::dataset::About;
    use crate::artifact::table::Cell;
    use crate::rng::Streams;

    /// Losses 0.2, 0.5, 1.1 around gamma 0.5; their mean is 0.6.
    #[test]
    fn signs_by_hand() {
        let check = |loss: IsolationLoss, gamma: f32, expected: [f32; 6]| {
            let mut gradient = [1.0, -1.0, 2.0, -2.0, 3.0, -3.0];
            hold(loss, gamma, &[0.2, 0.5, 1.1], &mut gradient);
            assert_eq!(gradient, expected, "{loss:?}, gamma {gamma}");
        };
        check(IsolationLoss::LocalGradientAscent, 0.5, [-1.0, 1.0, 0.0, 0.0, 3.0, -3.0]);
        check(IsolationLoss::Flooding, 0.5, [1.0, -1.0, 2.0, -2.0, 3.0, -3.0]);
        check(IsolationLoss::Flooding, 0.7, [-1.0, 1.0, -2.0, 2.0, -3.0, 3.0]);
        check(IsolationLoss::LocalGradientAscent, 0.0, [1.0, -1.0, 2.0, -2.0, 3.0, -3.0]);
    }

    /// Invariant 11: the held gradients are the slopes of the held losses.
    #[test]
    fn held_gradients_are_slopes() {
        let logits: Vec<f32> = (0..15).map(|i| ((i * 7 % 13) as f32 - 6.0) * 0.4).collect();
        let labels = [0, 2, 1, 1, 0];
        for loss in [IsolationLoss::Flooding, IsolationLoss::LocalGradientAscent] {
            for gamma in [0.5f32, 4.0] {
                let held = |logits: &[f32]| -> f64 {
                    let losses = loss::losses(logits, &labels, 3).unwrap();
                    let gamma = f64::from(gamma);
                    let losses: Vec<f64> = losses.into_iter().map(f64::from).collect();
                    match loss {
                        IsolationLoss::Flooding => (losses.iter().sum::<f64>() / 5.0 - gamma).abs() + gamma,
                        IsolationLoss::LocalGradientAscent => {
                            losses.iter().map(|loss| (loss - gamma).abs()).sum::<f64>() / 5.0
                        }
                    }
                };
                let mut gradient = vec![0.0; 15];
                let losses = loss::cross_entropy(&logits, &labels, 3, 0.0, &mut gradient).unwrap();
                hold(loss, gamma, &losses, &mut gradient);
                for i in 0..15 {
                    let shifted = |by: f32| {
                        let mut shifted = logits.clone();
                        shifted[i] += by;
                        held(&shifted)
                    };
                    let slope = (shifted(1.0 / 64.0) - shifted(-1.0 / 64.0)) * 32.0;
                    assert!((slope - f64::from(gradient[i])).abs() < 1e-4, "{loss:?}, {gamma}, {i}: {slope}");
                }
            }
        }
    }

    #[test]
    fn the_smallest_losses_are_isolated() {
        let losses = [0.3, 0.1, 0.9, 0.1, 0.2, 0.1];
        assert_eq!(isolate(&losses, 2), (vec![1, 3], vec![0, 2, 4, 5]));
        assert_eq!(isolate(&losses, 4), (vec![1, 3, 4, 5], vec![0, 2]));
        let verdicts = verdicts(&losses, &[1, 3]);
        assert_eq!(verdicts.iter().filter(|verdict| verdict.is_suspect).count(), 2);
        assert!(verdicts[3].is_suspect && verdicts[1].score > verdicts[0].score);
    }

    /// Two classes of noise that only a patch tells apart: poisoned images have it, and are learnt first.
    fn poisoned() -> Packed {
        let n = 80;
        let mut stream = Streams::new(0, "test/abl").stream("pixels");
        let mut pixels: Vec<u8> = (0..n * 192).map(|_| 64 + stream.below(128) as u8).collect();
        let mut label: Vec<i64> = (0..n as i64).map(|i| i % 2).collect();
        let mut role = vec![Role::Clean; n];
        for i in (0..n).step_by(5) {
            for row in 0..4 {
                pixels[i * 192 + row * 24..i * 192 + row * 24 + 12].fill(255);
            }
            (label[i], role[i]) = (0, Role::Backdoor);
        }
        let train = Split { role, ..Split::clean((8, 8), pixels, label).unwrap() };
        let about =
            About { name: "noise".into(), classes: vec!["a".into(), "b".into()], std: [0.3; 3], ..About::default() };
        Packed { about, test: train.select(&[1, 2]), train, triggered: None }
    }

    fn small() -> Params {
        let count = |n| Count::new(n).unwrap();
        Params {
            model: Architecture::Resnet8,
            isolation_epochs: count(6),
            isolation_rate: Positive::new(0.05).unwrap(),
            isolated: Fraction::new(0.1).unwrap(),
            epochs: count(2),
            schedule: schedule::Params { kind: schedule::Kind::Constant, ..schedule::Params::default() },
            unlearning_epochs: count(2),
            unlearning_rate: Positive::new(0.01).unwrap(),
            batch_size: count(16),
            augment: AugmentParams { crop: 0, flip: false, cutout: 0 },
            ..Params::default()
        }
    }

    fn run(params: Params, dataset: Packed) -> Outputs {
        Abl::run(&Context::for_test(0, Abl::NAME), params, Inputs { dataset }).unwrap()
    }

    #[test]
    fn poisoned_images_are_isolated_and_unlearnt() {
        let Outputs { model, history, isolation } = run(small(), poisoned());
        let number = |table: &Table, row: usize, name: &str| table.rows[row][table.column(name).unwrap()].number();
        assert_eq!(number(&isolation, 0, "n_suspects"), Some(8.0));
        assert_eq!(number(&isolation, 0, "precision"), Some(100.0));
        assert_eq!(number(&isolation, 0, "true_positive_rate"), Some(50.0));
        assert_eq!(history.rows.len(), 10);
        assert_eq!(number(&history, 9, "epoch"), Some(10.0));
        let phase = history.column("phase").unwrap();
        let phases: Vec<&str> = history.rows.iter().filter_map(|row| row[phase].text()).collect();
        assert_eq!(phases, [["isolation"; 6].as_slice(), &["training"; 2], &["unlearning"; 2]].concat());
        // The isolated images' loss rises while they are unlearnt; 72 images in every epoch of training.
        assert!(number(&history, 9, "loss") > number(&history, 8, "loss"));
        let defence = model.info.defence.unwrap();
        assert_eq!((defence.name.as_str(), defence.n_clean), ("abl", 0));
        assert_eq!(defence.work.backward, 6 * 80 + 2 * 72 + 2 * 8);
        assert_eq!(defence.work.forward, defence.work.backward + 80);
    }

    #[test]
    fn the_model_does_not_depend_on_roles() {
        let mut other = poisoned();
        other.train.role.rotate_left(1);
        let one_each =
            Params { isolation_epochs: Count::ONE, epochs: Count::ONE, unlearning_epochs: Count::ONE, ..small() };
        let (one, other) = (run(one_each.clone(), poisoned()), run(one_each, other));
        assert_eq!(one.model.weights, other.model.weights);
        assert_ne!(one.isolation, other.isolation);
        assert!(one.history.rows[0].contains(&Cell::Text("isolation".into())));
    }

    #[test]
    fn bad_parameters() {
        let names = |params: Params| Abl::check(&params).iter().map(|p| p.parameter).collect::<Vec<_>>();
        assert_eq!(names(Params { isolated: Fraction::ZERO, ..Params::default() }), ["isolated"]);
        assert_eq!(names(Params { isolated: Fraction::ONE, ..Params::default() }), ["isolated"]);
        assert_eq!(names(Params { epochs: Count::ONE, ..Params::default() }), ["schedule.milestones"]);
        assert!(names(Params::default()).is_empty());
        let params = Params { isolated: Fraction::new(0.001).unwrap(), ..small() };
        let error = Abl::run(&Context::for_test(0, Abl::NAME), params, Inputs { dataset: poisoned() });
        assert_eq!(error.map(|_| ()).unwrap_err().to_string(), "`isolated = 0.001` of 80 training images is 0 images");
    }
}
