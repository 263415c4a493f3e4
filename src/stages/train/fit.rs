//! Gradient descent over a split: the loop that every stage which trains a network shares.
//!
//! A stage hands in a network, images, a [`Recipe`] and its [`Hooks`], which add losses and look after every epoch.
//! The loop draws from three named streams: `order` (shuffling), `augment` and `noise` (in-network noise). The state
//! between two steps is all in the checkpoint, so an interrupted training ends with the same bytes as another.
//!
//! The last step of an epoch takes what is left of the data: nothing is dropped.

#[cfg(feature = "cuda")]
mod on_device;

use super::history::{History, Row, Tally};
use super::recipe::Recipe;
use super::state::{Reader, Writer};
use crate::artifact::{Role, Split};
use crate::error::{Class, Error, Result};
use crate::nn::augment::{self, Normalise};
use crate::nn::optim::Optimiser;
use crate::nn::schedule::{Plateau, Schedule};
use crate::nn::{Mode, Network, Work, loss, predict};
use crate::stage::Context;
use std::time::{Duration, Instant};

/// Begins every checkpoint; changes with its layout, so that another build starts afresh.
const LAYOUT: &[u8] = b"fit 2";

/// No two progress events come closer than this, except at the end of an epoch.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// Within an epoch, a checkpoint is saved at most this often.
const SAVE_WITHIN_EPOCH_EVERY: Duration = Duration::from_secs(60);

/// A checkpoint may cost this share of the time since the last one.
const SAVE_COST: u32 = 20;

/// What is trained, on what, and how.
pub struct Fit<'a> {
    /// Streams, progress, checkpoint and stop requests.
    pub cx: &'a Context,
    /// How.
    pub recipe: &'a Recipe,
    /// The images.
    pub split: &'a Split,
    /// The rows of `split` that are trained on.
    pub rows: &'a [usize],
    /// How images are normalised.
    pub normalise: &'a Normalise,
}

/// What the loop needs to know after an epoch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// The loss that the plateau schedule watches.
    pub watched: f64,
    /// Whether to stop early.
    pub stop: bool,
}

/// One step after its forward pass, as hooks see it.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// Its number over all epochs, from 0.
    pub number: usize,
    /// What went through the network: normalised, [n, H, W, 3].
    pub images: &'a [f32],
    /// [n]
    pub labels: &'a [i64],
    /// The cross-entropy of every image, in nats, [n].
    pub losses: &'a [f32],
    /// The gradient of the mean cross-entropy on the logits, [n, K].
    pub grad_logits: &'a [f32],
}

/// What a stage adds to the loop.
pub trait Hooks {
    /// Which statistics the forward pass of a step uses.
    fn mode(&self) -> Mode {
        Mode::Train
    }

    /// The images and labels of a batch, where the stage makes them anew instead of taking them from the split: image i
    /// stands for row `rows[i]`, and is augmented as that would be.
    fn batch(&self, _epoch: usize, _rows: &[usize]) -> Option<Split> {
        None
    }

    /// Changes the images of a step, normalised, [n, H, W, 3], before its forward pass; `number` counts steps over all
    /// epochs, from 0.
    fn prepare(&mut self, _number: usize, _images: &mut [f32], _labels: &[i64]) {}

    /// The backward pass of one step. What it leaves in [`Network::grads`] is what [`Hooks::update`] goes by: a stage
    /// with losses on inner layers hands theirs to [`Network::backward_from`], one with a regulariser adds its gradient
    /// to [`Network::grads_mut`], one with several passes runs them.
    ///
    /// # Errors
    /// What the backward pass says.
    fn backward(&mut self, network: &mut Network, step: &Step) -> Result<()> {
        network.backward(step.grad_logits)
    }

    /// Number of values that the optimiser moves.
    fn n_trained(&self, network: &Network) -> usize {
        network.n_parameters()
    }

    /// The optimiser's step. A stage that trains something else than all parameters moves that, and sets the parameters
    /// that follow from it.
    fn update(&mut self, network: &mut Network, optimiser: &mut Optimiser, rate: f64) {
        let (params, grads) = network.params_and_grads();
        optimiser.step(params, grads, rate);
    }

    /// Whether batches are the split's and the backward pass is the plain one, so that a GPU may run whole epochs without
    /// asking.
    fn only_watches(&self) -> bool {
        false
    }

    /// Looks at the network after an epoch and may complete its row.
    ///
    /// # Errors
    /// Whatever goes wrong. An interruption must leave the hooks as they were: the epoch's end is repeated.
    fn epoch(&mut self, _network: &mut Network, row: &mut Row) -> Result<Verdict> {
        Ok(Verdict { watched: row.loss, stop: false })
    }

    /// Writes what a checkpoint must keep.
    fn save(&self, _out: &mut Writer) {}

    /// Takes up what [`Hooks::save`] wrote; `None`, and nothing changed, if it does not fit.
    fn restore(&mut self, _from: &mut Reader) -> Option<()> {
        Some(())
    }
}

/// Hooks of a stage that adds nothing.
pub struct NoHooks;

impl Hooks for NoHooks {
    fn only_watches(&self) -> bool {
        true
    }
}

/// Where the loop stands.
struct Position {
    /// Epochs done.
    epoch: usize,
    /// Steps done of the next.
    step: usize,
    /// Whether the hooks asked to stop.
    stopped: bool,
    tally: Tally,
}

/// Everything that a checkpoint keeps besides network and hooks.
struct Progress {
    at: Position,
    optimiser: Optimiser,
    schedule: Schedule,
    history: History,
}

/// Room for a batch, used again every step: a step allocates nothing.
struct Room {
    /// [batch_size, H, W, 3]
    images: Vec<f32>,
    /// [n]
    labels: Vec<i64>,
    /// [n]
    roles: Vec<Role>,
    /// [batch_size]
    losses: Vec<f32>,
    /// [batch_size, K]
    grad_logits: Vec<f32>,
}

impl Room {
    fn new(batch_size: usize, image_values: usize, n_classes: usize) -> Room {
        Room {
            images: vec![0.0; batch_size * image_values],
            labels: Vec::with_capacity(batch_size),
            roles: Vec::with_capacity(batch_size),
            losses: vec![0.0; batch_size],
            grad_logits: vec![0.0; batch_size * n_classes],
        }
    }
}

impl Fit<'_> {
    /// Trains `network` from the weights that it has, or from the checkpoint, if there is one.
    ///
    /// # Errors
    /// A loss that is not finite; images or labels that do not fit the network; a full disk; a stop request.
    pub fn run(&self, network: &mut Network, hooks: &mut dyn Hooks) -> Result<History> {
        let Fit { cx, recipe, split, rows, .. } = *self;
        if rows.is_empty() {
            return Err(Error::stage("there is no image to train on"));
        }
        predict::check_size(network, split)?;
        cx.place.put(network, recipe.precision)?;
        let n_classes = network.config().n_classes;
        let n_steps = rows.len().div_ceil(recipe.batch_size);
        let mut now = Progress {
            at: Position { epoch: 0, step: 0, stopped: false, tally: Tally::new(n_classes) },
            optimiser: Optimiser::new(recipe.optimiser, hooks.n_trained(network)),
            schedule: Schedule::new(&recipe.schedule, recipe.learning_rate, recipe.epochs, n_steps),
            history: History::default(),
        };
        if let Some(bytes) = cx.checkpoint.load() {
            // A checkpoint of another build costs the time since the start, nothing else.
            self.restore(&bytes, network, hooks, &mut now);
            // Who follows this run was not told by the one that was interrupted.
            now.history.rows.iter().for_each(|row| self.tell_epoch(row));
        }

        let (order, augment, noise) = (cx.rng("order"), cx.rng("augment"), cx.rng("noise"));
        let is_noisy = network.config().sigma_xt > 0.0 || network.config().sigma_ty > 0.0;
        let mut room = Room::new(recipe.batch_size.min(rows.len()), split.image_bytes(), n_classes);
        let mut ordered = Vec::with_capacity(rows.len());
        #[cfg(feature = "cuda")]
        let mut trainer = on_device::trainer(self, network, hooks, &now)?;
        let mut saver = Saver::new();
        let mut told = Instant::now();
        while now.at.epoch < recipe.epochs && !now.at.stopped {
            let epoch = now.at.epoch;
            ordered.clear();
            ordered.extend_from_slice(rows);
            order.at(epoch as u64).shuffle(&mut ordered);
            network.noise(is_noisy.then(|| noise.clone()));
            // Leaves no step for the loop below.
            #[cfg(feature = "cuda")]
            if let Some(trainer) = &mut trainer {
                let streams = (&augment, is_noisy.then_some(&noise));
                let clocks = (&mut saver, &mut told);
                on_device::epoch(self, trainer, network, hooks, &mut now, clocks, &ordered, streams)?;
            }
            for (step, batch) in ordered.chunks(recipe.batch_size).enumerate().skip(now.at.step) {
                if cx.should_stop() {
                    self.save(network, hooks, &now)?;
                    return Err(Error::interrupted());
                }
                let images = &mut room.images[..batch.len() * split.image_bytes()];
                let draws = (recipe.augment, &augment, epoch);
                room.labels.clear();
                room.roles.clear();
                match hooks.batch(epoch, batch) {
                    None => {
                        augment::augmented(split, batch, self.normalise, draws, images)?;
                        room.labels.extend(batch.iter().map(|&row| split.label[row]));
                        room.roles.extend(batch.iter().map(|&row| split.role[row]));
                    }
                    Some(made) => {
                        augment::augmented_anew(&made, (batch, split.len()), self.normalise, draws, images)?;
                        room.labels.extend_from_slice(&made.label);
                        room.roles.extend_from_slice(&made.role);
                    }
                }
                network.set_step((epoch * n_steps + step) as u64);
                self.step(network, hooks, &mut now, (step, n_steps), &mut room)?;
                now.at.step = step + 1;
                if told.elapsed() >= PROGRESS_EVERY {
                    self.tell(&now, n_steps, (epoch * n_steps + step + 1) as u64);
                    told = Instant::now();
                }
                if saver.is_due(SAVE_WITHIN_EPOCH_EVERY) {
                    saver.time(|| self.save(network, hooks, &now))?;
                }
            }

            let rate = now.schedule.rate(epoch, n_steps - 1);
            let mut row = now.at.tally.row(epoch + 1, rate);
            let verdict = match hooks.epoch(network, &mut row) {
                Err(error) if error.class() == Class::Interrupted => {
                    self.save(network, hooks, &now)?;
                    return Err(error);
                }
                other => other?,
            };
            now.schedule.end_epoch(verdict.watched);
            self.tell_epoch(&row);
            now.history.rows.push(row);
            self.tell(&now, n_steps, ((epoch + 1) * n_steps) as u64);
            told = Instant::now();
            now.at = Position { epoch: epoch + 1, step: 0, stopped: verdict.stop, tally: Tally::new(n_classes) };
            if saver.is_due(Duration::ZERO) {
                saver.time(|| self.save(network, hooks, &now))?;
            }
        }
        network.noise(None);
        Ok(now.history)
    }

    /// One step on the images of `room`: forward, loss, backward, update.
    fn step(
        &self,
        network: &mut Network,
        hooks: &mut dyn Hooks,
        now: &mut Progress,
        (step, n_steps): (usize, usize),
        room: &mut Room,
    ) -> Result<()> {
        let Fit { recipe, split, .. } = *self;
        let Room { images, labels, roles, losses, grad_logits } = room;
        let (n, n_classes) = (labels.len(), network.config().n_classes);
        let (losses, grad_logits) = (&mut losses[..n], &mut grad_logits[..n * n_classes]);
        let rate = now.schedule.rate(now.at.epoch, step);
        let number = now.at.epoch * n_steps + step;
        let images = &mut images[..n * split.image_bytes()];
        hooks.prepare(number, images, labels);

        let logits = network.forward(images, n, hooks.mode())?; // [n, K]
        loss::cross_entropy_into(logits, labels, n_classes, recipe.label_smoothing, (losses, grad_logits))?; // [n], [n, K]
        if let Some(bad) = losses.iter().find(|loss| !loss.is_finite()) {
            return Err(not_finite(*bad, now.at.epoch, (step, n_steps), rate));
        }
        for ((&role, logits), (&loss, &label)) in
            roles.iter().zip(logits.chunks_exact(n_classes)).zip(losses.iter().zip(labels.iter()))
        {
            now.at.tally.add(loss, label, role, predict::class(logits));
        }
        hooks.backward(network, &Step { number, images, labels, losses, grad_logits })?;
        hooks.update(network, &mut now.optimiser, rate);
        Ok(())
    }

    fn tell(&self, now: &Progress, n_steps: usize, done: u64) {
        let Recipe { epochs, .. } = self.recipe;
        let tally = &now.at.tally;
        let headline =
            format!("epoch {}/{epochs}  loss {:.3}  train {:.1} %", now.at.epoch + 1, tally.loss(), tally.accuracy());
        self.cx.progress(done, (epochs * n_steps) as u64, "steps", headline);
        // Means over the epoch so far.
        let means = [("loss".to_string(), tally.loss()), ("accuracy".to_string(), tally.accuracy())];
        self.cx.metrics("train", "step", done, means);
    }

    /// The numbers of an epoch, before the table has them.
    fn tell_epoch(&self, row: &Row) {
        self.cx.metrics("history", "epoch", row.epoch as u64, row.values());
    }

    fn save(&self, network: &Network, hooks: &dyn Hooks, now: &Progress) -> Result<()> {
        let mut out = Writer::default();
        out.bytes(LAYOUT);
        out.count(now.at.epoch as u64);
        out.count(now.at.step as u64);
        out.count(u64::from(now.at.stopped));
        now.at.tally.save(&mut out);
        let Work { forward, backward } = network.work();
        out.count(forward);
        out.count(backward);
        out.floats(network.params());
        out.floats(network.buffers());
        let (steps, first, second) = now.optimiser.state();
        out.count(steps);
        out.floats(first);
        out.floats(second);
        let Plateau { rate, best, waited } = now.schedule.state();
        out.number(rate);
        out.number(best);
        out.count(waited);
        now.history.save(&mut out);
        hooks.save(&mut out);
        self.cx.checkpoint.save(&out.finish())
    }

    /// Takes up a checkpoint, all of it or, if it does not fit, nothing.
    fn restore(&self, bytes: &[u8], network: &mut Network, hooks: &mut dyn Hooks, now: &mut Progress) -> Option<()> {
        let from = &mut Reader::new(bytes);
        if from.bytes()? != LAYOUT {
            return None;
        }
        let (epoch, step, stopped) = (from.count()? as usize, from.count()? as usize, from.count()? != 0);
        let tally = Tally::restore(from, network.config().n_classes)?;
        let work = Work { forward: from.count()?, backward: from.count()? };
        let (params, buffers) = (from.floats()?, from.floats()?);
        if (params.len(), buffers.len()) != (network.params().len(), network.buffers().len()) {
            return None;
        }
        let mut optimiser = now.optimiser.clone();
        optimiser.restore(from.count()?, from.floats()?, from.floats()?).ok()?;
        let mut schedule = now.schedule.clone();
        schedule.restore(Plateau { rate: from.number()?, best: from.number()?, waited: from.count()? }).ok()?;
        let history = History::restore(from)?;
        hooks.restore(from)?;
        network.params_mut().copy_from_slice(&params);
        network.buffers_mut().copy_from_slice(&buffers);
        network.set_work(work);
        *now = Progress { at: Position { epoch, step, stopped, tally }, optimiser, schedule, history };
        Some(())
    }
}

/// A loss that is not a number, or infinite, in a step of an epoch (both from 0).
fn not_finite(loss: f32, epoch: usize, (step, n_steps): (usize, usize), rate: f64) -> Error {
    let (epoch, step) = (epoch + 1, step + 1);
    Error::stage(format!(
        "the loss became {loss} in epoch {epoch}, step {step} of {n_steps}, at learning rate {rate:.4}"
    ))
    .hint("lower `learning_rate`, or let it grow with `schedule.warmup`")
}

/// Decides when a checkpoint is worth its time. The clock chooses how much work an interruption costs, never what
/// comes out.
struct Saver {
    last: Instant,
    cost: Duration,
}

impl Saver {
    fn new() -> Saver {
        Saver { last: Instant::now(), cost: Duration::ZERO }
    }

    fn is_due(&self, at_least: Duration) -> bool {
        self.last.elapsed() >= at_least.max(self.cost * SAVE_COST)
    }

    fn time(&mut self, save: impl FnOnce() -> Result<()>) -> Result<()> {
        let start = Instant::now();
        save()?;
        *self = Saver { last: Instant::now(), cost: start.elapsed() };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Precision;
    use crate::nn::{Architecture, Config, optim, schedule};
    use crate::rng::Streams;
    use crate::store::checkpoint::Checkpoint;
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// Raises the flag during step `at`, and counts steps of its own.
    struct StopAt {
        at: usize,
        flag: Arc<AtomicBool>,
        n_steps: u64,
    }

    impl Hooks for StopAt {
        fn backward(&mut self, network: &mut Network, step: &Step) -> Result<()> {
            assert_eq!(step.number as u64, self.n_steps);
            self.n_steps += 1;
            self.at = self.at.saturating_sub(1);
            if self.at == 0 {
                self.flag.store(true, Ordering::Relaxed);
            }
            network.backward(step.grad_logits)
        }

        fn save(&self, out: &mut Writer) {
            out.count(self.n_steps);
        }

        fn restore(&mut self, from: &mut Reader) -> Option<()> {
            self.n_steps = from.count()?;
            Some(())
        }
    }

    /// Trains 22 noise images in batches of 8 for 3 epochs, with an end after `at` steps.
    fn train(checkpoint: &Path, at: usize, kind: optim::Kind) -> Result<(Vec<f32>, History, u64, Work)> {
        let (size, n) = ((8, 8), 22);
        let mut stream = Streams::new(0, "test/noise").stream("pixels");
        let pixels = (0..n * 192).map(|_| stream.below(256) as u8).collect();
        let split = Split::clean(size, pixels, (0..n as i64).map(|i| i % 3).collect())?;
        let recipe = Recipe {
            epochs: 3,
            batch_size: 8,
            optimiser: optim::Config { kind, momentum: 0.9, nesterov: false, weight_decay: 1e-3 },
            learning_rate: 0.01,
            schedule: schedule::Params { warmup: 1, ..schedule::Params::default() },
            augment: augment::Augment { crop: 1, flip: true, cutout: 3 },
            label_smoothing: 0.1,
            precision: Precision::F32,
        };
        let flag = Arc::new(AtomicBool::new(false));
        let cx = Context::new(
            Streams::new(1, "test/fit"),
            candle_core::Device::Cpu,
            1,
            Checkpoint::at(checkpoint),
            flag.clone(),
            Arc::new(|_| {}),
        );
        let architecture = Architecture::Resnet8;
        let mut network = Network::new(&Config { architecture, n_classes: 3, size, sigma_xt: 0.2, sigma_ty: 0.1 })?;
        network.init(&cx.rng("init"));
        let rows: Vec<usize> = (0..split.len()).collect();
        let fit = Fit { cx: &cx, recipe: &recipe, split: &split, rows: &rows, normalise: &Normalise::none() };
        let mut hooks = StopAt { at, flag, n_steps: 0 };
        let history = fit.run(&mut network, &mut hooks)?;
        Ok(([network.params(), network.buffers()].concat(), history, hooks.n_steps, network.work()))
    }

    #[test]
    fn a_stop_between_any_two_steps_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        for kind in [optim::Kind::Sgd, optim::Kind::Adamw] {
            let whole = train(&dir.path().join("never"), usize::MAX, kind).unwrap();
            assert_eq!((whole.1.rows.len(), whole.2), (3, 9));
            assert_eq!(whole.3, Work { forward: 66, backward: 66 });
            for at in [1, 3, 5] {
                let path = dir.path().join(format!("{}-{at}", kind.name()));
                let error = train(&path, at, kind).unwrap_err();
                assert_eq!(error.class(), Class::Interrupted);
                assert!(Checkpoint::at(&path).load().is_some());
                let resumed = train(&path, usize::MAX, kind).unwrap();
                assert!(resumed == whole, "{} stopped after {at} steps", kind.name());
            }
        }
    }
}
