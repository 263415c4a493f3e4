//! Parameters of `evaluate/information_bounds`.

use crate::information::estimator::{Chosen, Constants};
use crate::param::{Count, Fraction, NonNegative, Positive};
use crate::stages::evaluate::information::params::{Common, Critic, Schedule, Training, number, training};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Measures what labels, images, representations and outputs know of the backdoor, and checks the data-processing chain.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The estimator.
    pub estimator: Chosen,
    /// Layers out of those observed; empty for all of them.
    pub layers: Vec<String>,
    /// Epochs out of those observed; empty for all of them.
    pub epochs: Vec<usize>,
    /// Adds what the published code prints in place of I(B;Y) and I(B;Ŷ), for comparison.
    pub legacy: bool,
    /// Share of the pairs that is held out from the critic and read; at least one batch.
    pub held_out: Fraction,
    /// Critic seeds, each with its own held-out pairs, initial weights and order.
    pub repeats: Count,
    /// Share of a new batch in MINE's moving average of the partition function, above 0; 1 leaves the gradient biased.
    pub mine_rate: Fraction,
    /// Scores beyond this count as this in SMILE's partition function, in nats.
    pub smile_clip: Positive,
    /// The form of the critic.
    pub critic: Critic,
    /// Units of each hidden layer of the critic.
    pub hidden: Count,
    /// Coordinates of the embeddings of a separable critic.
    pub embedding: Count,
    /// Whether every coordinate is brought to mean 0 and variance 1 before the critic reads it.
    pub standardize: bool,
    /// Readouts of a critic, evenly over its steps; the last five count.
    #[schemars(range(min = 1, max = 10_000))]
    pub readouts: usize,
    /// Stops a critic once so many readouts brought no better value on validation pairs; 0 for never.
    #[schemars(range(max = 10_000))]
    pub early_stopping: usize,
    /// Training of the critics.
    pub training: BoundsTraining,
}

impl Default for Params {
    fn default() -> Params {
        Params {
            estimator: Chosen::default(),
            layers: Vec::new(),
            epochs: Vec::new(),
            legacy: false,
            held_out: number(Fraction::new(0.25)),
            repeats: number(Count::new(3)),
            mine_rate: number(Fraction::new(Constants::default().mine_rate)),
            smile_clip: number(Positive::new(Constants::default().smile_clip)),
            critic: Critic::Concat,
            hidden: number(Count::new(128)),
            embedding: number(Count::new(32)),
            standardize: true,
            readouts: 20,
            early_stopping: 5,
            training: BoundsTraining::default(),
        }
    }
}

training!(
    /// How the critics are trained; batch and hidden units as in the paper's code.
    BoundsTraining, batch: 256, steps: 1500, learning_rate: 3e-4
);

impl Params {
    /// What all critics have in common.
    pub fn common(&self) -> Common {
        Common {
            estimator: self.estimator,
            constants: Constants { mine_rate: self.mine_rate.get(), smile_clip: self.smile_clip.get() },
            critic: self.critic,
            hidden: self.hidden.get(),
            embedding: self.embedding.get(),
            standardize: self.standardize,
            readouts: self.readouts,
            held_out: self.held_out.get(),
            early_stopping: self.early_stopping,
        }
    }
}
