//! Parameters of `evaluate/information`, and those of critics that other stages share.

use crate::information::estimator::{Chosen, Constants};
use crate::information::fit::{self, Settings};
use crate::param::{Count, Fraction, NonNegative, Positive};
use crate::stage::Problem;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Estimates I(X;T) and I(T;Y) per observed epoch, layer and subset of samples, from a training trace.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The estimator.
    pub estimator: Chosen,
    /// What to estimate.
    pub quantities: Vec<Quantity>,
    /// Subsets of the observed samples: `all`, a class by assigned label (`0`), a role (`clean`, `backdoor`, `cover`),
    /// both (`0_backdoor`), or a mixture (`0_sample`: half backdoored, half clean samples of class 0, together as many
    /// as class 1 has).
    pub subsets: Vec<String>,
    /// Layers out of those observed; empty for all of them.
    pub layers: Vec<String>,
    /// Epochs out of those observed; empty for all of them.
    pub epochs: Vec<usize>,
    /// What Y is.
    pub y: Output,
    /// Standard deviation of Gaussian noise that the estimator adds to every coordinate of T, one draw a sample. Noise
    /// makes I(X;T) finite; more of it costs no re-training.
    pub noise: NonNegative,
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
    /// Whether every coordinate is brought to mean 0 and variance 1 before the critic reads it: an invertible map, which
    /// leaves mutual information as it is and lets critics learn faster. Without it, pixels lie in [0, 1].
    pub standardize: bool,
    /// Readouts of a critic, evenly over its steps; the last five count.
    #[schemars(range(min = 1, max = 10_000))]
    pub readouts: usize,
    /// Stops a critic once so many readouts brought no better value on validation pairs, as many as the held-out ones and
    /// carved from its training pairs; the five readouts with the best validation values then count. 0 for critics that
    /// take all their steps, with all pairs that are not held out.
    #[schemars(range(max = 10_000))]
    pub early_stopping: usize,
    /// Adds what the published code would read off the same critics, for comparison.
    pub legacy: bool,
    /// Training of the critics of I(X;T).
    pub xt: InputTraining,
    /// Training of the critics of I(T;Y).
    pub ty: OutputTraining,
}

impl Default for Params {
    fn default() -> Params {
        let names = ["0", "0_backdoor", "0_clean", "0_sample", "1", "2", "3"];
        Params {
            estimator: Chosen::default(),
            quantities: vec![Quantity::Xt, Quantity::Ty],
            subsets: names.map(String::from).to_vec(),
            layers: Vec::new(),
            epochs: Vec::new(),
            y: Output::Logits,
            noise: number(NonNegative::new(0.0)),
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
            legacy: false,
            xt: InputTraining::default(),
            ty: OutputTraining::default(),
        }
    }
}

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

    /// How the critics of `quantity` are built, trained and read.
    pub fn settings(&self, quantity: Quantity) -> Settings {
        match quantity {
            Quantity::Xt => self.common().settings(self.xt.training()),
            Quantity::Ty => self.common().settings(self.ty.training()),
        }
    }
}

/// A default, which lies in its type's range.
pub fn number<T>(value: Option<T>) -> T {
    value.unwrap_or_else(|| unreachable!("defaults lie in their ranges"))
}

/// A pair of variables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Quantity {
    /// I(X;T): what the representation knows of the image.
    Xt,
    /// I(T;Y): what the representation knows of the output.
    Ty,
}

impl Quantity {
    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Quantity::Xt => "I(X;T)",
            Quantity::Ty => "I(T;Y)",
        }
    }
}

/// What Y is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Output {
    /// The network's logits, as in the paper's code.
    Logits,
    /// The label that training sees, one-hot: then I(T;Y) is at most H(Y), and 0 within a class.
    Labels,
}

/// The form of a critic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Critic {
    /// One network over both variables, as in the paper.
    Concat,
    /// Two networks and their scalar product: much faster, less expressive.
    Separable,
}

/// How the learning rate of a critic goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Down to zero along half a cosine.
    Cosine,
    /// Always the same.
    Constant,
}

/// What all critics of a stage have in common.
#[derive(Clone, Debug)]
pub struct Common {
    /// The estimator.
    pub estimator: Chosen,
    /// Its constants.
    pub constants: Constants,
    /// The form of the critic.
    pub critic: Critic,
    /// Units of each hidden layer.
    pub hidden: usize,
    /// Coordinates of the embeddings of a separable critic.
    pub embedding: usize,
    /// Whether coordinates are brought to mean 0 and variance 1.
    pub standardize: bool,
    /// Readouts of a critic.
    pub readouts: usize,
    /// Share of the pairs that is held out.
    pub held_out: f64,
    /// Readouts without a better validation value that end a training; 0 for never.
    pub early_stopping: usize,
}

impl Common {
    /// What is wrong with them, and with batches of so many pairs: (parameter, size).
    pub fn problems(&self, batches: &[(&'static str, usize)]) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut problem = |parameter, message: String, hint: &str| {
            problems.push(Problem { parameter, message, hint: Some(hint.to_string()) });
        };
        if !(0.0 < self.held_out && self.held_out < 1.0) {
            let message = format!("must lie above 0 and below 1, got {}", self.held_out);
            problem("held_out", message, "0.25 holds out a quarter");
        }
        for &(parameter, batch) in batches.iter().filter(|(_, batch)| *batch < 2) {
            let message = format!("must be at least 2, got {batch}");
            problem(parameter, message, "the others of a batch are the negatives");
        }
        if self.readouts == 0 {
            problem("readouts", "must be at least 1, got 0".into(), "20 is plenty");
        }
        if self.constants.mine_rate <= 0.0 {
            problem("mine_rate", "must lie above 0, got 0".into(), "0.01 averages over some hundred batches");
        }
        problems
    }
}

/// How one critic is trained.
#[derive(Clone, Copy, Debug)]
pub struct Training {
    /// Pairs of a batch.
    pub batch: usize,
    /// Steps of the optimiser.
    pub steps: usize,
    /// Learning rate of AdamW, at the start.
    pub learning_rate: f64,
    /// How the learning rate goes.
    pub schedule: Schedule,
    /// Weight decay of AdamW.
    pub weight_decay: f64,
    /// Largest norm of the gradient.
    pub clip: f64,
}

impl Common {
    /// How critics that are trained in this way are built, trained and read.
    pub fn settings(&self, training: Training) -> Settings {
        Settings {
            estimator: self.estimator,
            constants: self.constants,
            form: match self.critic {
                Critic::Concat => fit::Form::Concat,
                Critic::Separable => fit::Form::Separable,
            },
            hidden: self.hidden,
            embedding: self.embedding,
            standardize: self.standardize,
            batch: training.batch,
            steps: training.steps,
            learning_rate: training.learning_rate,
            schedule: match training.schedule {
                Schedule::Cosine => fit::Schedule::Cosine,
                Schedule::Constant => fit::Schedule::Constant,
            },
            weight_decay: training.weight_decay,
            clip: training.clip,
            readouts: self.readouts.min(training.steps),
            held_out: self.held_out,
            patience: (self.early_stopping > 0).then_some(self.early_stopping),
        }
    }
}

/// Declares the parameters of a training with its defaults, for [`Common::settings`].
macro_rules! training {
    ($(#[$doc:meta])* $name:ident, batch: $batch:literal, steps: $steps:literal, learning_rate: $rate:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            /// Pairs of a batch; InfoNCE cannot exceed the logarithm of it.
            #[schemars(range(min = 2, max = 65_536))]
            pub batch: usize,
            /// Steps of the optimiser.
            pub steps: Count,
            /// Learning rate of AdamW.
            pub learning_rate: Positive,
            /// How the learning rate goes.
            pub schedule: Schedule,
            /// Weight decay of AdamW.
            pub weight_decay: NonNegative,
            /// Largest norm of the gradient.
            pub clip: Positive,
        }

        impl Default for $name {
            fn default() -> $name {
                $name {
                    batch: $batch,
                    steps: number(Count::new($steps)),
                    learning_rate: number(Positive::new($rate)),
                    schedule: Schedule::Cosine,
                    weight_decay: number(NonNegative::new(1e-4)),
                    clip: number(Positive::new(5.0)),
                }
            }
        }

        impl $name {
            /// The numbers.
            pub fn training(&self) -> Training {
                Training {
                    batch: self.batch,
                    steps: self.steps.get(),
                    learning_rate: self.learning_rate.get(),
                    schedule: self.schedule,
                    weight_decay: self.weight_decay.get(),
                    clip: self.clip.get(),
                }
            }
        }
    };
}

pub(crate) use training;

// The paper's 350 passes over half of the 35 batches of a class of CIFAR-10.
training!(
    /// How the critics of I(X;T) are trained; defaults as in the paper's code.
    InputTraining, batch: 128, steps: 6000, learning_rate: 3e-4
);
// The paper's 200 passes over half of the 9 batches of a class of CIFAR-10.
training!(
    /// How the critics of I(T;Y) are trained; defaults as in the paper's code.
    OutputTraining, batch: 512, steps: 900, learning_rate: 5e-4
);
