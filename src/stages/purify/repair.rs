//! What defences that repair a model share: opening it, setting clean images aside for a choice, training on the others,
//! and saying what was done.
//!
//! A threshold is chosen on images that nothing was trained on. A defence never sees test data (invariant 9), so a
//! published threshold that was tuned on the test set is not to be had here.

use crate::artifact::model::{Defence, ModelInfo};
use crate::artifact::table::{Cell, Column};
use crate::artifact::{CleanSplit, Model, Split, Table};
use crate::error::{Error, Result};
use crate::kernels::Precision;
use crate::nn::augment::{Augment, Normalise};
use crate::nn::coordinates::Coordinates;
use crate::nn::mask::Channels;
use crate::nn::optim::Optimiser;
use crate::nn::{Network, optim, predict, schedule};
use crate::param::Fraction;
use crate::stage::{Context, Problem};
use crate::stages::train::fit::{Fit, Hooks};
use crate::stages::train::history::History;
use crate::stages::train::recipe::Recipe;
use crate::stages::train::state::{Reader, Writer};

crate::ports! {
    /// What a defence starts from, and all that it sees.
    pub struct Inputs {
        /// The model to purify.
        model: Model,
        /// Clean images with their labels.
        clean: CleanSplit,
    }
}

crate::ports! {
    /// What a defence that trains makes.
    pub struct Outputs => {
        /// The purified model.
        model: Model,
        /// One row an epoch, measured on the clean split.
        history: Table,
    }
}

crate::ports! {
    /// What a defence that prunes makes.
    pub struct Pruned => {
        /// The pruned model.
        model: Model,
        /// What was tried on the held-out images, in order; the row that was kept is marked.
        pruning: Table,
    }
}

/// A repair under way.
pub struct Repair<'a> {
    /// Streams, progress, checkpoint and stop requests.
    pub cx: &'a Context,
    /// All clean images.
    pub images: &'a Split,
    /// Rows of `images` to train on, ascending.
    pub rows: Vec<usize>,
    /// Rows of `images` to choose by, ascending; empty where there is nothing to choose.
    pub held_out: Vec<usize>,
    /// The model that is repaired, on the stage's device.
    pub network: Network,
    /// How it wants its images.
    pub normalise: Normalise,
    info: ModelInfo,
    classes: &'a [String],
}

impl<'a> Repair<'a> {
    /// Opens `model` and sets the share `held_out` of the clean images aside, rounded, at least one image of each part
    /// (a share of 0: none).
    ///
    /// # Errors
    /// Classes or images that do not fit each other, weights that do not fit the architecture, too few images.
    pub fn begin(cx: &'a Context, model: Model, clean: &'a CleanSplit, held_out: Fraction) -> Result<Repair<'a>> {
        if clean.about.classes.len() != model.info.n_classes {
            return Err(Error::user(format!(
                "the model tells {} classes apart, the clean split has {}",
                model.info.n_classes,
                clean.about.classes.len()
            ))
            .hint("take the clean split from the dataset that the model was trained on"));
        }
        let (mut network, normalise) = predict::open(&model)?;
        cx.place.put(&mut network, Precision::F32)?;
        predict::check_size(&network, &clean.images)?;
        let n = clean.images.len();
        let mut order = match held_out.get() {
            0.0 => (0..n).collect(),
            _ => cx.rng("held-out").permutation(n),
        };
        let n_aside = match held_out.get() {
            0.0 => 0,
            share => ((share * n as f64).round() as usize).max(1),
        };
        if n_aside >= n {
            return Err(Error::user(format!(
                "{n_aside} of {n} clean images would be held out, and none left to train on"
            ))
            .hint("lower `held_out`, or take a larger clean split"));
        }
        let mut rows = order.split_off(n_aside);
        rows.sort_unstable();
        order.sort_unstable();
        let (images, classes) = (&clean.images, &clean.about.classes[..]);
        Ok(Repair { cx, images, rows, held_out: order, network, normalise, info: model.info, classes })
    }

    /// Trains the network on the rows, or on those of another split.
    ///
    /// # Errors
    /// See [`Fit::run`].
    pub fn fit(&mut self, recipe: &Recipe, hooks: &mut dyn Hooks) -> Result<History> {
        let Repair { cx, images: split, rows, normalise, network, .. } = self;
        Fit { cx, recipe, split, rows, normalise }.run(network, hooks)
    }

    /// The same as a part of the stage that comes before its main training, with streams of its own and no checkpoint.
    ///
    /// # Errors
    /// See [`Fit::run`].
    pub fn fit_part(&mut self, name: &str, recipe: &Recipe, hooks: &mut dyn Hooks) -> Result<History> {
        let Repair { cx, images: split, rows, normalise, network, .. } = self;
        Fit { cx: &cx.part(name), recipe, split, rows, normalise }.run(network, hooks)
    }

    /// Share of the rows `rows` that `network` puts into their class, in %.
    ///
    /// # Errors
    /// A stop request.
    pub fn accuracy(&mut self, rows: &[usize]) -> Result<f64> {
        let n_classes = self.network.config().n_classes;
        let cx = self.cx;
        let mut n_correct = 0;
        let mut labels = rows.iter().map(|&row| self.images.label[row]);
        predict::each_batch(&mut self.network, self.images, rows, &self.normalise, |_, logits| {
            cx.check_stop()?;
            n_correct +=
                predict::classes(logits, n_classes).into_iter().zip(&mut labels).filter(|(c, l)| c == l).count();
            Ok(())
        })?;
        Ok(100.0 * n_correct as f64 / rows.len().max(1) as f64)
    }

    /// Prunes more and more, and keeps the last network whose accuracy on the held-out images is at least
    /// (1 - `max_drop`) of that before.
    ///
    /// `prune` gets the parameters from before, and a candidate, in ascending order of what it removes; it returns how
    /// many neurons it removed. The first candidate beyond the bound ends the search. Returns the chosen candidate (none
    /// if already the first goes too far), and a row for each that was tried.
    ///
    /// # Errors
    /// A stop request.
    pub fn prune(
        &mut self,
        candidates: &[f64],
        max_drop: Fraction,
        (name, definition): (&str, &str),
        mut prune: impl FnMut(f64, &mut [f32]) -> usize,
    ) -> Result<(Option<f64>, Table)> {
        let mut table = Table::new(vec![
            Column::new(name, definition),
            Column::new("n_pruned", "neurons removed"),
            Column::new("held_out_accuracy", "clean images held out from training, classified as their class")
                .unit("%")
                .digits(2),
            Column::new("kept", "whether this is the network that goes on"),
        ]);
        let held_out = self.held_out.clone();
        let before = self.accuracy(&held_out)?;
        table.push(vec![Cell::None, 0usize.into(), before.into(), false.into()]);
        let bound = before * (1.0 - max_drop.get());
        let whole = self.network.params().to_vec();
        let mut chosen: Option<(f64, Vec<f32>)> = None;
        for (i, &candidate) in candidates.iter().enumerate() {
            let mut pruned = whole.clone();
            let n_pruned = prune(candidate, &mut pruned);
            self.network.params_mut().copy_from_slice(&pruned);
            let accuracy = self.accuracy(&held_out)?;
            table.push(vec![candidate.into(), n_pruned.into(), accuracy.into(), false.into()]);
            let done = (i + 1, candidates.len());
            self.cx.progress(done.0 as u64, done.1 as u64, "candidates", format!("held out {accuracy:.1} %"));
            if accuracy < bound {
                break;
            }
            chosen = Some((candidate, pruned));
        }
        let kept = chosen.as_ref().map_or(0, |(c, _)| 1 + candidates.iter().take_while(|other| *other < c).count());
        let column = table.columns.len() - 1;
        table.rows[kept][column] = true.into();
        table.notes.push(format!(
            "{} of {} clean images held out; kept: the last with at least {} % of the accuracy before",
            held_out.len(),
            self.images.len(),
            100.0 * (1.0 - max_drop.get())
        ));
        self.network.params_mut().copy_from_slice(chosen.as_ref().map_or(&whole, |(_, params)| params));
        Ok((chosen.map(|(candidate, _)| candidate), table))
    }

    /// The repaired model; `stage` made it, by what `summary` says; `notes` are what tables print with its scores.
    pub fn end(self, stage: &str, summary: &str, notes: Vec<String>) -> Model {
        let Repair { images, held_out, network, mut info, .. } = self;
        info.history.push(format!("{stage}: {} images, {summary}", images.len()));
        info.defence = Some(Defence {
            name: stage.rsplit('/').next().unwrap_or(stage).to_string(),
            n_clean: images.len(),
            n_held_out: held_out.len(),
            work: network.work(),
            notes,
        });
        Model { info, weights: network.weights() }
    }

    /// A history as a table.
    pub fn table(&self, history: &History) -> Table {
        history.table(self.classes)
    }
}

/// BackdoorBench's recipe for fine-tuning (`defense/ft.py`), for defences to change: 100 epochs of batches of 256, SGD at
/// 0.01 with momentum 0.9 and weight decay 5e-4, cosine, crop and flip.
pub fn fine_tuning() -> Recipe {
    Recipe {
        epochs: 100,
        batch_size: 256,
        optimiser: optim::Config { kind: optim::Kind::Sgd, momentum: 0.9, nesterov: false, weight_decay: 5e-4 },
        learning_rate: 0.01,
        schedule: schedule::Params::default(),
        augment: Augment { crop: 4, flip: true, cutout: 0 },
        label_smoothing: 0.0,
        precision: Precision::F32,
    }
}

/// What is wrong with a share that thresholds are chosen on.
pub fn held_out_problem(held_out: Fraction) -> Option<Problem> {
    let message = match held_out.get() {
        0.0 => "nothing would be left to choose the threshold by",
        1.0 => "nothing would be left to train on",
        _ => return None,
    };
    Some(Problem { parameter: "held_out", message: message.into(), hint: Some("0.2 is usual".into()) })
}

/// Removes the channels of `masks` up to a threshold chosen on the held-out images, 0 to 0.9 in steps of 0.05: a summary,
/// notes, and what was tried.
///
/// # Errors
/// A stop request.
pub fn mask_thresholds(
    repair: &mut Repair,
    masks: &Channels,
    max_drop: Fraction,
) -> Result<(String, Vec<String>, Table)> {
    let thresholds: Vec<f64> = (0..19).map(|i| f64::from(i) * 0.05).collect();
    let about = ("threshold", "channels whose mask is at most this lose their scale");
    let (chosen, table) =
        repair.prune(&thresholds, max_drop, about, |threshold, params| masks.prune(threshold as f32, params))?;
    let n_pruned = chosen.map_or(0, |threshold| masks.values().iter().filter(|&&m| m <= threshold as f32).count());
    let threshold = chosen.map_or("no threshold".to_string(), |threshold| format!("threshold {threshold:.2}"));
    let summary = format!("{threshold}, {n_pruned} of {} channels removed", masks.values().len());
    let note = format!("{summary}, chosen on {} held-out images", repair.held_out.len());
    Ok((summary, vec![note], table))
}

/// Coordinates that are trained in place of the parameters, with their gradient.
pub struct Trained<C> {
    /// What is trained.
    pub coordinates: C,
    /// The gradient with respect to it: what the next update goes by.
    pub gradient: Vec<f32>,
}

impl<C: Coordinates> Trained<C> {
    /// No gradient yet; the network follows `coordinates` from now on.
    pub fn new(coordinates: C, network: &mut Network) -> Trained<C> {
        coordinates.write(network.params_mut());
        let gradient = vec![0.0; coordinates.values().len()];
        Trained { coordinates, gradient }
    }

    /// Takes the gradient from the network's.
    pub fn pull(&mut self, network: &Network) {
        self.coordinates.pull_back(network.grads(), &mut self.gradient);
    }

    /// The optimiser's step; `project` then brings the values back to where they may be, and the network follows.
    pub fn update(
        &mut self,
        network: &mut Network,
        optimiser: &mut Optimiser,
        rate: f64,
        project: impl FnOnce(&mut [f32]),
    ) {
        optimiser.step(self.coordinates.values_mut(), &self.gradient, rate);
        project(self.coordinates.values_mut());
        self.coordinates.write(network.params_mut());
    }

    /// What a checkpoint must keep.
    pub fn save(&self, out: &mut Writer) {
        out.floats(self.coordinates.values());
    }

    /// Takes it up.
    pub fn restore(&mut self, from: &mut Reader) -> Option<()> {
        let values = from.floats()?;
        if values.len() != self.coordinates.values().len() {
            return None;
        }
        self.coordinates.values_mut().copy_from_slice(&values);
        Some(())
    }
}
