//! Eigenvalues, trace and spectral density of a symmetric matrix that is known by its products with vectors, such as the
//! Hessian of a loss ([`hvp`](super::hvp)).
//!
//! A product costs two gradients and everything else next to nothing, so results are given per product taken: one by
//! [`power`] iteration and by [`hutchinson`], as many as eigenvalues are resolved by [`lanczos`].
//!
//! The matrix itself is never made: this is for as many rows as a network has parameters.

pub mod density;
pub mod hutchinson;
pub mod lanczos;
pub mod power;
#[cfg(test)]
mod quadratic;
#[cfg(test)]
mod two_layers;

use crate::error::{Error, Result};
use crate::kernels::{Isa, l2};
use crate::rng::Stream;

/// Writes the matrix's product with its first argument into the second; both have as many values as the matrix rows.
pub type Product<'a> = dyn FnMut(&[f32], &mut [f32]) -> Result<()> + 'a;

/// `n` random signs (Rademacher draws).
pub fn signs(mut stream: Stream, n: usize) -> Vec<f32> {
    let mut signs = Vec::with_capacity(n);
    while signs.len() < n {
        let bits = stream.next_u64();
        let some = (0..64.min(n - signs.len())).map(|i| if bits >> i & 1 == 0 { 1.0 } else { -1.0 });
        signs.extend(some);
    }
    signs
}

/// Divides `vector` by its length, which is returned.
fn normalise(vector: &mut [f32]) -> Result<f64> {
    let length = finite(l2::length(Isa::best(), vector))?;
    if length > 0.0 {
        let factor = (1.0 / length) as f32;
        vector.iter_mut().for_each(|value| *value *= factor);
    }
    Ok(length)
}

/// What was computed from a product, if it is a number.
fn finite(value: f64) -> Result<f64> {
    match value.is_finite() {
        true => Ok(value),
        false => Err(Error::stage("a product with the matrix is not finite")
            .hint("look whether the model's loss is finite on these images")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Streams;

    #[test]
    fn signs_are_fair_and_cut_to_length() {
        let stream = Streams::new(0, "curvature").stream("signs");
        let drawn = signs(stream.clone(), 10_001);
        assert_eq!(drawn.len(), 10_001);
        assert!(drawn.iter().all(|&s| s == 1.0 || s == -1.0) && drawn.iter().sum::<f32>().abs() < 400.0);
        assert_eq!(signs(stream.clone(), 100), drawn[..100]);
        assert_ne!(signs(stream.at(1), 100), drawn[..100]);
    }
}
