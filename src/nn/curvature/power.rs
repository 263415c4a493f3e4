//! Power iteration with deflation: the eigenvalues largest in magnitude, one after the other.
//!
//! As PyHessian (Z. Yao et al., arXiv:1912.07145) computes them: each from a normal start kept orthogonal to the vectors
//! found before, until the Rayleigh quotient settles. [`lanczos`](super::lanczos) needs fewer products.

use super::{Product, finite, normalise};
use crate::error::Result;
use crate::kernels::basis;
use crate::kernels::{Isa, l2};
use crate::rng::Stream;

/// When an iteration ends.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Products for one eigenvalue, at most.
    pub most_steps: usize,
    /// Relative change of the Rayleigh quotient from one step to the next below which it has settled.
    pub tolerance: f64,
}

/// An eigenvalue.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The Rayleigh quotient.
    pub value: f64,
    /// `|A v - value v|`, outside of the vectors found before.
    pub residual: f64,
    /// v, of unit length.
    pub vector: Vec<f32>,
}

/// The `n` eigenvalues largest in magnitude, in the order found, of a matrix of `n_rows`; fewer if it has fewer rows.
/// Number i starts from sub-stream i of `stream`.
///
/// # Errors
/// A product that is not finite, and what `product` says.
pub fn largest(
    product: &mut Product,
    n_rows: usize,
    n: usize,
    settings: Settings,
    stream: &Stream,
) -> Result<Vec<Pair>> {
    let isa = Isa::best();
    let (mut found, mut pairs) = (Vec::<Vec<f32>>::new(), Vec::new());
    let without = |found: &[Vec<f32>], vector: &mut [f32]| {
        let factors = basis::coefficients(isa, found, vector);
        basis::subtract(isa, found, &factors, vector);
    };
    for number in 0..n.min(n_rows) {
        let mut vector = stream.at(number as u64).normals(n_rows, 1.0);
        without(&found, &mut vector);
        normalise(&mut vector)?;
        let mut target = vec![0.0; n_rows];
        let mut before: Option<f64> = None;
        for step in 1.. {
            product(&vector, &mut target)?;
            without(&found, &mut target);
            let value = finite(basis::dot(isa, &vector, &target))?;
            let has_settled = before.is_some_and(|before| (value - before).abs() <= settings.tolerance * before.abs());
            let is_last = has_settled || step >= settings.most_steps;
            let mut next = target.clone();
            if is_last {
                let beside = std::slice::from_ref(&vector);
                basis::subtract(isa, beside, &[value], &mut target);
                pairs.push(Pair { value, residual: l2::length(isa, &target), vector: vector.clone() });
            }
            // A product of nothing but zeros: the rest of the spectrum is zero.
            if normalise(&mut next)? > 0.0 {
                vector = next;
            }
            if is_last {
                break;
            }
            before = Some(value);
        }
        found.push(pairs[number].vector.clone());
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::super::quadratic::{Quadratic, like_a_network};
    use super::*;
    use crate::rng::Streams;

    fn found(eigenvalues: Vec<f64>, n: usize, settings: Settings) -> (Vec<Pair>, usize) {
        let stream = Streams::new(0, "curvature").stream("power");
        let (n_rows, mut quadratic) = (eigenvalues.len(), Quadratic::new(eigenvalues));
        let pairs = largest(&mut |v, target| quadratic.multiply(v, target), n_rows, n, settings, &stream).unwrap();
        (pairs, quadratic.n_products)
    }

    #[test]
    fn the_largest_in_magnitude_come_first() {
        let settings = Settings { most_steps: 1_000, tolerance: 1e-7 };
        let (pairs, _) = found(like_a_network(500), 5, settings);
        for (pair, expected) in pairs.iter().zip([100.0, 40.0, 20.0, 19.0, -8.0f64]) {
            assert!((pair.value - expected).abs() < 2e-3 * expected.abs(), "{} instead of {expected}", pair.value);
            assert!(pair.residual < 0.05 * expected.abs(), "residual {} of {expected}", pair.residual);
        }
    }

    #[test]
    fn an_iteration_ends_when_it_is_told_to() {
        let (pairs, n_products) = found(like_a_network(500), 2, Settings { most_steps: 7, tolerance: 0.0 });
        assert_eq!((pairs.len(), n_products), (2, 14));
        let (pairs, n_products) = found(vec![3.0, 1.0], 5, Settings { most_steps: 100, tolerance: 1e-3 });
        assert!(pairs.len() == 2 && n_products < 20, "{n_products}");
        // A matrix of zeros has settled at once.
        let (pairs, _) = found(vec![0.0; 4], 2, Settings { most_steps: 100, tolerance: 1e-3 });
        assert!(pairs.iter().all(|pair| pair.value == 0.0 && pair.residual == 0.0));
    }
}
