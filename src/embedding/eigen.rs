//! Eigenvalues and eigenvectors of a symmetric matrix, in f64.
//!
//! Householder's reduction to tridiagonal form (G. Golub and C. Van Loan, *Matrix Computations*, 4th ed., 8.3.1), then
//! the implicit QL iteration (A. Dubrulle, R. Martin and J. Wilkinson, "The implicit QL algorithm", 1968). All
//! eigenvalues are found, in O(n^3); meant for widths of layers, up to a thousand or two.

use crate::error::{Error, Result};

/// Eigenvalues, descending, and their unit eigenvectors, row after row.
#[derive(Clone, Debug)]
pub struct Eigen {
    /// Descending.
    pub values: Vec<f64>,
    /// [n, n], a vector a row, in the order of `values`; signs as they come.
    pub vectors: Vec<f64>,
}

/// More QL steps for one eigenvalue than this do not happen: two or three are usual.
const MOST_STEPS: usize = 60;

/// Decomposes the symmetric matrix `matrix`, [n, n].
///
/// # Errors
/// A value that is not finite.
///
/// # Panics
/// If `matrix` does not hold n^2 values.
pub fn symmetric(matrix: Vec<f64>, n: usize) -> Result<Eigen> {
    assert_eq!(matrix.len(), n * n, "a {n} x {n} matrix must fill its slice");
    if matrix.iter().any(|value| !value.is_finite()) {
        return Err(Error::stage("the values are not all finite, so they have no principal components"));
    }
    let (mut diagonal, mut beside, mut vectors) = tridiagonal(matrix, n);
    iterate(&mut diagonal, &mut beside, &mut vectors, n)?;
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a]));
    Ok(Eigen {
        values: order.iter().map(|&i| diagonal[i]).collect(),
        vectors: order.iter().flat_map(|&i| vectors[i * n..(i + 1) * n].iter().copied()).collect(),
    })
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The diagonal, the n - 1 values beside it (and a zero), and Q^T with A = Q T Q^T.
fn tridiagonal(mut a: Vec<f64>, n: usize) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let mut beside = vec![0.0; n];
    // The reflections 1 - v v^T with |v|^2 = 2, column after column; v[..=k] = 0.
    let mut reflections: Vec<Vec<f64>> = Vec::new();
    for k in 0..n.saturating_sub(1) {
        let mut v: Vec<f64> = (0..n).map(|i| if i > k { a[i * n + k] } else { 0.0 }).collect();
        let norm = dot(&v, &v).sqrt();
        // Away from zero, so that nothing cancels.
        let alpha = if v[k + 1] > 0.0 { -norm } else { norm };
        beside[k] = alpha;
        v[k + 1] -= alpha;
        let length = dot(&v, &v).sqrt();
        if length == 0.0 {
            reflections.push(Vec::new());
            continue;
        }
        v.iter_mut().for_each(|value| *value *= std::f64::consts::SQRT_2 / length);
        let tail = k + 1..n;
        let mut w = vec![0.0; n];
        for i in tail.clone() {
            w[i] = dot(&a[i * n + k + 1..(i + 1) * n], &v[k + 1..]);
        }
        let half = 0.5 * dot(&w, &v);
        w.iter_mut().zip(&v).for_each(|(w, v)| *w -= half * v);
        for i in tail {
            let row = &mut a[i * n + k + 1..(i + 1) * n];
            for ((value, &v_j), &w_j) in row.iter_mut().zip(&v[k + 1..]).zip(&w[k + 1..]) {
                *value -= v[i] * w_j + w[i] * v_j;
            }
        }
        reflections.push(v);
    }
    let diagonal = (0..n).map(|i| a[i * n + i]).collect();
    let mut vectors = a;
    vectors.fill(0.0);
    for i in 0..n {
        vectors[i * n + i] = 1.0;
    }
    for (k, v) in reflections.iter().enumerate().rev().filter(|(_, v)| !v.is_empty()) {
        for row in vectors.chunks_exact_mut(n).skip(k + 1) {
            let along = dot(&row[k + 1..], &v[k + 1..]);
            row[k + 1..].iter_mut().zip(&v[k + 1..]).for_each(|(value, v)| *value -= along * v);
        }
    }
    (diagonal, beside, vectors)
}

/// Turns the tridiagonal matrix into a diagonal one, rotating the rows of `vectors` along.
fn iterate(diagonal: &mut [f64], beside: &mut [f64], vectors: &mut [f64], n: usize) -> Result<()> {
    for l in 0..n {
        for step in 0.. {
            let is_small = |m: &usize| {
                let size = diagonal[*m].abs() + diagonal[*m + 1].abs();
                beside[*m].abs() <= f64::EPSILON * size
            };
            let m = (l..n - 1).find(is_small).unwrap_or(n - 1);
            if m == l {
                break;
            }
            if step == MOST_STEPS {
                return Err(Error::stage(
                    "the eigenvalue iteration does not end; are the values astronomically large?",
                ));
            }
            let mut g = (diagonal[l + 1] - diagonal[l]) / (2.0 * beside[l]);
            let mut r = libm::hypot(g, 1.0);
            g = diagonal[m] - diagonal[l] + beside[l] / (g + r.copysign(g));
            let (mut s, mut c, mut p) = (1.0, 1.0, 0.0);
            let mut is_split = false;
            for i in (l..m).rev() {
                let (f, b) = (s * beside[i], c * beside[i]);
                r = libm::hypot(f, g);
                beside[i + 1] = r;
                if r == 0.0 {
                    diagonal[i + 1] -= p;
                    beside[m] = 0.0;
                    is_split = true;
                    break;
                }
                (s, c) = (f / r, g / r);
                g = diagonal[i + 1] - p;
                r = (diagonal[i] - g) * s + 2.0 * c * b;
                p = s * r;
                diagonal[i + 1] = g + p;
                g = c * r - b;
                let (above, below) = vectors[i * n..(i + 2) * n].split_at_mut(n);
                for (first, second) in above.iter_mut().zip(below) {
                    (*first, *second) = (c * *first - s * *second, s * *first + c * *second);
                }
            }
            if !is_split {
                diagonal[l] -= p;
                beside[l] = g;
                beside[m] = 0.0;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Streams;

    /// A v = lambda v, V V^T = 1, descending; returns the values.
    fn check(matrix: Vec<f64>, n: usize) -> Vec<f64> {
        let eigen = symmetric(matrix.clone(), n).unwrap();
        let size = matrix.iter().fold(1e-300f64, |size, value| size.max(value.abs())) * n as f64;
        for (i, (value, vector)) in eigen.values.iter().zip(eigen.vectors.chunks_exact(n.max(1))).enumerate() {
            for (row, &component) in matrix.chunks_exact(n.max(1)).zip(vector) {
                assert!((dot(row, vector) - value * component).abs() < 1e-13 * size, "{n}: value {i}");
            }
            for (j, other) in eigen.vectors.chunks_exact(n.max(1)).enumerate() {
                let expected = f64::from(i == j);
                assert!((dot(vector, other) - expected).abs() < 1e-12, "{n}: vectors {i} and {j}");
            }
        }
        assert!(eigen.values.windows(2).all(|pair| pair[0] >= pair[1]));
        eigen.values
    }

    #[test]
    fn known_values() {
        let close = |found: Vec<f64>, expected: &[f64]| {
            assert!(found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12));
        };
        close(check(vec![], 0), &[]);
        close(check(vec![-3.0], 1), &[-3.0]);
        close(check(vec![2.0, 1.0, 1.0, 2.0], 2), &[3.0, 1.0]);
        close(check(vec![0.0; 16], 4), &[0.0; 4]);
        // The second difference on n points: 2 - 2 cos(k pi / (n + 1)).
        let n = 12usize;
        let second = (0..n * n).map(|at| match (at / n).abs_diff(at % n) {
            0 => 2.0,
            1 => -1.0,
            _ => 0.0,
        });
        let angle = |k: usize| std::f64::consts::PI * k as f64 / (n + 1) as f64;
        let expected: Vec<f64> = (1..=n).rev().map(|k| 2.0 - 2.0 * libm::cos(angle(k))).collect();
        close(check(second.collect(), n), &expected);
        // All ones: n and a null space.
        close(check(vec![1.0; 25], 5), &[5.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn random_matrices() {
        let mut stream = Streams::new(1, "eigen").stream("values");
        for n in [3, 10, 41] {
            let mut matrix = vec![0.0; n * n];
            for i in 0..n {
                for j in 0..=i {
                    matrix[i * n + j] = stream.normal();
                    matrix[j * n + i] = matrix[i * n + j];
                }
            }
            check(matrix, n);
        }
        assert!(symmetric(vec![f64::NAN], 1).is_err());
    }
}
