//! The density of a spectrum by stochastic Lanczos quadrature.
//!
//! S. Ubaru, J. Chen and Y. Saad, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature" (SIAM J. Matrix Anal.
//! 2017); for networks, B. Ghorbani, S. Krishnan and Y. Xiao (ICML 2019). For a start of random signs, the Ritz values
//! weighted by the squared first components of their vectors stand for the whole spectrum: the mean of f over all
//! eigenvalues is the weighted mean over the nodes. Kept as nodes, and smoothed only where they are drawn.
//!
//! Differs from the code that came with FIP: it weights by all components, and decomposes a symmetric matrix as if it
//! were none.

use super::lanczos::{self, Krylov};
use super::{Product, signs};
use crate::error::Result;
use crate::rng::Stream;

/// `n_starts` (at least 1) runs of `n_steps` products; run i starts from the signs of sub-stream i of `stream`.
///
/// # Errors
/// See [`lanczos::run`].
pub fn runs(
    product: &mut Product,
    n_rows: usize,
    (n_starts, n_steps): (usize, usize),
    stream: &Stream,
) -> Result<Vec<Krylov>> {
    let run = |start| lanczos::run(product, &signs(stream.at(start as u64), n_rows), n_steps);
    (0..n_starts.max(1)).map(run).collect()
}

/// The density at `at` of nodes (value, weight), every node a normal distribution of standard deviation `width`.
pub fn smooth(nodes: &[(f64, f64)], width: f64, at: f64) -> f64 {
    let norm = 1.0 / (width * (std::f64::consts::TAU).sqrt());
    let of_node = |&(value, weight): &(f64, f64)| {
        let z = (at - value) / width;
        weight * norm * libm::exp(-0.5 * z * z)
    };
    nodes.iter().map(of_node).sum()
}

#[cfg(test)]
mod tests {
    use super::super::quadratic::{Quadratic, like_a_network};
    use super::*;
    use crate::rng::Streams;

    /// A few hundred nodes stand for thousands of eigenvalues: moments, and the share in every part of the spectrum.
    #[test]
    fn nodes_stand_for_the_whole_spectrum() {
        let n = 4_000;
        // Two bulks and an outlier.
        let mut eigenvalues: Vec<f64> =
            (0..n).map(|i| if i % 4 == 0 { 3.0 } else { 0.0 } + 0.5 * libm::sin(i as f64)).collect();
        eigenvalues[0] = 20.0;
        let mut quadratic = Quadratic::new(eigenvalues.clone());
        let stream = Streams::new(0, "curvature").stream("density");
        let runs = runs(&mut |v, target| quadratic.multiply(v, target), n, (16, 30), &stream).unwrap();
        let nodes: Vec<(f64, f64)> =
            runs.iter().flat_map(|run| run.values().iter().copied().zip(run.weights())).collect();
        let total = runs.len() as f64;
        let mean_of =
            |f: &dyn Fn(f64) -> f64| nodes.iter().map(|&(value, weight)| weight * f(value)).sum::<f64>() / total;
        let exact = |f: &dyn Fn(f64) -> f64| eigenvalues.iter().map(|&value| f(value)).sum::<f64>() / n as f64;
        let check = |what: &str, f: &dyn Fn(f64) -> f64, tolerance: f64| {
            let (found, expected) = (mean_of(f), exact(f));
            assert!((found - expected).abs() < tolerance, "{what}: {found} instead of {expected}");
        };
        check("weight", &|_| 1.0, 1e-9);
        check("mean", &|v| v, 0.03);
        check("second moment", &|v| v * v, 0.2);
        check("share of the upper bulk", &|v| f64::from(u8::from(v > 1.5 && v < 10.0)), 0.02);
        check("share of the outlier", &|v| f64::from(u8::from(v > 10.0)), 2.4e-4);
    }

    #[test]
    fn densities_integrate_to_their_weights() {
        let nodes = [(-1.0, 0.25), (2.0, 0.75)];
        let step = 0.01;
        let at = |i: i32| f64::from(i) * step;
        let integral: f64 = (-800..1000).map(|i| smooth(&nodes, 0.2, at(i)) * step).sum();
        assert!((integral - 1.0).abs() < 1e-9, "{integral}");
        let peak = 0.75 / (0.2 * (std::f64::consts::TAU).sqrt());
        assert!((smooth(&nodes, 0.2, 2.0) - peak).abs() < 1e-12);
    }

    #[test]
    fn a_run_of_all_steps_has_the_exact_trace() {
        let eigenvalues = like_a_network(8);
        let expected: f64 = eigenvalues.iter().sum::<f64>() / 8.0;
        let mut quadratic = Quadratic::new(eigenvalues);
        let stream = Streams::new(0, "curvature").stream("density");
        let runs = runs(&mut |v, target| quadratic.multiply(v, target), 8, (400, 8), &stream).unwrap();
        let means = runs.iter().map(|run| run.values().iter().zip(run.weights()).map(|(v, w)| v * w).sum::<f64>());
        let mean = means.sum::<f64>() / runs.len() as f64;
        assert!((mean - expected).abs() < 0.1 * expected, "{mean} instead of {expected}");
    }
}
