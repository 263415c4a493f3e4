//! Learning-rate schedules, with PyTorch's formulas.
//!
//! All but one-cycle and the warm-up move between epochs. The plateau schedule watches a loss that its owner hands in:
//! the validation loss where there is a validation split, the training loss otherwise, never a test loss.

use crate::error::{Error, Result};
use crate::param::{Count, Fraction, NonNegative, Positive};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Shape of a schedule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// `learning_rate` throughout.
    Constant,
    /// Multiplied by `factor` every `every` epochs.
    Step,
    /// Multiplied by `factor` after each epoch of `milestones`.
    MultiStep,
    /// Half a cosine from `learning_rate` down to `minimum` over all epochs.
    #[default]
    Cosine,
    /// One cosine up to `learning_rate` and one down to almost nothing, moved after every step (Smith & Topin 2018,
    /// as in PyTorch's OneCycleLR without its momentum cycle).
    OneCycle,
    /// Multiplied by `factor` when the loss has not improved for more than `patience` epochs. The loss is that of the
    /// validation split if there is one, otherwise the training loss.
    Plateau,
}

impl Kind {
    /// The name in parameters and messages.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Constant => "constant",
            Kind::Step => "step",
            Kind::MultiStep => "multi-step",
            Kind::Cosine => "cosine",
            Kind::OneCycle => "one-cycle",
            Kind::Plateau => "plateau",
        }
    }
}

/// How the learning rate moves. Defaults of the numbers are PyTorch's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The shape.
    pub kind: Kind,
    /// What step, multi-step and plateau multiply the rate by.
    pub factor: Fraction,
    /// Epochs between two drops of step.
    pub every: Count,
    /// Epochs after which multi-step drops the rate, ascending.
    pub milestones: Vec<usize>,
    /// The rate below which cosine and plateau do not go.
    pub minimum: NonNegative,
    /// Epochs without improvement that plateau tolerates.
    pub patience: usize,
    /// Relative improvement of the loss that counts as one for plateau.
    pub threshold: Fraction,
    /// Share of all steps that one-cycle climbs.
    pub rise: Fraction,
    /// One-cycle starts at `learning_rate` divided by this.
    pub start_divisor: Positive,
    /// One-cycle ends at its start divided by this.
    pub end_divisor: Positive,
    /// Epochs over which the rate first grows linearly from almost nothing; not for one-cycle, which climbs by itself.
    pub warmup: usize,
}

const fn default<T: Copy>(value: Option<T>) -> T {
    match value {
        Some(value) => value,
        None => panic!("a default lies outside its range"),
    }
}

/// Evaluated at compile time, so a default outside its range does not compile.
mod defaults {
    use super::*;
    pub const FACTOR: Fraction = default(Fraction::new(0.1));
    pub const EVERY: Count = default(Count::new(30));
    pub const MINIMUM: NonNegative = default(NonNegative::new(0.0));
    pub const THRESHOLD: Fraction = default(Fraction::new(1e-4));
    pub const RISE: Fraction = default(Fraction::new(0.3));
    pub const START_DIVISOR: Positive = default(Positive::new(25.0));
    pub const END_DIVISOR: Positive = default(Positive::new(1e4));
}

impl Default for Params {
    fn default() -> Params {
        Params {
            kind: Kind::Cosine,
            factor: defaults::FACTOR,
            every: defaults::EVERY,
            milestones: Vec::new(),
            minimum: defaults::MINIMUM,
            patience: 10,
            threshold: defaults::THRESHOLD,
            rise: defaults::RISE,
            start_divisor: defaults::START_DIVISOR,
            end_divisor: defaults::END_DIVISOR,
            warmup: 0,
        }
    }
}

/// A schedule at work.
#[derive(Clone, Debug)]
pub struct Schedule {
    params: Params,
    base: f64,
    epochs: usize,
    steps_per_epoch: usize,
    plateau: Plateau,
}

/// What plateau remembers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plateau {
    /// The rate at present.
    pub rate: f64,
    /// The lowest loss so far; infinite before the first.
    pub best: f64,
    /// Epochs since then.
    pub waited: u64,
}

impl Schedule {
    /// A schedule over `epochs` epochs of `steps_per_epoch` steps around the learning rate `base`.
    pub fn new(params: &Params, base: f64, epochs: usize, steps_per_epoch: usize) -> Schedule {
        let plateau = Plateau { rate: base, best: f64::INFINITY, waited: 0 };
        Schedule { params: params.clone(), base, epochs, steps_per_epoch, plateau }
    }

    /// The rate for step `step` of epoch `epoch`, both from 0.
    pub fn rate(&self, epoch: usize, step: usize) -> f64 {
        let p = &self.params;
        let rate = match p.kind {
            Kind::Constant => self.base,
            Kind::Step => self.base * libm::pow(p.factor.get(), (epoch / p.every.get()) as f64),
            Kind::MultiStep => {
                let drops = p.milestones.iter().filter(|&&milestone| milestone <= epoch).count();
                self.base * libm::pow(p.factor.get(), drops as f64)
            }
            Kind::Cosine => between(self.base, p.minimum.get(), epoch as f64 / self.epochs as f64),
            Kind::OneCycle => return self.one_cycle(epoch * self.steps_per_epoch + step),
            Kind::Plateau => self.plateau.rate,
        };
        let warmup = p.warmup * self.steps_per_epoch;
        let done = epoch * self.steps_per_epoch + step;
        if done < warmup { rate * (done + 1) as f64 / warmup as f64 } else { rate }
    }

    /// PyTorch's OneCycleLR, cosine annealing, two phases.
    fn one_cycle(&self, done: usize) -> f64 {
        let p = &self.params;
        let start = self.base / p.start_divisor.get();
        let last = (self.epochs * self.steps_per_epoch) as f64 - 1.0;
        let top = p.rise.get() * (last + 1.0) - 1.0;
        let done = done as f64;
        if done <= top {
            between(start, self.base, done / top.max(f64::MIN_POSITIVE))
        } else {
            let share = if last > top { ((done - top) / (last - top)).min(1.0) } else { 1.0 };
            between(self.base, start / p.end_divisor.get(), share)
        }
    }

    /// Tells the schedule how an epoch ended: `loss` on the validation split, or on the training data without one.
    pub fn end_epoch(&mut self, loss: f64) {
        if self.params.kind != Kind::Plateau {
            return;
        }
        let plateau = &mut self.plateau;
        if loss < plateau.best * (1.0 - self.params.threshold.get()) || plateau.best.is_infinite() {
            (plateau.best, plateau.waited) = (loss, 0);
        } else {
            plateau.waited += 1;
        }
        if plateau.waited > self.params.patience as u64 {
            let lower = (plateau.rate * self.params.factor.get()).max(self.params.minimum.get());
            // PyTorch leaves the rate alone when it would hardly move.
            if plateau.rate - lower > 1e-8 {
                plateau.rate = lower;
            }
            plateau.waited = 0;
        }
    }

    /// All that a checkpoint must keep.
    pub fn state(&self) -> Plateau {
        self.plateau
    }

    /// Takes up what [`Schedule::state`] gave.
    ///
    /// # Errors
    /// A rate that is none.
    pub fn restore(&mut self, state: Plateau) -> Result<()> {
        if !state.rate.is_finite() || state.rate < 0.0 {
            return Err(Error::machine(format!("a learning rate of {} cannot be", state.rate)));
        }
        self.plateau = state;
        Ok(())
    }
}

/// Half a cosine from `from` (share 0) to `to` (share 1).
fn between(from: f64, to: f64, share: f64) -> f64 {
    to + (from - to) / 2.0 * (1.0 + libm::cos(std::f64::consts::PI * share))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::golden;

    fn read(text: &str) -> Params {
        serde_json::from_str(text).unwrap()
    }

    /// `name` is a list of rates in the golden file that PyTorch wrote, `losses` what plateau is told.
    fn check_rates(name: &str, params: &str, (epochs, steps): (usize, usize), losses: &[f64]) {
        let golden = golden::torch();
        let mut schedule = Schedule::new(&read(params), 0.1, epochs, steps);
        let theirs = golden::floats(&golden[name]);
        assert_eq!(theirs.len(), epochs * steps);
        for (i, theirs) in theirs.iter().enumerate() {
            let ours = schedule.rate(i / steps, i % steps);
            assert!((ours - theirs).abs() <= 1e-12, "{name}, step {i}: {ours} instead of {theirs}");
            schedule.end_epoch(losses.get(i).copied().unwrap_or(0.0));
        }
    }

    #[test]
    fn rates_equal_those_of_pytorch() {
        check_rates("step", r#"{"kind": "step", "every": 3, "factor": 0.5}"#, (10, 1), &[]);
        check_rates("multi_step", r#"{"kind": "multi-step", "milestones": [2, 5, 8]}"#, (10, 1), &[]);
        check_rates("cosine", r#"{"kind": "cosine", "minimum": 0.001}"#, (10, 1), &[]);
        check_rates("one_cycle", r#"{"kind": "one-cycle"}"#, (4, 5), &[]);
        let low = r#"{"kind": "one-cycle", "rise": 0.45, "start_divisor": 4.0, "end_divisor": 50.0}"#;
        check_rates("one_cycle_low", low, (4, 5), &[]);
        let losses = golden::floats(&golden::torch()["plateau_losses"]);
        let plateau = r#"{"kind": "plateau", "factor": 0.5, "patience": 2, "minimum": 0.02}"#;
        check_rates("plateau", plateau, (losses.len(), 1), &losses);
    }

    #[test]
    fn warm_up_grows_linearly() {
        let schedule = Schedule::new(&read(r#"{"kind": "constant", "warmup": 2}"#), 0.8, 10, 4);
        assert_eq!(schedule.rate(0, 0), 0.1);
        assert_eq!(schedule.rate(1, 2), 0.8 * 7.0 / 8.0);
        assert_eq!(schedule.rate(2, 0), 0.8);
    }

    #[test]
    fn one_cycle_of_a_single_step_is_finite() {
        let schedule = Schedule::new(&read(r#"{"kind": "one-cycle"}"#), 0.1, 1, 1);
        assert!(schedule.rate(0, 0).is_finite());
    }
}
