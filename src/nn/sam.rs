//! Sharpness-aware minimisation: the step to the worst point nearby, and back.
//!
//! SAM (Foret et al. 2021, arXiv:2010.01412, eq. 2, with p = 2): `epsilon = rho g / |g|`. ASAM (Kwon et al. 2021,
//! arXiv:2102.11600, algorithm 1, elementwise): `epsilon = rho T^2 g / |T g|` with `T = |w| + eta`, which does not
//! change when weights of one layer grow and those of the next shrink. Both take lengths over the whole flat buffer.
//!
//! A training step is: gradient at w, [`Sam::perturb`], gradient there, [`Sam::restore`], then the optimiser's step
//! with that second gradient. Pass [`Mode::Train`](super::Mode::Train) first and [`Mode::Batch`](super::Mode::Batch)
//! at the perturbed weights, so that the running statistics see every batch once and no perturbed weights.
//!
//! Differs from the ASAM paper's code: there only tensors called `weight` are scaled, here biases are too.

use crate::error::{Error, Result};
use crate::kernels::{Isa, l2};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Parameters that one task moves; as in the optimisers.
const CHUNK: usize = 1 << 14;

/// Added to |w| in ASAM: section 3 of the paper.
const ETA: f32 = 0.01;

/// Which neighbourhood.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Neighbourhood {
    /// A ball: SAM.
    #[default]
    Ball,
    /// A ball whose axes are as long as the weights are large: ASAM.
    Adaptive,
    /// The same with `T = |w|`, nothing added, as FT-SAM's code has it (Zhu et al., ICCV 2023).
    Proportional,
}

impl Neighbourhood {
    /// What is added to |w|; none in a plain ball.
    fn offset(self) -> Option<f32> {
        match self {
            Neighbourhood::Ball => None,
            Neighbourhood::Adaptive => Some(ETA),
            Neighbourhood::Proportional => Some(0.0),
        }
    }
}

/// The perturbation, and the weights that it started from.
#[derive(Clone, Debug)]
pub struct Sam {
    neighbourhood: Neighbourhood,
    rho: f64,
    /// The weights to go back to, [n_parameters]; empty until the first perturbation.
    kept: Vec<f32>,
    is_perturbed: bool,
}

impl Sam {
    /// Radius `rho`, above 0: the papers take 0.05 for SAM and 0.5 for ASAM on CIFAR-10.
    ///
    /// # Errors
    /// A radius that is not finite and above 0.
    pub fn new(neighbourhood: Neighbourhood, rho: f64) -> Result<Sam> {
        if !(rho.is_finite() && rho > 0.0) {
            return Err(Error::user(format!("`rho` must be a finite number above 0, got {rho}")));
        }
        Ok(Sam { neighbourhood, rho, kept: Vec::new(), is_perturbed: false })
    }

    /// Moves `params` by epsilon, from the gradient `grads` there (equally long). Without a gradient they stay.
    ///
    /// # Errors
    /// A perturbation that was not taken back, or a gradient that is not finite; `params` are then as they were.
    pub fn perturb(&mut self, params: &mut [f32], grads: &[f32]) -> Result<()> {
        if self.is_perturbed {
            return Err(Error::stage("weights were perturbed twice: expected `restore` in between"));
        }
        let isa = Isa::best();
        let offset = self.neighbourhood.offset();
        let length = match offset {
            None => l2::length(isa, grads),
            Some(offset) => l2::weighted_length(isa, grads, params, offset),
        };
        if !length.is_finite() {
            return Err(Error::stage("the gradient for a sharpness-aware step is not finite")
                .hint("choose a smaller learning rate"));
        }
        self.kept.clear();
        self.kept.extend_from_slice(params);
        self.is_perturbed = true;
        if length == 0.0 {
            return Ok(());
        }
        let scale = (self.rho / length) as f32;
        let chunks = params.par_chunks_mut(CHUNK).zip(grads.par_chunks(CHUNK));
        match offset {
            None => chunks.for_each(|(params, grads)| {
                for (weight, &grad) in params.iter_mut().zip(grads) {
                    *weight += scale * grad;
                }
            }),
            Some(offset) => chunks.for_each(|(params, grads)| {
                for (weight, &grad) in params.iter_mut().zip(grads) {
                    let t = weight.abs() + offset;
                    *weight += scale * (t * (t * grad));
                }
            }),
        }
        Ok(())
    }

    /// Puts back the very weights that [`Sam::perturb`] found.
    ///
    /// # Errors
    /// No perturbation to take back, or weights of another network.
    pub fn restore(&mut self, params: &mut [f32]) -> Result<()> {
        if !self.is_perturbed || params.len() != self.kept.len() {
            return Err(Error::stage("weights cannot be restored: expected `perturb` on the same weights before"));
        }
        params.copy_from_slice(&self.kept);
        self.is_perturbed = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::reference::values;

    const RHO: f64 = 0.05;

    fn sam(neighbourhood: Neighbourhood) -> Sam {
        Sam::new(neighbourhood, RHO).unwrap()
    }

    /// Moves by `expected`, and comes back to the same bits.
    #[track_caller]
    fn check(neighbourhood: Neighbourhood, params: &[f32], grads: &[f32], expected: &[f64]) {
        let mut sam = sam(neighbourhood);
        let mut moved = params.to_vec();
        sam.perturb(&mut moved, grads).unwrap();
        for ((&moved, &param), expected) in moved.iter().zip(params).zip(expected) {
            let got = f64::from(moved) - f64::from(param);
            assert!((got - expected).abs() < 1e-7 * f64::from(param.abs()).max(1.0), "{got} instead of {expected}");
        }
        sam.restore(&mut moved).unwrap();
        assert_eq!(moved, params);
    }

    #[test]
    fn perturbations_have_closed_forms() {
        use Neighbourhood::{Adaptive, Ball};
        check(Ball, &[1.0, -2.0, 0.5], &[3.0, -4.0, 0.0], &[0.03, -0.04, 0.0]);
        check(Ball, &[1.0, -2.0], &[0.0, 0.0], &[0.0, 0.0]);
        check(Adaptive, &[1.0, -2.0], &[0.0, 0.0], &[0.0, 0.0]);
        // T = (1, 3), T g = (3, 4) of length 5, T^2 g = (3, 12).
        check(Adaptive, &[0.99, -2.99], &[3.0, 4.0 / 3.0], &[0.03, 0.12]);
        let (params, grads) = (values(1, 1000), values(2, 1000));
        let t: Vec<f64> = params.iter().map(|w| f64::from(w.abs()) + 0.01).collect();
        let g: Vec<f64> = grads.iter().map(|&g| f64::from(g)).collect();
        let length = |power: i32| t.iter().zip(&g).map(|(t, g)| (t.powi(power) * g).powi(2)).sum::<f64>().sqrt();
        let along = |power: i32| -> Vec<f64> {
            t.iter().zip(&g).map(|(t, g)| RHO * t.powi(2 * power) * g / length(power)).collect()
        };
        check(Ball, &params, &grads, &along(0));
        check(Adaptive, &params, &grads, &along(1));
    }

    /// What FT-SAM's formula gives in PyTorch, rho = 2.
    #[test]
    fn proportional_perturbations_are_those_of_pytorch() {
        let (mut params, grads) = (values(1, 50), values(2, 50));
        let expected = crate::nn::golden::floats(&crate::nn::golden::purify()["sam"]);
        let start = params.clone();
        Sam::new(Neighbourhood::Proportional, 2.0).unwrap().perturb(&mut params, &grads).unwrap();
        for ((moved, start), expected) in params.iter().zip(&start).zip(expected) {
            let got = f64::from(*moved) - f64::from(*start);
            assert!((got - expected).abs() < 1e-6, "{got} instead of {expected}");
        }
    }

    /// On `w' A w / 2` with A = diag(1, 9): SAM's point is where the loss is largest within rho, to first order.
    #[test]
    fn the_perturbed_point_is_the_worst_of_the_ball() {
        let loss = |w: &[f32]| f64::from(w[0] * w[0] + 9.0 * w[1] * w[1]) / 2.0;
        let w = [0.7f32, -0.4];
        let mut worst = w.to_vec();
        sam(Neighbourhood::Ball).perturb(&mut worst, &[w[0], 9.0 * w[1]]).unwrap();
        for i in 0..360 {
            let (sin, cos) = f64::from(i).to_radians().sin_cos();
            let other = [w[0] + (RHO * cos) as f32, w[1] + (RHO * sin) as f32];
            // The second order is worth up to 4.5 rho^2.
            assert!(loss(&other) <= loss(&worst) + 4.5 * RHO * RHO * 0.05, "{i} degrees");
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let (params, grads) = (values(1, 5 * CHUNK + 3), values(2, 5 * CHUNK + 3));
        for neighbourhood in [Neighbourhood::Ball, Neighbourhood::Adaptive] {
            let run = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let mut moved = params.clone();
                pool.install(|| sam(neighbourhood).perturb(&mut moved, &grads)).unwrap();
                moved
            };
            assert!(run(1) == run(2) && run(1) == run(3));
        }
    }

    #[test]
    fn impossible_calls() {
        let message = |result: Result<()>| result.unwrap_err().message().to_owned();
        let mut sam = sam(Neighbourhood::Ball);
        let mut params = [1.0, 2.0];
        let lost = "weights cannot be restored: expected `perturb` on the same weights before";
        assert_eq!(message(sam.restore(&mut params)), lost);
        let infinite = message(sam.perturb(&mut params, &[f32::NAN, 0.0]));
        assert_eq!(infinite, "the gradient for a sharpness-aware step is not finite");
        assert_eq!(params, [1.0, 2.0]);
        sam.perturb(&mut params, &[1.0, 0.0]).unwrap();
        let twice = message(sam.perturb(&mut params, &[1.0, 0.0]));
        assert_eq!(twice, "weights were perturbed twice: expected `restore` in between");
        assert_eq!(message(sam.restore(&mut [0.0])), lost);
        sam.restore(&mut params).unwrap();
        assert_eq!(message(sam.restore(&mut params)), lost);
        let error = Sam::new(Neighbourhood::Adaptive, 0.0).unwrap_err();
        assert_eq!(error.message(), "`rho` must be a finite number above 0, got 0");
    }
}
