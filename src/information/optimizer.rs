//! AdamW (Loshchilov and Hutter 2019, "Decoupled weight decay regularization") on a flat parameter vector, with
//! PyTorch's constants, and clipping by the global norm.

use crate::kernels::Isa;
use crate::kernels::joint::{AdamStep, adamw, sum_of_squares};

/// The state of AdamW.
pub struct AdamW {
    isa: Isa,
    weight_decay: f64,
    mean: Vec<f32>,
    variance: Vec<f32>,
    step: i32,
}

impl AdamW {
    /// For `n_parameters`; `weight_decay` per unit of learning rate.
    pub fn new(n_parameters: usize, weight_decay: f64) -> AdamW {
        let moments = || vec![0.0; n_parameters];
        AdamW { isa: Isa::best(), weight_decay, mean: moments(), variance: moments(), step: 0 }
    }

    /// One step; gradients are multiplied by `scale` on the way.
    pub fn step(&mut self, params: &mut [f32], grads: &[f32], learning_rate: f64, scale: f32) {
        self.step += 1;
        let step = AdamStep::new(self.step, learning_rate, self.weight_decay, scale);
        adamw(self.isa, step, params, grads, &mut self.mean, &mut self.variance);
    }
}

/// The factor that brings the Euclidean norm of `grads` down to `limit`; 1 if it is not above.
pub fn clip(grads: &[f32], limit: f64) -> f32 {
    let mut sum = 0.0;
    sum_of_squares(Isa::best(), grads, &mut sum);
    let norm = sum.sqrt();
    if norm > limit { (limit / (norm + 1e-6)) as f32 } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three steps of `torch.optim.AdamW(lr=0.1, weight_decay=0.5)` on the gradient of p²/2 from p = (1, -2).
    #[test]
    fn agrees_with_pytorch() {
        let mut params = [1.0f32, -2.0];
        let mut adam = AdamW::new(2, 0.5);
        for _ in 0..3 {
            let grads = params;
            adam.step(&mut params, &grads, 0.1, 1.0);
        }
        let want = TORCH;
        assert!(params.iter().zip(want).all(|(p, w)| (p - w).abs() < 1e-6), "{params:?}, expected {want:?}");
    }

    const TORCH: [f32; 2] = [0.574_973_94, -1.431_025_1];

    #[test]
    fn clipping() {
        assert_eq!(clip(&[3.0, 4.0], 6.0), 1.0);
        assert!((clip(&[3.0, 4.0], 1.0) - 0.2).abs() < 1e-6);
        assert!((clip(&[1.0; 100], 5.0) - 0.5).abs() < 1e-6);
    }
}
