//! The trace by random signs: `E v'Av = tr A` for v of independent signs.
//!
//! M. Hutchinson, "A stochastic estimator of the trace of the influence matrix" (1989). The variance is twice the sum of
//! squares beside the diagonal; how far the mean of the probes may be off is told by their own spread. The number of
//! probes is fixed beforehand: to stop when the mean has settled, as PyHessian does, favours samples that agree by chance.

use super::{Product, finite, signs};
use crate::error::Result;
use crate::kernels::{Isa, basis};
use crate::rng::Stream;

/// An estimate of a trace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The mean over the probes.
    pub mean: f64,
    /// Its standard error; none for a single probe.
    pub error: Option<f64>,
}

/// From `n_probes` (at least 1) products with a matrix of `n_rows`; probe i is drawn from sub-stream i of `stream`.
///
/// # Errors
/// A product that is not finite, and what `product` says.
pub fn trace(product: &mut Product, n_rows: usize, n_probes: usize, stream: &Stream) -> Result<Estimate> {
    let mut target = vec![0.0; n_rows];
    let mut probes = Vec::with_capacity(n_probes);
    for probe in 0..n_probes.max(1) {
        let vector = signs(stream.at(probe as u64), n_rows);
        product(&vector, &mut target)?;
        probes.push(finite(basis::dot(Isa::best(), &vector, &target))?);
    }
    Ok(of_probes(&probes))
}

fn of_probes(probes: &[f64]) -> Estimate {
    let n = probes.len() as f64;
    let mean = probes.iter().sum::<f64>() / n;
    let squares: f64 = probes.iter().map(|probe| (probe - mean).powi(2)).sum();
    Estimate { mean, error: (probes.len() > 1).then(|| (squares / (n - 1.0) / n).sqrt()) }
}

#[cfg(test)]
mod tests {
    use super::super::quadratic::{Quadratic, like_a_network};
    use super::*;
    use crate::rng::Streams;

    #[test]
    fn the_standard_error_is_that_of_a_mean() {
        assert_eq!(of_probes(&[1.0, 2.0, 6.0]), Estimate { mean: 3.0, error: Some((14.0f64 / 2.0 / 3.0).sqrt()) });
        assert_eq!(of_probes(&[4.0]), Estimate { mean: 4.0, error: None });
    }

    /// A diagonal matrix has no spread: every probe is the trace.
    #[test]
    fn a_diagonal_matrix_is_exact() {
        let product: &mut Product = &mut |v, target| {
            target.iter_mut().zip(v).enumerate().for_each(|(i, (target, v))| *target = i as f32 * v);
            Ok(())
        };
        let stream = Streams::new(0, "curvature").stream("trace");
        let found = trace(product, 10, 3, &stream).unwrap();
        assert_eq!(found, Estimate { mean: 45.0, error: Some(0.0) });
    }

    /// Errors over many streams: as large as they say, and on both sides.
    #[test]
    fn errors_are_as_large_as_they_say() {
        let eigenvalues = like_a_network(300);
        let expected: f64 = eigenvalues.iter().sum();
        let mut quadratic = Quadratic::new(eigenvalues);
        let stream = Streams::new(0, "curvature").stream("trace");
        let mut scores = Vec::new();
        for number in 0..40 {
            let own = stream.child(&number.to_string());
            let found = trace(&mut |v, target| quadratic.multiply(v, target), 300, 50, &own).unwrap();
            scores.push((found.mean - expected) / found.error.unwrap());
        }
        let n = scores.len() as f64;
        let mean = scores.iter().sum::<f64>() / n;
        let spread = (scores.iter().map(|z| z * z).sum::<f64>() / n).sqrt();
        assert!(mean.abs() < 0.5 && (0.7..1.4).contains(&spread), "mean {mean}, spread {spread}");
    }
}
