//! MINE (Belghazi et al. 2018, "Mutual information neural estimation"): the Donsker-Varadhan lower bound.
//!
//! Î = meanᵢ sᵢᵢ - ln Z, where Z = mean_{i≠j} exp sᵢⱼ over all pairs of a batch that do not belong together.
//!
//! The gradient of ln Z over a batch, mean exp(s) ∇s / Z, is biased, for the batch's own Z stands below the line. As in
//! the paper's section 3.2, Z there is replaced by its exponential moving average over the batches. The average lives
//! as long as the critic does and is kept as a logarithm.
//!
//! Differs from the paper: all B (B - 1) pairs of a batch are negatives, not one shuffle of it. Differs from the
//! IB-backdoor code: there, the moving average was made anew on each call and so never acted.

use super::estimator::{Bound, Constants, Estimator, Row, donsker_varadhan, log_mean_exp_others, partition_error};
use crate::kernels::product::Real;

/// The estimator.
pub const MINE: Estimator = Estimator {
    name: "mine",
    doc: "Donsker-Varadhan bound with a moving average of the partition function in the gradient (MINE); no ceiling, but \
          a variance that grows with e^I.",
    known_error: PARTITION_ERROR,
    make: |constants| Box::new(Mine::new(constants)),
};

/// What [`partition_error`] is, for readers of a table.
pub(super) const PARTITION_ERROR: &str = "sqrt((e^I - 1) / n) on n held-out pairs: the standard deviation of the partition function's part even under a \
     perfect critic; far above e^I = n the estimate means little";

/// The bound, and the moving average of the partition function.
#[derive(Clone, Debug)]
pub struct Mine {
    rate: f64,
    /// ln of the moving average; none before the first batch.
    log_average: Option<f64>,
}

impl Mine {
    /// Without any batch seen.
    pub fn new(constants: &Constants) -> Mine {
        Mine { rate: constants.mine_rate, log_average: None }
    }
}

impl<T: Real> Bound<T> for Mine {
    fn reads_whole(&self) -> bool {
        true
    }

    fn whole(&mut self, scores: &[T], n: usize) {
        let rows = scores.chunks_exact(n).enumerate();
        let parts: Vec<f64> = rows.map(|(i, row)| log_mean_exp_others(i, row)).collect();
        let batch = super::estimator::log_mean_exp(parts.iter().copied());
        self.log_average = Some(match self.log_average {
            None => batch,
            Some(average) => {
                let top = average.max(batch);
                let old = (1.0 - self.rate) * libm::exp(average - top);
                top + libm::log(old + self.rate * libm::exp(batch - top))
            }
        });
    }

    fn rule(&mut self, i: usize, scores: &[T], grad: &mut [T]) -> Row {
        let n = scores.len();
        let log_average = self.log_average.unwrap_or_else(|| log_mean_exp_others(i, scores));
        let shift = T::from_f64(-log_average);
        let weight = T::from_f64(1.0 / (n * (n - 1)) as f64);
        let mut sum = 0.0;
        for (j, (grad, &score)) in grad.iter_mut().zip(scores).enumerate() {
            // The average contains the batch, so no ratio exceeds n (n - 1) / rate.
            let ratio = if j == i { T::ZERO } else { (score + shift).exp() };
            sum += ratio.into();
            *grad = ratio * weight;
        }
        grad[i] = T::from_f64(-1.0 / n as f64);
        let partition = libm::log(sum / (n - 1) as f64) + log_average;
        Row { joint: scores[i].into(), partition, unclipped: partition }
    }

    fn row(&self, i: usize, scores: &[T]) -> Row {
        let partition = log_mean_exp_others(i, scores);
        Row { joint: scores[i].into(), partition, unclipped: partition }
    }

    fn contributions(&self, rows: &[Row]) -> Vec<f64> {
        donsker_varadhan(rows)
    }

    fn known_error(&self, _: &[Row], estimate: f64, n: usize) -> Option<f64> {
        Some(partition_error(estimate, n))
    }
}

#[cfg(test)]
mod tests {
    use super::super::estimator::tests::{check_gradient, scores, value};
    use super::*;

    fn mine(rate: f64) -> Mine {
        Mine::new(&Constants { mine_rate: rate, ..Constants::default() })
    }

    /// Mean over the pairs that do not belong together.
    fn partition(scores: &[f64], n: usize) -> f64 {
        let others = (0..n * n).filter(|at| at / n != at % n).map(|at| scores[at].exp());
        others.sum::<f64>() / (n * (n - 1)) as f64
    }

    fn joint(scores: &[f64], n: usize) -> f64 {
        (0..n).map(|i| scores[i * n + i]).sum::<f64>() / n as f64
    }

    #[test]
    fn value_is_donsker_varadhan() {
        for n in [2, 5, 8] {
            let scores = scores(n, 1.5);
            let want = joint(&scores, n) - partition(&scores, n).ln();
            assert!((value(&mine(0.1), &scores, n) - want).abs() < 1e-12);
        }
    }

    /// On its first batch the average is the batch's own Z, so the gradient is that of the bound; later Z is a constant.
    #[test]
    fn gradient_agrees_with_finite_differences() {
        for n in [2, 5] {
            let first = scores(n, 1.0);
            check_gradient(&mut mine(0.1), &first, n, |s| partition(s, n).ln() - joint(s, n));
            let mut bound = mine(0.25);
            Bound::whole(&mut bound, &first, n);
            let second: Vec<f64> = first.iter().map(|s| s * 0.7 + 0.4).collect();
            let average = 0.75 * partition(&first, n) + 0.25 * partition(&second, n);
            check_gradient(&mut bound, &second, n, |s| partition(s, n) / average - joint(s, n));
        }
    }

    /// The gradient of ln Z, averaged over batches, is not the gradient of ln E Z; the moving average brings it there.
    /// The published code made the average anew on each call: rate 1, the biased gradient.
    #[test]
    fn moving_average_that_is_made_anew_on_each_call_never_acts() {
        let n = 4;
        let mut stream = crate::rng::Streams::new(22, "mine").stream("batches");
        let batches: Vec<Vec<f64>> = (0..4000).map(|_| (0..n * n).map(|_| 1.5 * stream.normal()).collect()).collect();
        // How hard the scores of other pairs are pushed down in all, by the mean batch; under ln E Z exactly 1.
        let push = |rate: f64| {
            let mut bound = mine(rate);
            let (mut sum, mut of_large) = (0.0, 0.0);
            for batch in &batches {
                let mut grad = vec![0.0; n];
                Bound::whole(&mut bound, batch, n);
                for (i, row) in batch.chunks_exact(n).enumerate() {
                    Bound::rule(&mut bound, i, row, &mut grad);
                    sum += grad.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, g)| g).sum::<f64>();
                    of_large += (0..n).filter(|&j| j != i && row[j] > 3.0).map(|j| grad[j]).sum::<f64>();
                }
            }
            (sum / batches.len() as f64, of_large / batches.len() as f64)
        };
        // Of exp(1.5 z), the share above z = 2: Φ(-(2 - 1.5)) = 0.3085.
        let truth = 0.3085;
        let ((total, corrected), (_, legacy)) = (push(0.01), push(1.0));
        assert!((total - 1.0).abs() < 0.1, "{total}");
        assert!((corrected - truth).abs() < 0.06, "corrected {corrected}, truth {truth}");
        assert!(legacy < 0.8 * truth, "legacy {legacy}, truth {truth}");
    }
}
