//! Optimisers over a network's flat parameter buffer, one pass over memory a step.
//!
//! PyTorch's semantics, so that recipes carry over: SGD adds the weight decay to the gradient and starts its momentum
//! buffer with the first gradient (no dampening); AdamW (Loshchilov & Hutter 2019) decays the weights directly and
//! corrects both moments for their bias. Weight decay covers every parameter, those of normalisation layers too, as
//! it does in PyTorch and in BackdoorBench.
//!
//! Every parameter is updated on its own, so the result does not depend on the number of threads.

use crate::error::{Error, Result};
use crate::kernels::{Isa, l2};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Parameters that one task updates; large enough to outweigh the hand-over, small enough to share ResNet-8 out.
const CHUNK: usize = 1 << 14;

/// Adam's decay rates and the term that keeps its denominator above zero: PyTorch's defaults.
const BETAS: (f64, f64) = (0.9, 0.999);
const EPSILON: f64 = 1e-8;

/// What an AdamW step needs besides its factors: 1 - beta1, beta2, 1 - beta2, epsilon.
pub(super) const ADAMW_CONSTANTS: [f32; 4] =
    [(1.0 - BETAS.0) as f32, BETAS.1 as f32, (1.0 - BETAS.1) as f32, EPSILON as f32];

/// Step size, square root of the second bias correction, and the share of a weight that decay leaves, for AdamW's step
/// number `step` (from 1) at learning rate `rate`.
pub(super) fn adamw_factors(rate: f64, step: u64, weight_decay: f64) -> [f32; 3] {
    let t = step as f64;
    let step_size = rate / (1.0 - libm::pow(BETAS.0, t));
    let root_correction = (1.0 - libm::pow(BETAS.1, t)).sqrt();
    [step_size as f32, root_correction as f32, (1.0 - rate * weight_decay) as f32]
}

/// An optimiser, by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Stochastic gradient descent with momentum.
    #[default]
    Sgd,
    /// Adam with decoupled weight decay, betas 0.9 and 0.999; `momentum` and `nesterov` do not apply.
    Adamw,
}

impl Kind {
    /// The name in parameters and messages.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Sgd => "sgd",
            Kind::Adamw => "adamw",
        }
    }
}

/// What does not change while an optimiser runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// Which optimiser.
    pub kind: Kind,
    /// Momentum of SGD, in [0, 1).
    pub momentum: f64,
    /// Whether SGD looks ahead (Nesterov).
    pub nesterov: bool,
    /// Weight decay, not negative.
    pub weight_decay: f64,
}

/// An optimiser with its state.
#[derive(Clone, Debug)]
pub struct Optimiser {
    config: Config,
    /// Steps taken.
    steps: u64,
    /// Momentum of SGD, first moment of AdamW; [n_parameters], empty when the rule needs none.
    first: Vec<f32>,
    /// Second moment of AdamW; [n_parameters] or empty.
    second: Vec<f32>,
}

impl Optimiser {
    /// An optimiser for `n_parameters` parameters that has taken no step.
    pub fn new(config: Config, n_parameters: usize) -> Optimiser {
        let (first, second) = match config.kind {
            Kind::Sgd if config.momentum == 0.0 => (0, 0),
            Kind::Sgd => (n_parameters, 0),
            Kind::Adamw => (n_parameters, n_parameters),
        };
        Optimiser { config, steps: 0, first: vec![0.0; first], second: vec![0.0; second] }
    }

    /// One step: updates `params` by `grads` (equally long) at the learning rate `rate`.
    pub fn step(&mut self, params: &mut [f32], grads: &[f32], rate: f64) {
        self.steps += 1;
        let Config { kind, momentum, nesterov, weight_decay } = self.config;
        let (rate32, momentum, decay) = (rate as f32, momentum as f32, weight_decay as f32);
        let chunks = params.par_chunks_mut(CHUNK).zip(grads.par_chunks(CHUNK));
        match kind {
            Kind::Sgd if self.first.is_empty() => chunks.for_each(|(params, grads)| {
                for (weight, &grad) in params.iter_mut().zip(grads) {
                    *weight -= rate32 * (grad + decay * *weight);
                }
            }),
            Kind::Sgd => {
                // The first buffer is the first gradient itself; it starts at zero, so that momentum does not matter.
                chunks.zip(self.first.par_chunks_mut(CHUNK)).for_each(|((params, grads), buffers)| {
                    for ((weight, &grad), buffer) in params.iter_mut().zip(grads).zip(buffers) {
                        let grad = grad + decay * *weight;
                        *buffer = momentum * *buffer + grad;
                        *weight -= rate32 * if nesterov { grad + momentum * *buffer } else { *buffer };
                    }
                });
            }
            Kind::Adamw => {
                let [step_size, root_correction, keep] = adamw_factors(rate, self.steps, weight_decay);
                let [new1, beta2, new2, epsilon] = ADAMW_CONSTANTS;
                chunks.zip(self.first.par_chunks_mut(CHUNK)).zip(self.second.par_chunks_mut(CHUNK)).for_each(
                    |(((params, grads), firsts), seconds)| {
                        for (((weight, &grad), first), second) in params.iter_mut().zip(grads).zip(firsts).zip(seconds)
                        {
                            *first += new1 * (grad - *first);
                            *second = beta2 * *second + new2 * grad * grad;
                            *weight = keep * *weight - step_size * *first / (second.sqrt() / root_correction + epsilon);
                        }
                    },
                );
            }
        }
    }

    /// Steps taken, first and second moments: all that a checkpoint must keep.
    pub fn state(&self) -> (u64, &[f32], &[f32]) {
        (self.steps, &self.first, &self.second)
    }

    /// Takes up what [`Optimiser::state`] gave.
    ///
    /// # Errors
    /// A state of another optimiser or another network.
    pub fn restore(&mut self, steps: u64, first: Vec<f32>, second: Vec<f32>) -> Result<()> {
        if (first.len(), second.len()) != (self.first.len(), self.second.len()) {
            return Err(Error::machine(format!(
                "optimiser state of {} and {} values, expected {} and {}",
                first.len(),
                second.len(),
                self.first.len(),
                self.second.len()
            )));
        }
        (self.steps, self.first, self.second) = (steps, first, second);
        Ok(())
    }
}

/// Shortens a gradient to `longest`, as `torch.nn.utils.clip_grad_norm_`.
pub fn clip(gradient: &mut [f32], longest: f64) {
    let length = l2::length(Isa::best(), gradient);
    if length > longest {
        let scale = (longest / length) as f32;
        gradient.iter_mut().for_each(|g| *g *= scale);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::golden;

    /// `name` is a trajectory in the golden file that PyTorch wrote.
    fn check_trajectory(name: &str, config: Config) {
        let golden = golden::torch();
        let mut params: Vec<f32> = golden::floats(&golden["start"]).iter().map(|&v| v as f32).collect();
        let mut optimiser = Optimiser::new(config, params.len());
        let steps = golden["grads"].as_array().unwrap().iter().zip(golden[name].as_array().unwrap());
        for (i, ((grads, after), rate)) in steps.zip(golden::floats(&golden["rates"])).enumerate() {
            let grads: Vec<f32> = golden::floats(grads).iter().map(|&v| v as f32).collect();
            optimiser.step(&mut params, &grads, rate);
            for (ours, theirs) in params.iter().zip(golden::floats(after)) {
                let error = (f64::from(*ours) - theirs).abs();
                assert!(error <= 2e-6 * theirs.abs().max(0.1), "{name}, step {i}: {ours} instead of {theirs}");
            }
        }
    }

    #[test]
    fn trajectories_equal_those_of_pytorch() {
        let sgd = Config { kind: Kind::Sgd, momentum: 0.0, nesterov: false, weight_decay: 0.0 };
        check_trajectory("sgd", sgd);
        check_trajectory("sgd_decay", Config { weight_decay: 0.05, ..sgd });
        check_trajectory("sgd_momentum", Config { momentum: 0.9, weight_decay: 5e-4, ..sgd });
        check_trajectory("sgd_nesterov", Config { momentum: 0.9, weight_decay: 5e-4, nesterov: true, ..sgd });
        check_trajectory("adamw", Config { kind: Kind::Adamw, weight_decay: 0.01, ..sgd });
    }

    #[test]
    fn a_restored_optimiser_goes_on_as_if_nothing_had_happened() {
        let config = Config { kind: Kind::Adamw, momentum: 0.9, nesterov: false, weight_decay: 0.01 };
        let grads: Vec<f32> = (0..CHUNK + 7).map(|i| (i as f32 * 0.37).sin()).collect();
        let mut params = vec![0.5f32; grads.len()];
        let mut whole = Optimiser::new(config, grads.len());
        whole.step(&mut params, &grads, 0.01);
        let mut resumed = Optimiser::new(config, grads.len());
        let (steps, first, second) = whole.state();
        resumed.restore(steps, first.to_vec(), second.to_vec()).unwrap();
        let mut again = params.clone();
        whole.step(&mut params, &grads, 0.02);
        resumed.step(&mut again, &grads, 0.02);
        assert_eq!(params, again);
        assert!(resumed.restore(1, vec![0.0], vec![]).is_err());
    }
}
