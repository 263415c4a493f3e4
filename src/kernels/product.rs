//! Matrix products on one thread, over the `gemm` crate, behind slices whose sizes are checked.
//!
//! One thread on purpose: callers that have many independent products (the critics of an epoch) run them side by side
//! on rayon, which is faster than splitting small products and gives the same bytes for any number of threads
//! (invariant 3).
#![allow(unsafe_code)]

use gemm::{Parallelism, gemm};
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

/// The numbers that kernels compute with: `f32` in runs, `f64` where gradients are checked by finite differences.
pub trait Real:
    Copy
    + Default
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + Into<f64>
    + Send
    + Sync
    + 'static
{
    /// Zero.
    const ZERO: Self;
    /// One.
    const ONE: Self;

    /// The nearest value.
    fn from_f64(value: f64) -> Self;

    /// The exponential, the same on every platform.
    fn exp(self) -> Self;
}

impl Real for f32 {
    const ZERO: f32 = 0.0;
    const ONE: f32 = 1.0;

    fn from_f64(value: f64) -> f32 {
        value as f32
    }

    fn exp(self) -> f32 {
        libm::expf(self)
    }
}

impl Real for f64 {
    const ZERO: f64 = 0.0;
    const ONE: f64 = 1.0;

    fn from_f64(value: f64) -> f64 {
        value
    }

    fn exp(self) -> f64 {
        libm::exp(self)
    }
}

/// A matrix over a row-major slice, possibly read transposed.
#[derive(Clone, Copy)]
pub struct Matrix<'a, T> {
    values: &'a [T],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// `rows` x `columns`, row after row.
    ///
    /// # Panics
    /// If `values` does not hold exactly that many.
    pub fn new(values: &'a [T], rows: usize, columns: usize) -> Matrix<'a, T> {
        assert_eq!(values.len(), rows * columns, "a {rows} x {columns} matrix must fill its slice");
        Matrix { values, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// The transpose; nothing is moved.
    pub fn t(self) -> Matrix<'a, T> {
        Matrix {
            values: self.values,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }
}

/// What becomes of the values that the destination holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// They are replaced by the product.
    Fresh,
    /// The product is added to them.
    Sum,
}

/// `out = lhs rhs`, or `out += lhs rhs`; `out` is row-major, [lhs.rows, rhs.columns].
///
/// # Panics
/// If the shapes do not fit.
pub fn product<T: Real>(out: &mut [T], target: Target, lhs: Matrix<'_, T>, rhs: Matrix<'_, T>) {
    let (m, k, n) = (lhs.rows, lhs.columns, rhs.columns);
    assert_eq!(k, rhs.rows, "inner dimensions must agree");
    assert_eq!(out.len(), m * n, "the product must fill its destination");
    let stride = |s: usize| s as isize;
    // SAFETY: `Matrix` can only be made over a slice of rows * columns values and transposed, so every address that
    // its strides reach lies within its slice; `out` holds m * n values and, being borrowed mutably, overlaps neither.
    unsafe {
        gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            stride(n),
            target == Target::Sum,
            lhs.values.as_ptr(),
            stride(lhs.column_stride),
            stride(lhs.row_stride),
            rhs.values.as_ptr(),
            stride(rhs.column_stride),
            stride(rhs.row_stride),
            T::ONE,
            T::ONE,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Streams;

    fn check(m: usize, k: usize, n: usize) {
        let stream = Streams::new(3, "product").stream("values");
        let draw = |at: u64, count: usize| -> Vec<f64> {
            let mut stream = stream.at(at);
            (0..count).map(|_| stream.normal()).collect()
        };
        let (lhs, rhs, start) = (draw(0, m * k), draw(1, k * n), draw(2, m * n));
        let want = |i: usize, j: usize| (0..k).map(|l| lhs[i * k + l] * rhs[l * n + j]).sum::<f64>();
        let transpose = |values: &[f64], rows: usize, columns: usize| -> Vec<f64> {
            (0..rows * columns).map(|at| values[at % rows * columns + at / rows]).collect()
        };
        let (lhs_t, rhs_t) = (transpose(&lhs, m, k), transpose(&rhs, k, n));
        for (left, right) in [
            (Matrix::new(&lhs, m, k), Matrix::new(&rhs, k, n)),
            (Matrix::new(&lhs_t, k, m).t(), Matrix::new(&rhs, k, n)),
            (Matrix::new(&lhs, m, k), Matrix::new(&rhs_t, n, k).t()),
        ] {
            let mut out = start.clone();
            product(&mut out, Target::Sum, left, right);
            let mut fresh = vec![f64::NAN; m * n];
            product(&mut fresh, Target::Fresh, left, right);
            for i in 0..m {
                for j in 0..n {
                    let at = i * n + j;
                    assert!((out[at] - start[at] - want(i, j)).abs() < 1e-12 * k as f64, "{m} {k} {n} at {i} {j}");
                    assert!((fresh[at] - want(i, j)).abs() < 1e-12 * k as f64, "{m} {k} {n} at {i} {j}");
                }
            }
        }
    }

    #[test]
    fn products_agree_with_the_definition() {
        check(1, 1, 1);
        check(2, 3, 5);
        check(17, 33, 9);
        check(64, 128, 1);
    }
}
