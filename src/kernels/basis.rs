//! Products with a basis: `Q x` and `y -= Q' c` for a list Q of equally long vectors.
//!
//! Both go through memory once, chunk by chunk over all vectors, however many there are: keeping a vector orthogonal to a
//! hundred others must not cost more than a gradient. Sums are f64.

use super::isa::multiversion;
use super::{CHUNK, Isa, l2};
use rayon::prelude::*;

/// `x . y`. Partial sums go by chunks of fixed size, combined in order.
pub fn dot(isa: Isa, x: &[f32], y: &[f32]) -> f64 {
    assert_eq!(x.len(), y.len(), "lengths");
    let of_chunk = |(x, y): (&[f32], &[f32])| {
        let mut sum = 0.0;
        l2::add_products(isa, x, y, &mut sum);
        sum
    };
    let sums: Vec<f64> = x.par_chunks(CHUNK).zip(y.par_chunks(CHUNK)).map(of_chunk).collect();
    sums.iter().sum()
}

/// `q . x` for every q of `vectors`, each as long as `x`.
pub fn coefficients(isa: Isa, vectors: &[Vec<f32>], x: &[f32]) -> Vec<f64> {
    assert!(vectors.iter().all(|q| q.len() == x.len()), "lengths");
    let of_chunk = |(number, x): (usize, &[f32])| -> Vec<f64> {
        let from = number * CHUNK;
        let of_vector = |q: &Vec<f32>| {
            let mut sum = 0.0;
            l2::add_products(isa, &q[from..from + x.len()], x, &mut sum);
            sum
        };
        vectors.iter().map(of_vector).collect()
    };
    let sums: Vec<Vec<f64>> = x.par_chunks(CHUNK).enumerate().map(of_chunk).collect();
    (0..vectors.len()).map(|i| sums.iter().map(|of_chunk| of_chunk[i]).sum()).collect()
}

/// `y -= sum of factors[i] * vectors[i]`, each vector as long as `y`.
pub fn subtract(isa: Isa, vectors: &[Vec<f32>], factors: &[f64], y: &mut [f32]) {
    assert!(vectors.len() == factors.len() && vectors.iter().all(|q| q.len() == y.len()), "lengths");
    y.par_chunks_mut(CHUNK).enumerate().for_each(|(number, y)| {
        let from = number * CHUNK;
        for (q, &factor) in vectors.iter().zip(factors) {
            subtract_scaled(isa, &q[from..from + y.len()], factor as f32, y);
        }
    });
}

multiversion! {
    fn subtract_scaled(x: &[f32], factor: f32, y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y -= factor * x;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::reference::{check, values, wide};

    fn exact(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    }

    #[test]
    fn products_equal_plain_sums() {
        // One chunk, whole chunks, and a remainder.
        for n in [1, 7, CHUNK, 2 * CHUNK + 13] {
            let vectors: Vec<Vec<f32>> = (0..3).map(|seed| values(seed, n)).collect();
            let x = values(9, n);
            for isa in Isa::available() {
                assert!((dot(isa, &vectors[0], &x) - exact(&vectors[0], &x)).abs() < 1e-9 * n as f64);
                let found = coefficients(isa, &vectors, &x);
                for (q, found) in vectors.iter().zip(&found) {
                    assert!((found - exact(q, &x)).abs() < 1e-9 * n as f64);
                }
                let mut y = x.clone();
                let (factors, before) = ([0.5, -2.0, 0.25], wide(&x));
                subtract(isa, &vectors, &factors, &mut y);
                let expected: Vec<f64> = (0..n)
                    .map(|at| before[at] - (0..3).map(|i| factors[i] * f64::from(vectors[i][at])).sum::<f64>())
                    .take(if n > CHUNK { 0 } else { n })
                    .collect();
                check("difference", &y[..expected.len()], &expected, 1e-6);
                let last = n - 1;
                let at_end = f64::from(x[last]) - (0..3).map(|i| factors[i] * f64::from(vectors[i][last])).sum::<f64>();
                assert!((f64::from(y[last]) - at_end).abs() < 1e-5);
            }
        }
        assert!(coefficients(Isa::best(), &[], &[1.0]).is_empty());
    }
}
