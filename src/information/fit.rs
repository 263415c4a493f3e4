//! Training one critic and reading its bound on pairs that it has not seen; and a stack of independent ones.
//!
//! Follows the IB paper's code (AdamW, gradient norm at most 5, mean of the last five readouts). Differs from it: the
//! reported value is read on held-out pairs, not on the critic's own training pairs; the mean is taken over five
//! readouts, where an index error made it one; the learning rate follows a fixed schedule, not a plateau rule.

use super::critic::{Concat, Critic, Separable};
use super::estimator::{Bound, Chosen, Constants, Row};
use super::optimizer::{AdamW, clip};
use super::pairs::{Pairs, Scaling};
use crate::error::{Error, Result};
use crate::rng::Stream;
use rayon::prelude::*;

/// Readouts that the reported value is the mean of.
pub const READOUTS_AVERAGED: usize = 5;

/// Random partitions of the held-out pairs into batches; negatives are drawn anew in each, which lowers the variance.
const PARTITIONS: usize = 4;

/// The form of the critic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// [`Concat`].
    Concat,
    /// [`Separable`].
    Separable,
}

/// How the learning rate goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// From the given rate to zero along half a cosine.
    Cosine,
    /// Always the given rate.
    Constant,
}

/// How a critic is built, trained and read.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The estimator.
    pub estimator: Chosen,
    /// Its constants.
    pub constants: Constants,
    /// The form of the critic.
    pub form: Form,
    /// Units of each hidden layer.
    pub hidden: usize,
    /// Coordinates of the embeddings of a separable critic.
    pub embedding: usize,
    /// Whether every coordinate is brought to mean 0 and variance 1 (over the training pairs) first.
    pub standardize: bool,
    /// Pairs of a batch, at least 2; the others of the batch are a pair's negatives.
    pub batch: usize,
    /// Steps of the optimiser, at most.
    pub steps: usize,
    /// Learning rate of AdamW, at the start.
    pub learning_rate: f64,
    /// How the learning rate goes.
    pub schedule: Schedule,
    /// Weight decay of AdamW.
    pub weight_decay: f64,
    /// Largest norm of the gradient.
    pub clip: f64,
    /// Readouts, evenly over the steps, at least 1.
    pub readouts: usize,
    /// Share of the pairs that is held out, at least one batch.
    pub held_out: f64,
    /// Stop once a validation part of the training pairs has seen no better value for so many readouts.
    pub patience: Option<usize>,
}

/// How many pairs go where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    /// For training.
    pub train: usize,
    /// To decide when to stop; none without early stopping.
    pub validation: usize,
    /// To read the reported value.
    pub held_out: usize,
}

impl Settings {
    /// How `n` pairs are divided; `None` if that leaves less than a batch for any part.
    pub fn parts(&self, n: usize) -> Option<Parts> {
        let held_out = ((self.held_out * n as f64).round() as usize).max(self.batch);
        let validation = if self.patience.is_some() { held_out } else { 0 };
        let train = n.checked_sub(held_out + validation)?;
        (train >= self.batch).then_some(Parts { train, validation, held_out })
    }

    fn critic(&self, a: usize, b: usize, stream: &Stream) -> Box<dyn Critic<f32>> {
        match self.form {
            Form::Concat => Box::new(Concat::new(a, b, self.hidden, stream)),
            Form::Separable => Box::new(Separable::new(a, b, self.hidden, self.embedding, stream)),
        }
    }

    fn learning_rate_at(&self, step: usize) -> f64 {
        match self.schedule {
            Schedule::Constant => self.learning_rate,
            Schedule::Cosine => {
                let share = step as f64 / self.steps as f64;
                self.learning_rate * 0.5 * (1.0 + libm::cos(std::f64::consts::PI * share))
            }
        }
    }
}

/// The bound at one moment of the training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Readout {
    /// Steps done.
    pub step: usize,
    /// Over the training batches since the last readout, in nats.
    pub train: f64,
    /// On the validation pairs, in nats; NaN without early stopping.
    pub validation: f64,
    /// On the held-out pairs, in nats.
    pub held_out: f64,
}

/// What one critic found.
#[derive(Clone, Debug)]
pub struct Fit {
    /// Mean of the last five readouts (of the five with the best validation values with early stopping), on held-out
    /// pairs, in nats.
    pub held_out: f64,
    /// The same on training pairs.
    pub train: f64,
    /// Mean contribution of each held-out pair to `held_out`, in nats.
    pub contributions: Vec<f64>,
    /// What the estimator cannot exceed, in nats.
    pub ceiling: Option<f64>,
    /// The size of an error that is known to be in `held_out`, in nats ([`Bound::known_error`]).
    pub known_error: Option<f64>,
    /// Training pairs.
    pub n_train: usize,
    /// Held-out pairs.
    pub n_held_out: usize,
    /// The course of the training.
    pub readouts: Vec<Readout>,
}

/// A critic of a stack.
pub struct Task<'a> {
    /// What it is trained on.
    pub pairs: &'a Pairs<'a>,
    /// How.
    pub settings: &'a Settings,
    /// Its draws: the division of the pairs, its initial weights, the order of its batches.
    pub stream: Stream,
}

/// Trains all critics of a stack, side by side; the fits come in the order of the tasks.
///
/// `done` hears of every finished critic; `stop` is asked before every step.
///
/// # Errors
/// As [`fit`].
pub fn stack(tasks: &[Task<'_>], stop: &(dyn Fn() -> bool + Sync), done: &(dyn Fn() + Sync)) -> Result<Vec<Fit>> {
    tasks
        .par_iter()
        .with_max_len(1)
        .map(|task| {
            let fit = fit(task, stop)?;
            done();
            Ok(fit)
        })
        .collect()
}

/// Trains one critic on one thread.
///
/// # Errors
/// Too few pairs for the batch, a value that is not finite, or a request to stop.
pub fn fit(task: &Task<'_>, stop: &dyn Fn() -> bool) -> Result<Fit> {
    let Task { pairs, settings, stream } = task;
    let n = pairs.a.len();
    let Some(parts) = settings.parts(n) else {
        return Err(Error::stage(format!(
            "{n} pairs are too few for training and held-out batches of {}",
            settings.batch
        ))
        .hint("set a smaller `batch`, or observe more rows"));
    };
    let mut order = stream.child("parts").permutation(n);
    let mut rest = order.split_off(parts.held_out);
    let train = rest.split_off(parts.validation);
    let mut feed = Feed::new(pairs, settings, &train);
    let held_out = Partitions::new(&order, settings.batch, stream.child("held-out"));
    let validation = Partitions::new(&rest, settings.batch, stream.child("validation"));
    let mut critic = settings.critic(pairs.a.width(), pairs.b.width(), &stream.child("init"));
    let mut bound = (settings.estimator.0.make)(&settings.constants);
    let mut adam = AdamW::new(critic.parameters().0.len(), settings.weight_decay);
    let mut batches = Batches { order: train, next: usize::MAX, stream: stream.child("order") };
    let mut course = Course::default();
    let mut rows = Vec::new();
    for step in 1..=settings.steps {
        if stop() {
            return Err(Error::interrupted());
        }
        feed.load(batches.next(settings.batch));
        learn(critic.as_mut(), bound.as_mut(), &feed, settings.batch, &mut rows);
        let (params, grads) = critic.parameters();
        let scale = clip(grads, settings.clip);
        adam.step(params, grads, settings.learning_rate_at(step - 1), scale);
        // Evenly spaced, the last one after the last step.
        if step * settings.readouts / settings.steps == (step - 1) * settings.readouts / settings.steps {
            continue;
        }
        let of_validation = validation.read(critic.as_mut(), bound.as_ref(), &mut feed);
        let of_held_out = held_out.read(critic.as_mut(), bound.as_ref(), &mut feed);
        let readout = Readout {
            step,
            train: mean(bound.contributions(&rows).into_iter()),
            validation: of_validation.value(),
            held_out: of_held_out.value(),
        };
        if !(readout.train.is_finite() && readout.held_out.is_finite()) {
            return Err(Error::stage(format!("a critic's value is not finite after {step} steps"))
                .hint("set a lower `learning_rate`, or `standardize = true`"));
        }
        rows.clear();
        course.push(readout, of_held_out);
        if settings.patience.is_some_and(|patience| course.stale() >= patience) {
            break;
        }
    }
    Ok(course.finish(settings, bound.as_ref(), parts))
}

/// The gradient of one batch; what its rows show is added to `rows`.
fn learn(critic: &mut dyn Critic<f32>, bound: &mut dyn Bound<f32>, feed: &Feed<'_>, batch: usize, rows: &mut Vec<Row>) {
    if bound.reads_whole() {
        bound.whole(critic.scores(&feed.a, &feed.b, batch), batch);
    }
    critic.gradient(&feed.a, &feed.b, batch, &mut |i, scores, grad| rows.push(bound.rule(i, scores, grad)));
}

/// The mean; NaN of nothing.
fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, n) = values.fold((0.0, 0usize), |(sum, n), value| (sum + value, n + 1));
    sum / n as f64
}

/// Batches in the form that critics read.
struct Feed<'a> {
    pairs: &'a Pairs<'a>,
    scaling: (Scaling, Scaling),
    a: Vec<f32>,
    b: Vec<f32>,
}

impl<'a> Feed<'a> {
    fn new(pairs: &'a Pairs<'a>, settings: &Settings, train: &[usize]) -> Feed<'a> {
        let scaling = if settings.standardize {
            (Scaling::standard(&pairs.a, train), Scaling::standard(&pairs.b, train))
        } else {
            (Scaling::identity(&pairs.a), Scaling::identity(&pairs.b))
        };
        Feed { pairs, scaling, a: Vec::new(), b: Vec::new() }
    }

    fn load(&mut self, at: &[usize]) {
        self.scaling.0.gather(&self.pairs.a, at, &mut self.a);
        self.scaling.1.gather(&self.pairs.b, at, &mut self.b);
    }
}

/// Full batches of the training pairs, in a new order in every pass; the rest of a pass is left out.
struct Batches {
    order: Vec<usize>,
    next: usize,
    stream: Stream,
}

impl Batches {
    fn next(&mut self, batch: usize) -> &[usize] {
        if self.next.saturating_add(batch) > self.order.len() {
            self.stream.shuffle(&mut self.order);
            self.next = 0;
        }
        let from = self.next;
        self.next += batch;
        &self.order[from..from + batch]
    }
}

/// Fixed random partitions of pairs into batches, the same at every readout so that readouts compare.
struct Partitions {
    /// Positions among all pairs.
    positions: Vec<usize>,
    /// Each batch as indices into `positions`.
    batches: Vec<Vec<usize>>,
}

impl Partitions {
    fn new(positions: &[usize], batch: usize, mut stream: Stream) -> Partitions {
        let partition = |_| -> Vec<Vec<usize>> {
            let order = stream.permutation(positions.len());
            order.chunks_exact(batch).map(<[usize]>::to_vec).collect()
        };
        Partitions { positions: positions.to_vec(), batches: (0..PARTITIONS).flat_map(partition).collect() }
    }

    /// What the critic shows of the pairs.
    fn read(&self, critic: &mut dyn Critic<f32>, bound: &dyn Bound<f32>, feed: &mut Feed<'_>) -> Seen {
        let mut rows = Vec::with_capacity(self.batches.iter().map(Vec::len).sum());
        for batch in &self.batches {
            let positions: Vec<usize> = batch.iter().map(|&at| self.positions[at]).collect();
            feed.load(&positions);
            let scores = critic.scores(&feed.a, &feed.b, batch.len());
            rows.extend(scores.chunks_exact(batch.len()).enumerate().map(|(i, scores)| bound.row(i, scores)));
        }
        let mut sums = vec![(0.0, 0usize); self.positions.len()];
        for (&at, value) in self.batches.iter().flatten().zip(bound.contributions(&rows)) {
            sums[at].0 += value;
            sums[at].1 += 1;
        }
        let contributions: Vec<Option<f64>> =
            sums.into_iter().map(|(sum, n)| (n > 0).then(|| sum / n as f64)).collect();
        let mut seen = Seen { contributions, known_error: None };
        if !rows.is_empty() {
            seen.known_error = bound.known_error(&rows, seen.value(), self.positions.len());
        }
        seen
    }
}

/// What a critic shows of some pairs.
struct Seen {
    /// Mean contribution of each pair over the batches that it is in; `None` for one that is in none.
    contributions: Vec<Option<f64>>,
    /// [`Bound::known_error`] of the value.
    known_error: Option<f64>,
}

impl Seen {
    /// The estimate; NaN of nothing.
    fn value(&self) -> f64 {
        mean(self.contributions.iter().copied().flatten())
    }
}

/// The readouts so far, with what the held-out pairs showed at each.
#[derive(Default)]
struct Course {
    readouts: Vec<Readout>,
    held_out: Vec<Seen>,
    /// Position of the best validation value.
    best: usize,
}

impl Course {
    fn push(&mut self, readout: Readout, held_out: Seen) {
        if self.readouts.get(self.best).is_none_or(|best| readout.validation > best.validation) {
            self.best = self.readouts.len();
        }
        self.readouts.push(readout);
        self.held_out.push(held_out);
    }

    /// Readouts since the best one.
    fn stale(&self) -> usize {
        self.readouts.len().saturating_sub(self.best + 1)
    }

    fn finish(self, settings: &Settings, bound: &dyn Bound<f32>, parts: Parts) -> Fit {
        let mut window: Vec<usize> = (0..self.readouts.len()).collect();
        if settings.patience.is_some() {
            // By validation pairs only, so that the choice does not favour the held-out value.
            window.sort_by(|&i, &j| self.readouts[i].validation.total_cmp(&self.readouts[j].validation));
        }
        window.drain(..window.len().saturating_sub(READOUTS_AVERAGED));
        let of_window = || window.iter().map(|&at| &self.readouts[at]);
        let contributions = (0..parts.held_out)
            .map(|pair| mean(window.iter().filter_map(|&at| self.held_out[at].contributions[pair])))
            .filter(|value| value.is_finite())
            .collect();
        let known: Vec<f64> = window.iter().filter_map(|&at| self.held_out[at].known_error).collect();
        Fit {
            held_out: mean(of_window().map(|r| r.held_out)),
            train: mean(of_window().map(|r| r.train)),
            contributions,
            ceiling: bound.ceiling(settings.batch),
            known_error: (!known.is_empty()).then(|| mean(known.iter().copied())),
            n_train: parts.train,
            n_held_out: parts.held_out,
            readouts: self.readouts,
        }
    }
}

#[cfg(test)]
#[path = "fit_tests.rs"]
mod tests;
