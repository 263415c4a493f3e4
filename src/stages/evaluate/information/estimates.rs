//! Many estimates at once, and the form in which a checkpoint keeps them.

use crate::artifact::table::{Cell, Column};
use crate::error::Result;
use crate::information::fit::{self, Fit, Settings, Task};
use crate::information::interval::{self, Estimate};
use crate::information::pairs::Pairs;
use crate::rng::Stream;
use crate::stage::Context;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};

/// One quantity to estimate.
pub struct Job<'a> {
    /// Samples of both variables.
    pub pairs: Pairs<'a>,
    /// How critics are built, trained and read.
    pub settings: Settings,
    /// The draws of its critics.
    pub stream: Stream,
}

/// Where a stack of critics stands in the stage's work.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// Critics done before.
    pub before: usize,
    /// Critics of the whole stage.
    pub total: usize,
    /// The latest finished estimate.
    pub headline: &'a str,
}

/// Trains `repeats` critics for every job, all of them as one stack; the estimates come in the order of the jobs.
///
/// # Errors
/// As [`fit::fit`].
pub fn estimate(cx: &Context, jobs: &[Job<'_>], repeats: usize, progress: Progress<'_>) -> Result<Vec<Found>> {
    let critics = |job| (0..repeats).map(move |repeat| critic(job, repeat));
    let tasks: Vec<Task<'_>> = jobs.iter().flat_map(critics).collect();
    let n_done = AtomicU64::new(progress.before as u64);
    let done = || {
        let n = n_done.fetch_add(1, Ordering::Relaxed) + 1;
        cx.progress(n, progress.total as u64, "critics", progress.headline);
    };
    let fits = fit::stack(&tasks, &|| cx.should_stop(), &done)?;
    let of_jobs = jobs.iter().zip(fits.chunks_exact(repeats.max(1)));
    Ok(of_jobs.filter_map(|(job, fits)| Found::join(fits, &job.stream)).collect())
}

fn critic<'a>(job: &'a Job<'a>, repeat: usize) -> Task<'a> {
    Task { pairs: &job.pairs, settings: &job.settings, stream: job.stream.child(&repeat.to_string()) }
}

/// A float kept by its bits, so that a resumed run gives the same bytes, NaN included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bits(u64);

impl From<f64> for Bits {
    fn from(value: f64) -> Bits {
        Bits(value.to_bits())
    }
}

impl Bits {
    /// The float.
    pub fn get(self) -> f64 {
        f64::from_bits(self.0)
    }
}

impl From<Bits> for Cell {
    fn from(bits: Bits) -> Cell {
        bits.get().into()
    }
}

/// An estimate and the course of its critics.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// On held-out pairs, in nats.
    pub estimate: Bits,
    /// On the critics' training pairs, in nats.
    pub train: Bits,
    /// The 95 % interval.
    pub interval: [Bits; 2],
    /// What the estimator cannot exceed.
    pub ceiling: Option<Bits>,
    /// The size of an error that is known to be in the estimate.
    pub known_error: Option<Bits>,
    /// Training pairs of a critic.
    pub n_train: usize,
    /// Held-out pairs of a critic.
    pub n_held_out: usize,
    /// Per critic and readout.
    pub course: Vec<Vec<Moment>>,
}

/// One readout: step, then the value on training, validation and held-out pairs.
pub type Moment = (usize, [Bits; 3]);

impl Found {
    fn join(fits: &[Fit], stream: &Stream) -> Option<Found> {
        let joined: Estimate = interval::join(&fits.iter().collect::<Vec<_>>(), &stream.child("bootstrap"))?;
        let course = |fit: &Fit| {
            let moment = |r: &fit::Readout| (r.step, [r.train, r.validation, r.held_out].map(Bits::from));
            fit.readouts.iter().map(moment).collect()
        };
        Some(Found {
            estimate: joined.estimate.into(),
            train: joined.train.into(),
            interval: [joined.low.into(), joined.high.into()],
            ceiling: joined.ceiling.map(Bits::from),
            known_error: joined.known_error.map(Bits::from),
            n_train: joined.n_train,
            n_held_out: joined.n_held_out,
            course: fits.iter().map(course).collect(),
        })
    }

    /// The interval, (low, high).
    pub fn interval(&self) -> (f64, f64) {
        (self.interval[0].get(), self.interval[1].get())
    }

    /// Whether the estimate is so close to the ceiling that the truth may be far larger.
    pub fn is_at_ceiling(&self) -> Option<bool> {
        self.ceiling.map(|ceiling| self.estimate.get() > 0.9 * ceiling.get())
    }
}

/// A column of nats.
pub fn nats(name: &str, definition: &str) -> Column {
    Column::new(name, definition).unit("nats").digits(3)
}

/// The columns of a convergence table that say what was read; [`moments`] fills them.
pub fn course_columns() -> [Column; 5] {
    [
        Column::new("critic", "critic seed, from 0"),
        Column::new("step", "steps of the critic's optimiser"),
        nats("train_nats", "on the training batches since the readout before"),
        nats("validation_nats", "on validation pairs; empty without early stopping").hidden(),
        nats("held_out_nats", "on held-out pairs"),
    ]
}

/// A row for each readout of each critic.
pub fn moments(found: &Found) -> impl Iterator<Item = [Cell; 5]> + '_ {
    found.course.iter().enumerate().flat_map(|(critic, moments)| {
        moments.iter().map(move |&(step, [train, validation, held_out])| {
            [critic.into(), step.into(), train.into(), validation.into(), held_out.into()]
        })
    })
}
