//! AdamW (Loshchilov and Hutter 2019, "Decoupled weight decay regularization") on a flat parameter vector, with
//! PyTorch's constants, and clipping by the global norm.

/// Exponential decay rates of both moments and the term against division by zero: PyTorch's defaults.
const BETAS: (f32, f32) = (0.9, 0.999);
const EPSILON: f32 = 1e-8;

/// The state of AdamW.
pub struct AdamW {
    weight_decay: f64,
    mean: Vec<f32>,
    variance: Vec<f32>,
    step: i32,
}

impl AdamW {
    /// For `n_parameters`; `weight_decay` per unit of learning rate.
    pub fn new(n_parameters: usize, weight_decay: f64) -> AdamW {
        AdamW { weight_decay, mean: vec![0.0; n_parameters], variance: vec![0.0; n_parameters], step: 0 }
    }

    /// One step; gradients are multiplied by `scale` on the way.
    pub fn step(&mut self, params: &mut [f32], grads: &[f32], learning_rate: f64, scale: f32) {
        self.step += 1;
        let correction = |beta: f32| 1.0 - f64::from(beta).powi(self.step);
        let decay = (1.0 - learning_rate * self.weight_decay) as f32;
        let rate = (learning_rate / correction(BETAS.0)) as f32;
        let root = (1.0 / correction(BETAS.1).sqrt()) as f32;
        let moments = self.mean.iter_mut().zip(&mut self.variance);
        for ((param, &grad), (mean, variance)) in params.iter_mut().zip(grads).zip(moments) {
            let grad = grad * scale;
            *mean = BETAS.0 * *mean + (1.0 - BETAS.0) * grad;
            *variance = BETAS.1 * *variance + (1.0 - BETAS.1) * grad * grad;
            *param = *param * decay - rate * *mean / (variance.sqrt() * root + EPSILON);
        }
    }
}

/// The factor that brings the Euclidean norm of `grads` down to `limit`; 1 if it is not above.
pub fn clip(grads: &[f32], limit: f64) -> f32 {
    // Eight lanes in f64, so that the sum vectorises in a fixed order.
    let mut lanes = [0.0f64; 8];
    for chunk in grads.chunks(8) {
        for (lane, &grad) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(grad) * f64::from(grad);
        }
    }
    let norm = lanes.iter().sum::<f64>().sqrt();
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
