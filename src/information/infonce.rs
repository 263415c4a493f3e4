//! InfoNCE (van den Oord et al. 2018, "Representation learning with contrastive predictive coding"): a lower bound
//! on mutual information from telling a sample's partner among all partners of its batch.
//!
//! Î = meanᵢ [ sᵢᵢ - ln Σⱼ exp sᵢⱼ ] + ln B, where j runs over the whole batch: the partner itself and the B - 1 others
//! as negatives. It can never exceed ln B.
//!
//! Differs from the IB paper's code, which draws its negatives with replacement, the partner among them; its ceiling is
//! therefore lower than the ln(K + 1) that it states.

use super::estimator::{Bound, Estimator, Row};
use crate::kernels::product::Real;

/// The estimator.
pub const INFONCE: Estimator = Estimator {
    name: "infonce",
    doc: "InfoNCE with all other samples of a batch as negatives: a lower bound of little variance that cannot exceed \
          ln(batch).",
    known_error: "",
    make: |_| Box::new(InfoNce),
};

/// The bound.
#[derive(Clone, Copy, Debug)]
pub struct InfoNce;

impl<T: Real> Bound<T> for InfoNce {
    fn rule(&mut self, i: usize, scores: &[T], grad: &mut [T]) -> Row {
        Row { joint: rule(i, scores, grad), ..Row::default() }
    }

    fn row(&self, i: usize, scores: &[T]) -> Row {
        Row { joint: contribution(i, scores), ..Row::default() }
    }

    fn contributions(&self, rows: &[Row]) -> Vec<f64> {
        rows.iter().map(|row| row.joint).collect()
    }

    fn ceiling(&self, batch: usize) -> Option<f64> {
        Some(ceiling(batch))
    }
}

/// ln B: no estimate from batches of `batch` pairs can exceed it, in nats.
pub fn ceiling(batch: usize) -> f64 {
    libm::log(batch as f64)
}

/// The contribution of row `i` of the scores to the estimate, in nats; at most [`ceiling`].
pub fn contribution<T: Real>(i: usize, scores: &[T]) -> f64 {
    let (max, sum) = exponentials(scores, |_, _| {});
    // The joint pair is one of the terms, so the difference is not positive but for rounding.
    let log_probability = scores[i].into() - max.into() - libm::log(sum);
    log_probability.min(0.0) + ceiling(scores.len())
}

/// [`contribution`], and the gradient of the loss -Î by the row's scores.
pub fn rule<T: Real>(i: usize, scores: &[T], grad: &mut [T]) -> f64 {
    let n = scores.len();
    let (max, sum) = exponentials(scores, |j, value| grad[j] = value);
    let weight = T::from_f64(1.0 / (sum * n as f64));
    for value in grad.iter_mut() {
        *value = *value * weight;
    }
    grad[i] += T::from_f64(-1.0 / n as f64);
    let log_probability = scores[i].into() - max.into() - libm::log(sum);
    log_probability.min(0.0) + ceiling(n)
}

/// exp(s - max s) one by one; returns the maximum and their sum, added in f64.
fn exponentials<T: Real>(scores: &[T], mut each: impl FnMut(usize, T)) -> (T, f64) {
    let max = scores.iter().fold(scores[0], |max, &s| if s > max { s } else { max });
    let mut sum = 0.0;
    for (j, &score) in scores.iter().enumerate() {
        let value = (score - max).exp();
        each(j, value);
        sum += value.into();
    }
    (max, sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradient_agrees_with_finite_differences() {
        let scores: [f64; 5] = [0.3, -1.2, 2.0, 0.0, 0.7];
        for i in 0..5 {
            let mut grad = [0.0; 5];
            assert_eq!(rule(i, &scores, &mut grad), contribution(i, &scores));
            assert!(grad.iter().sum::<f64>().abs() < 1e-15, "a shift of all scores changes nothing");
            for j in 0..5 {
                let loss = |step: f64| {
                    let mut moved = scores;
                    moved[j] += step;
                    // One row of a batch of five.
                    -contribution(i, &moved) / 5.0
                };
                let numeric = (loss(1e-6) - loss(-1e-6)) / 2e-6;
                assert!((numeric - grad[j]).abs() < 1e-9, "row {i} score {j}: {numeric} {}", grad[j]);
            }
        }
    }

    #[test]
    fn extremes() {
        let ceiling = ceiling(4);
        assert_eq!(contribution(0, &[1e4f32, -1e4, -1e4, 0.0]), ceiling);
        assert_eq!(contribution(2, &[1.0f32; 4]), 0.0);
        assert!(contribution(1, &[1e4f32, -1e4, -1e4, 0.0]) < -1e4);
    }

    /// The published code draws K negatives with replacement, the partner among them, and states ln(K + 1). Under a
    /// perfect critic, which gives every other pair nothing, its estimate ends far below that, and ours at ln B.
    #[test]
    fn negatives_drawn_with_replacement_lower_the_stated_ceiling() {
        // (batch, negatives, ceiling that the specification derives)
        for (batch, negatives, derived) in [(128, 512, 4.63), (128, 256, 4.45), (512, 256, 5.14)] {
            let mut stream = crate::rng::Streams::new(23, "infonce").stream("negatives");
            let n_rows = 4000;
            let legacy: f64 = (0..n_rows)
                .map(|_| {
                    let hits = (0..negatives).filter(|_| stream.below(batch) == 0).count();
                    // Partner and hits share the probability.
                    libm::log((negatives + 1) as f64 / (1 + hits) as f64)
                })
                .sum::<f64>()
                / f64::from(n_rows);
            let stated = libm::log((negatives + 1) as f64);
            // The derived value takes the mean hits; the mean of a logarithm is a little less strict.
            assert!((derived..derived + 0.25).contains(&legacy), "B {batch}, K {negatives}: {legacy}");
            assert!(legacy < stated - 0.25);
            let mut scores = vec![-1e4f32; batch as usize];
            scores[3] = 1e4;
            assert_eq!(contribution(3, &scores), ceiling(batch as usize));
        }
    }
}
