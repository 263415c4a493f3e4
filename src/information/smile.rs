//! SMILE (Song and Ermon 2020, "Understanding the limitations of variational mutual information estimators").
//!
//! Î = meanᵢ sᵢᵢ - ln mean_{i≠j} exp clip(sᵢⱼ, -τ, τ): Donsker-Varadhan with a clipped partition function, whose
//! variance the clip bounds at the price of a bias. The critic learns the logarithm of the density ratio by the
//! Jensen-Shannon bound of f-GAN, as in the authors' code:
//! loss = meanᵢ softplus(-sᵢᵢ) + mean_{i≠j} softplus(sᵢⱼ), whose optimum is s = ln p(a, b) / p(a) p(b).
//!
//! It is neither a lower nor an upper bound: a partition function that the clip makes too small makes the estimate too
//! large.

use super::estimator::{Bound, Constants, Estimator, Row, donsker_varadhan, log_mean_exp, log_mean_exp_others};
use crate::kernels::product::Real;

/// The estimator.
pub const SMILE: Estimator = Estimator {
    name: "smile",
    doc: "Donsker-Varadhan value with a clipped partition function, on a critic trained by the Jensen-Shannon bound \
          (SMILE): little variance, a bias from the clip, and no bound in either direction.",
    known_error: "ln Z without the clip less ln Z with it: how much too large the clip made the estimate on the held-out \
                  pairs",
    make: |constants| Box::new(Smile::new(constants)),
};

/// The bound.
#[derive(Clone, Copy, Debug)]
pub struct Smile {
    clip: f64,
}

impl Smile {
    /// With the clip of `constants`.
    pub fn new(constants: &Constants) -> Smile {
        Smile { clip: constants.smile_clip }
    }
}

/// 1 / (1 + exp(-x)), from the exponential of a number that is not positive.
fn sigmoid<T: Real>(x: T) -> T {
    let small = if x > T::ZERO { -x } else { x }.exp();
    let of_negative = small / (T::ONE + small);
    if x > T::ZERO { T::ONE - of_negative } else { of_negative }
}

impl<T: Real> Bound<T> for Smile {
    fn rule(&mut self, i: usize, scores: &[T], grad: &mut [T]) -> Row {
        let n = scores.len();
        let weight = T::from_f64(1.0 / (n * (n - 1)) as f64);
        for (grad, &score) in grad.iter_mut().zip(scores) {
            *grad = sigmoid(score) * weight;
        }
        grad[i] = -sigmoid(-scores[i]) * T::from_f64(1.0 / n as f64);
        self.row(i, scores)
    }

    fn row(&self, i: usize, scores: &[T]) -> Row {
        let others = scores.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, &score)| score.into());
        let partition = log_mean_exp(others.map(|score| score.clamp(-self.clip, self.clip)));
        Row { joint: scores[i].into(), partition, unclipped: log_mean_exp_others(i, scores) }
    }

    fn contributions(&self, rows: &[Row]) -> Vec<f64> {
        donsker_varadhan(rows)
    }

    fn known_error(&self, rows: &[Row], _: f64, _: usize) -> Option<f64> {
        let log_z = |of: fn(&Row) -> f64| log_mean_exp(rows.iter().map(of));
        Some(log_z(|row| row.unclipped) - log_z(|row| row.partition))
    }
}

#[cfg(test)]
mod tests {
    use super::super::estimator::tests::{check_gradient, scores, value};
    use super::*;

    fn smile(clip: f64) -> Smile {
        Smile::new(&Constants { smile_clip: clip, ..Constants::default() })
    }

    fn jensen_shannon(scores: &[f64], n: usize) -> f64 {
        let softplus = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
        let joint = (0..n).map(|i| softplus(-scores[i * n + i])).sum::<f64>() / n as f64;
        let others = (0..n * n).filter(|at| at / n != at % n).map(|at| softplus(scores[at]));
        joint + others.sum::<f64>() / (n * (n - 1)) as f64
    }

    #[test]
    fn gradient_is_that_of_the_jensen_shannon_bound() {
        for n in [2, 5] {
            check_gradient(&mut smile(1.0), &scores(n, 2.0), n, |s| jensen_shannon(s, n));
        }
    }

    /// Without a score beyond the clip it is Donsker-Varadhan; with one, the clip's error is the difference.
    #[test]
    fn clip_bias_is_reported() {
        let n = 6;
        let scores = scores(n, 2.0);
        let mine = crate::information::mine::Mine::new(&Constants::default());
        let plain = value(&mine, &scores, n);
        assert!((value(&smile(100.0), &scores, n) - plain).abs() < 1e-12);
        let clipped = smile(0.5);
        let rows: Vec<Row> = scores.chunks_exact(n).enumerate().map(|(i, row)| clipped.row(i, row)).collect();
        let error = Bound::<f64>::known_error(&clipped, &rows, 0.0, n).unwrap();
        assert!(error > 0.1 && (value(&clipped, &scores, n) - error - plain).abs() < 1e-12, "{error}");
    }

    #[test]
    fn sigmoids() {
        for (x, want) in [(0.0f64, 0.5), (2.0, 0.880_797_077_977_882_4), (-800.0, 0.0), (800.0, 1.0)] {
            assert!((sigmoid(x) - want).abs() < 1e-15, "{x}: {}", sigmoid(x));
        }
    }
}
