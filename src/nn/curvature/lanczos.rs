//! Lanczos' method: from products with one vector after the other, a small tridiagonal matrix whose eigenvalues (Ritz
//! values) are those of the large one at the ends of the spectrum, and the nodes of a Gauss quadrature everywhere.
//!
//! G. Golub and C. Van Loan, *Matrix Computations*, 4th ed., 10.1 and 10.3. Every new vector is made orthogonal to all
//! before it, twice (B. Parlett: twice is enough): without it, found eigenvalues are found again, and weights are wrong.

use super::{Product, finite, normalise};
use crate::embedding::eigen::{self, Eigen};
use crate::error::{Error, Result};
use crate::kernels::basis;
use crate::kernels::{Isa, l2};

/// A new vector shorter than this share of the largest Ritz value has nothing left but rounding.
const EXHAUSTED: f64 = 1e-6;

/// What a run found.
#[derive(Clone, Debug)]
pub struct Krylov {
    /// Unit vectors, each orthogonal to all others.
    basis: Vec<Vec<f32>>,
    ritz: Eigen,
    /// Length of what the last product had outside of the basis.
    rest: f64,
}

/// Takes `n_steps` products, from `start` on; fewer where the matrix has no more rows, or `start` no part in more
/// eigenvectors.
///
/// # Errors
/// A start of zeros, a product that is not finite, and what `product` says.
pub fn run(product: &mut Product, start: &[f32], n_steps: usize) -> Result<Krylov> {
    let isa = Isa::best();
    let mut next = start.to_vec();
    if normalise(&mut next)? == 0.0 {
        return Err(Error::stage("Lanczos' method needs a start that is not zero"));
    }
    let (mut basis, mut diagonal, mut beside) = (Vec::new(), Vec::new(), Vec::new());
    let (mut rest, mut largest) = (0.0, 0.0f64);
    for step in 0..n_steps.clamp(1, start.len()) {
        basis.push(next);
        let mut new = vec![0.0; start.len()];
        product(&basis[step], &mut new)?;
        let along = finite(basis::dot(isa, &basis[step], &new))?;
        diagonal.push(along);
        for _ in 0..2 {
            let factors = basis::coefficients(isa, &basis, &new);
            basis::subtract(isa, &basis, &factors, &mut new);
        }
        rest = finite(l2::length(isa, &new))?;
        largest = largest.max(along.abs()).max(rest);
        if rest <= EXHAUSTED * largest {
            break;
        }
        beside.push(rest);
        normalise(&mut new)?;
        next = new;
    }
    let m = basis.len();
    let mut matrix = vec![0.0; m * m];
    for i in 0..m {
        matrix[i * m + i] = diagonal[i];
        if i + 1 < m {
            matrix[i * m + i + 1] = beside[i];
            matrix[(i + 1) * m + i] = beside[i];
        }
    }
    Ok(Krylov { basis, ritz: eigen::symmetric(matrix, m)?, rest })
}

impl Krylov {
    /// Ritz values, descending.
    pub fn values(&self) -> &[f64] {
        &self.ritz.values
    }

    /// The weights of the Ritz values as nodes of a quadrature of the start's spectral measure: the squared *first*
    /// components of the tridiagonal matrix's eigenvectors. They add up to 1.
    pub fn weights(&self) -> Vec<f64> {
        self.rows().map(|row| row[0] * row[0]).collect()
    }

    /// `|A v - value v|` of Ritz value `i` and its vector v: an eigenvalue lies no farther from it.
    pub fn residual(&self, i: usize) -> f64 {
        let m = self.values().len();
        self.rest * self.ritz.vectors[i * m + m - 1].abs()
    }

    /// The unit vector of Ritz value `i`.
    pub fn vector(&self, i: usize) -> Result<Vec<f32>> {
        let m = self.values().len();
        let factors: Vec<f64> = self.ritz.vectors[i * m..(i + 1) * m].iter().map(|c| -c).collect();
        let mut vector = vec![0.0; self.basis[0].len()];
        basis::subtract(Isa::best(), &self.basis, &factors, &mut vector);
        normalise(&mut vector)?;
        Ok(vector)
    }

    fn rows(&self) -> impl Iterator<Item = &[f64]> {
        self.ritz.vectors.chunks_exact(self.values().len())
    }
}

#[cfg(test)]
mod tests {
    use super::super::quadratic::{Quadratic, like_a_network};
    use super::*;
    use crate::kernels::reference::values;

    fn krylov(eigenvalues: Vec<f64>, start: &[f32], n_steps: usize) -> Krylov {
        let mut quadratic = Quadratic::new(eigenvalues);
        run(&mut |v, target| quadratic.multiply(v, target), start, n_steps).unwrap()
    }

    #[test]
    fn the_ends_of_the_spectrum_are_found_with_their_vectors() {
        let n = 3_000;
        let mut quadratic = Quadratic::new(like_a_network(n));
        let found = run(&mut |v, target| quadratic.multiply(v, target), &values(3, n), 40).unwrap();
        assert_eq!((quadratic.n_products, found.values().len()), (40, 40));
        for (i, expected) in [100.0, 40.0, 20.0, 19.0].into_iter().enumerate() {
            let value = found.values()[i];
            assert!((value - expected).abs() < 1e-4 * expected, "{value} instead of {expected}");
            assert!(found.residual(i) < 1e-3, "residual {}", found.residual(i));
            let own = quadratic.vector(i);
            let cosine: f64 = found.vector(i).unwrap().iter().zip(&own).map(|(&a, b)| f64::from(a) * b).sum();
            assert!(cosine.abs() > 1.0 - 1e-4, "vector {i}: cosine {cosine}");
        }
        assert!((found.values()[39] + 8.0).abs() < 1e-3);
        // None twice: that is what full orthogonality is for.
        assert!(found.values()[4] < 1.0);
    }

    /// As many steps as rows: the whole spectrum, and the start's share in every eigenvector.
    #[test]
    fn weights_are_the_starts_shares_in_the_eigenvectors() {
        let eigenvalues = vec![9.0, 4.0, 2.5, 1.0, 0.0, -3.0];
        let start = values(5, 6);
        let quadratic = Quadratic::new(eigenvalues.clone());
        let found = krylov(eigenvalues.clone(), &start, 6);
        let squares: f64 = start.iter().map(|&s| f64::from(s).powi(2)).sum();
        let weights = found.weights();
        assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        for (i, expected) in eigenvalues.iter().enumerate() {
            let share: f64 = quadratic.vector(i).iter().zip(&start).map(|(a, &b)| a * f64::from(b)).sum();
            assert!((found.values()[i] - expected).abs() < 1e-5, "{} instead of {expected}", found.values()[i]);
            assert!((weights[i] - share * share / squares).abs() < 1e-5, "weight {i}: {}", weights[i]);
        }
    }

    /// A start within three eigenvectors ends after three products, and so does a matrix of three different eigenvalues.
    #[test]
    fn a_start_that_is_exhausted_ends_the_run() {
        let few: Vec<f64> = (0..200).map(|i| [2.0, 1.0, -1.0][i % 3]).collect();
        let found = krylov(few, &values(1, 200), 50);
        assert!(found.values().len() <= 4, "{:?}", found.values());
        assert!((found.values()[0] - 2.0).abs() < 1e-5);
        // Second moment of the measure: the mean of squares, for a start without preferences.
        let moment: f64 = found.values().iter().zip(found.weights()).map(|(v, w)| v * v * w).sum();
        assert!((1.5..2.5).contains(&moment), "{moment}");
    }

    #[test]
    fn starts_and_products_must_be_numbers() {
        let message = |start: &[f32], value: f32| {
            let product: &mut Product = &mut |_, target| {
                target.fill(value);
                Ok(())
            };
            run(product, start, 2).map(|_| ()).unwrap_err().message().to_string()
        };
        assert_eq!(message(&[0.0; 3], 1.0), "Lanczos' method needs a start that is not zero");
        assert_eq!(message(&[1.0; 3], f32::NAN), "a product with the matrix is not finite");
    }
}
