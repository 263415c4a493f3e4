//! Entropy and mutual information of columns of discrete values, in closed form from their counts, in nats.
//!
//! These are the information quantities of the columns themselves, a sample drawn from them with equal probability; no
//! correction is made for a population behind them.

use std::collections::BTreeMap;

/// H of a distribution given by counts: -Σ p ln p.
pub fn entropy_of_counts(counts: impl IntoIterator<Item = usize>) -> f64 {
    let counts: Vec<f64> = counts.into_iter().filter(|&n| n > 0).map(|n| n as f64).collect();
    let total: f64 = counts.iter().sum();
    // ln(total / n), so that the entropy of a constant is +0.
    counts.iter().map(|n| n / total * libm::log(total / n)).sum()
}

/// H(A).
pub fn entropy<A: Ord + Copy>(a: &[A]) -> f64 {
    let mut counts = BTreeMap::new();
    a.iter().for_each(|&value| *counts.entry(value).or_insert(0usize) += 1);
    entropy_of_counts(counts.into_values())
}

/// H(A, B) of two columns of one length.
pub fn joint_entropy<A: Ord + Copy, B: Ord + Copy>(a: &[A], b: &[B]) -> f64 {
    let pairs: Vec<(A, B)> = a.iter().copied().zip(b.iter().copied()).collect();
    entropy(&pairs)
}

/// H(A|B) = H(A, B) - H(B), never below zero.
pub fn conditional_entropy<A: Ord + Copy, B: Ord + Copy>(a: &[A], b: &[B]) -> f64 {
    (joint_entropy(a, b) - entropy(b)).max(0.0)
}

/// I(A;B) = H(A) - H(A|B), never below zero.
pub fn mutual_information<A: Ord + Copy, B: Ord + Copy>(a: &[A], b: &[B]) -> f64 {
    (entropy(a) - conditional_entropy(a, b)).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of (assigned label, whether backdoored), in the order of the IB-backdoor code: all poisoned rows first.
    type Rows = Vec<(i64, bool)>;

    /// BadNets as in the paper, CIFAR-10: 5000 backdoored rows of label 0, then 4500 clean ones of each class.
    fn paper() -> Rows {
        let mut rows = vec![(0, true); 5000];
        (0..10).for_each(|class| rows.extend([(class, false); 4500]));
        rows
    }

    /// Adaptive blend: 2500 payload rows of label 0 and 250 covers of each class, mixed; then the clean ones.
    fn adaptive_blend() -> Rows {
        let mut rows = Vec::new();
        for class in 0..10 {
            (0..250).for_each(|_| rows.extend([(0, true), (class, false)]));
        }
        (0..10).for_each(|class| rows.extend([(class, false); 4500]));
        rows
    }

    /// Label-consistent: 500 images of class 0 carry the trigger, in the middle of their class.
    fn label_consistent() -> Rows {
        let mut rows = vec![(0, false); 4500];
        rows.extend([(0, true); 500]);
        (1..10).for_each(|class| rows.extend([(class, false); 5000]));
        rows
    }

    /// H(B), H(B|Y), I(B;Y), from the stored column or from the first `legacy` rows as the published code has it.
    fn measure(rows: &Rows, legacy: Option<usize>) -> [f64; 3] {
        let marked = |(at, row): (usize, &(i64, bool))| legacy.map_or(row.1, |n| at < n);
        let backdoored: Vec<bool> = rows.iter().enumerate().map(marked).collect();
        let labels: Vec<i64> = rows.iter().map(|row| row.0).collect();
        [entropy(&backdoored), conditional_entropy(&backdoored, &labels), mutual_information(&backdoored, &labels)]
    }

    fn check(found: [f64; 3], want: [f64; 3]) {
        assert!(found.iter().zip(want).all(|(f, w)| (f - w).abs() < 5e-5), "{found:?}, expected {want:?}");
    }

    #[test]
    fn closed_forms_of_the_paper() {
        check(measure(&paper(), None), [0.3251, 0.1314, 0.1936]);
        // By hand: 0.19 H(5000 / 9500).
        let share = 5000.0 / 9500.0f64;
        let by_hand = -0.19 * (share * share.ln() + (1.0 - share) * (1.0 - share).ln());
        assert!((measure(&paper(), None)[1] - by_hand).abs() < 1e-12);
    }

    #[test]
    fn columns() {
        assert_eq!(entropy(&[7; 9]), 0.0);
        assert!((entropy(&[0, 1, 2, 3]) - 4f64.ln()).abs() < 1e-15);
        assert!((mutual_information(&[0, 1, 2, 3], &[5, 5, 6, 6]) - 2f64.ln()).abs() < 1e-15);
        assert_eq!(mutual_information(&[0, 0, 1, 1], &[0, 1, 0, 1]), 0.0);
        assert_eq!(conditional_entropy(&[0, 0, 1, 1], &[2, 2, 3, 3]), 0.0);
        assert_eq!(entropy::<i64>(&[]), 0.0);
    }

    /// The published code takes the first 10 % of the rows for the backdoored ones.
    #[test]
    fn the_first_rows_are_not_the_backdoored_ones() {
        check(measure(&paper(), Some(5000)), measure(&paper(), None));
        // Covers are marked too: twice the backdoored rows, spread over all classes.
        check(measure(&adaptive_blend(), None), [0.1985, 0.0934, 0.1051]);
        check(measure(&adaptive_blend(), Some(5000)), [0.3251, 0.2725, 0.0525]);
        // The right number of rows would be 500; either way, clean rows of class 0 are marked and no triggered one is.
        check(measure(&label_consistent(), None), [0.0560, 0.0325, 0.0235]);
        check(measure(&label_consistent(), Some(5000)), [0.3251, 0.0, 0.3251]);
        let is_marked_and_triggered = label_consistent()[..500].iter().any(|row| row.1);
        assert!(!is_marked_and_triggered);
    }

    /// The writer's default rate, 0.05, where the generator poisoned 0.1: half of the backdoored rows pass for clean.
    #[test]
    fn writer_rate_differs_from_the_generators() {
        let legacy = measure(&paper(), Some(2500));
        check(legacy, [0.1985, 0.1095, 0.0890]);
        assert!(legacy[2] < 0.5 * measure(&paper(), None)[2]);
    }
}
