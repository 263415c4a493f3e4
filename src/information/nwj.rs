//! NWJ (Nguyen, Wainwright and Jordan 2010, "Estimating divergence functionals and the likelihood ratio by convex risk
//! minimization"; the KL case of f-GAN, Nowozin et al. 2016; "TUBA" with a constant baseline e, Poole et al. 2019).
//!
//! Î = meanᵢ sᵢᵢ - mean_{i≠j} exp(sᵢⱼ - 1): linear in the expectation, so neither value nor gradient is biased by the
//! batch; its optimal critic is 1 + ln p(a, b) / p(a) p(b), and its variance grows with e^I.

use super::estimator::{Bound, Estimator, Row, log_mean_exp_others, partition_error};
use super::mine::PARTITION_ERROR;
use crate::kernels::product::Real;

/// The estimator.
pub const NWJ: Estimator = Estimator {
    name: "nwj",
    doc: "f-divergence bound of Nguyen, Wainwright and Jordan (f-GAN's KL): unbiased in value and gradient, no ceiling, \
          but a variance that grows with e^I.",
    known_error: PARTITION_ERROR,
    make: |_| Box::new(Nwj),
};

/// Exponents above this count as this in the gradient, whose norm is then far beyond any clipping, so that only its
/// direction matters; it keeps the squares of the norm finite in f32.
const LARGEST_EXPONENT: f64 = 60.0;

/// The bound.
#[derive(Clone, Copy, Debug)]
pub struct Nwj;

impl<T: Real> Bound<T> for Nwj {
    fn rule(&mut self, i: usize, scores: &[T], grad: &mut [T]) -> Row {
        let n = scores.len();
        let largest = T::from_f64(LARGEST_EXPONENT);
        let weight = T::from_f64(1.0 / (n * (n - 1)) as f64);
        for (grad, &score) in grad.iter_mut().zip(scores) {
            let exponent = score + T::from_f64(-1.0);
            *grad = if exponent > largest { largest } else { exponent }.exp() * weight;
        }
        grad[i] = T::from_f64(-1.0 / n as f64);
        self.row(i, scores)
    }

    fn row(&self, i: usize, scores: &[T]) -> Row {
        let partition = log_mean_exp_others(i, scores) - 1.0;
        Row { joint: scores[i].into(), partition, unclipped: partition }
    }

    fn contributions(&self, rows: &[Row]) -> Vec<f64> {
        rows.iter().map(|row| row.joint - libm::exp(row.partition)).collect()
    }

    fn known_error(&self, _: &[Row], estimate: f64, n: usize) -> Option<f64> {
        Some(partition_error(estimate, n))
    }
}

#[cfg(test)]
mod tests {
    use super::super::estimator::tests::{check_gradient, scores, value};
    use super::*;

    fn by_definition(scores: &[f64], n: usize) -> f64 {
        let joint = (0..n).map(|i| scores[i * n + i]).sum::<f64>() / n as f64;
        let others = (0..n * n).filter(|at| at / n != at % n).map(|at| (scores[at] - 1.0).exp());
        joint - others.sum::<f64>() / (n * (n - 1)) as f64
    }

    #[test]
    fn value_and_gradient() {
        for n in [2, 5, 8] {
            let scores = scores(n, 1.5);
            assert!((value(&Nwj, &scores, n) - by_definition(&scores, n)).abs() < 1e-12);
            check_gradient(&mut Nwj, &scores, n, |s| -by_definition(s, n));
        }
    }

    /// Where the critic is 1 and the variables are independent, the bound is exactly 0.
    #[test]
    fn constant_critic() {
        assert!(value(&Nwj, &[1.0; 16], 4).abs() < 1e-12);
    }

    #[test]
    fn huge_scores_give_a_finite_gradient() {
        let mut grad = [0.0f32; 3];
        Bound::rule(&mut Nwj, 0, &[1.0f32, 500.0, -500.0], &mut grad);
        assert!(grad.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().is_finite(), "{grad:?}");
    }
}
