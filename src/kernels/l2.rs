//! Euclidean lengths: of a whole buffer, and of rows that are divided by theirs.
//!
//! `y = x / max(|x|, eps)` over rows, `torch.nn.functional.normalize`'s semantics: rows shorter than eps (1e-12) are
//! scaled by 1 / eps, in the backward pass too. Sums of squares are f64.

use super::isa::multiversion;
use super::{CHUNK, Isa, Write, lanes};
use rayon::prelude::*;

/// The shortest length that divides, as in `torch.nn.functional.normalize`.
const EPSILON: f64 = 1e-12;

/// `|x|`. Partial sums go by chunks of fixed size, combined in order.
pub fn length(isa: Isa, x: &[f32]) -> f64 {
    let of_chunk = |x: &[f32]| {
        let mut sum = 0.0;
        add_products(isa, x, x, &mut sum);
        sum
    };
    let sums: Vec<f64> = x.par_chunks(CHUNK).map(of_chunk).collect();
    sums.iter().sum::<f64>().sqrt()
}

/// `|(|w| + offset) * x|` with elementwise products, as [`length`]; `w` is as long as `x`.
pub fn weighted_length(isa: Isa, x: &[f32], w: &[f32], offset: f32) -> f64 {
    assert_eq!(x.len(), w.len(), "lengths");
    let of_chunk = |(x, w): (&[f32], &[f32])| {
        let mut sum = 0.0;
        add_weighted_squares(isa, x, w, offset, &mut sum);
        sum
    };
    let sums: Vec<f64> = x.par_chunks(CHUNK).zip(w.par_chunks(CHUNK)).map(of_chunk).collect();
    sums.iter().sum::<f64>().sqrt()
}

/// Normalises the rows of `x` [n, d] into `y` [n, d]; `lengths` [n] keeps their lengths for the backward pass.
pub fn normalise(isa: Isa, x: &[f32], lengths: &mut [f32], y: &mut [f32]) {
    let d = width(x, lengths);
    assert_eq!(x.len(), y.len(), "lengths");
    y.par_chunks_mut(d).zip(x.par_chunks(d)).zip(lengths.par_iter_mut()).for_each(|((y, x), length)| {
        let mut sum = 0.0;
        add_products(isa, x, x, &mut sum);
        let exact = sum.sqrt();
        *length = exact as f32;
        scale(isa, x, (1.0 / exact.max(EPSILON)) as f32, y);
    });
}

/// `dx (+)= (dy - y (y . dy)) / |x|`, all [n, d], after [`normalise`] gave `y` and `lengths`.
pub fn normalise_backward(isa: Isa, y: &[f32], lengths: &[f32], dy: &[f32], write: Write, dx: &mut [f32]) {
    let d = width(y, lengths);
    assert!(dy.len() == y.len() && dx.len() == y.len(), "lengths");
    let rows = dx.par_chunks_mut(d).zip(y.par_chunks(d)).zip(dy.par_chunks(d)).zip(lengths.par_iter());
    rows.for_each(|(((dx, y), dy), &length)| {
        let length = f64::from(length);
        let mut along = 0.0;
        // A short row was scaled by a constant.
        if length > EPSILON {
            add_products(isa, y, dy, &mut along);
        }
        remove(isa, y, dy, along as f32, (1.0 / length.max(EPSILON)) as f32, write, dx);
    });
}

/// Values in a row.
fn width(values: &[f32], lengths: &[f32]) -> usize {
    assert!(
        !values.is_empty() && !lengths.is_empty() && values.len().is_multiple_of(lengths.len()),
        "{} values in {} rows",
        values.len(),
        lengths.len()
    );
    values.len() / lengths.len()
}

/// Width of the partial sums: the same for all instruction sets.
const LANES: usize = 8;

multiversion! {
    /// Adds `a . b` to `sum`.
    pub(super) fn add_products(a: &[f32], b: &[f32], sum: &mut f64) {
        let mut sums = [0.0f64; LANES];
        let mut at = 0;
        while at + LANES <= a.len() {
            let (a, b): ([f32; LANES], [f32; LANES]) = (lanes(a, at), lanes(b, at));
            for i in 0..LANES {
                sums[i] += f64::from(a[i]) * f64::from(b[i]);
            }
            at += LANES;
        }
        for i in at..a.len() {
            *sum += f64::from(a[i]) * f64::from(b[i]);
        }
        for value in sums {
            *sum += value;
        }
    }
}

multiversion! {
    /// Adds the squares of `(|w| + offset) * x` to `sum`.
    fn add_weighted_squares(x: &[f32], w: &[f32], offset: f32, sum: &mut f64) {
        let square = |x: f32, w: f32| {
            let product = (f64::from(w.abs()) + f64::from(offset)) * f64::from(x);
            product * product
        };
        let mut sums = [0.0f64; LANES];
        let mut at = 0;
        while at + LANES <= x.len() {
            let (x, w): ([f32; LANES], [f32; LANES]) = (lanes(x, at), lanes(w, at));
            for i in 0..LANES {
                sums[i] += square(x[i], w[i]);
            }
            at += LANES;
        }
        for i in at..x.len() {
            *sum += square(x[i], w[i]);
        }
        for value in sums {
            *sum += value;
        }
    }
}

multiversion! {
    fn scale(x: &[f32], factor: f32, y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x * factor;
        }
    }
}

multiversion! {
    /// `dx (+)= (dy - along * y) * factor`.
    fn remove(y: &[f32], dy: &[f32], along: f32, factor: f32, write: Write, dx: &mut [f32]) {
        for ((dx, &y), &dy) in dx.iter_mut().zip(y).zip(dy) {
            let before = if write == Write::Add { *dx } else { 0.0 };
            *dx = before + (dy - along * y) * factor;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::reference::{check, check_gradient, values, wide};

    fn reference(d: usize, x: &[f64]) -> Vec<f64> {
        let row = |row: &[f64]| {
            let length = row.iter().map(|v| v * v).sum::<f64>().sqrt().max(EPSILON);
            row.iter().map(|v| v / length).collect::<Vec<f64>>()
        };
        x.chunks(d).flat_map(row).collect()
    }

    fn reference_gradient(d: usize, x: &[f64], dy: &[f64]) -> Vec<f64> {
        let row = |(x, dy): (&[f64], &[f64])| {
            let length = x.iter().map(|v| v * v).sum::<f64>().sqrt();
            let along = x.iter().zip(dy).map(|(x, dy)| x / length * dy).sum::<f64>();
            x.iter().zip(dy).map(|(x, dy)| (dy - x / length * along) / length).collect::<Vec<f64>>()
        };
        x.chunks(d).zip(dy.chunks(d)).flat_map(row).collect()
    }

    #[test]
    fn rows_agree_with_the_reference() {
        for (n, d) in [(2, 1), (3, 5), (2, 8), (5, 16), (3, 129), (40, 512)] {
            let (x, dy) = (values(1, n * d), values(2, n * d));
            let (x64, dy64) = (wide(&x), wide(&dy));
            let gradient = reference_gradient(d, &x64, &dy64);
            check_gradient("rows", &x64, &dy64, &gradient, |x| reference(d, x));
            // A row of one value has no gradient but rounding errors: judged against 1.
            let shift = if d == 1 { 1.0 } else { 0.0 };
            let shifted = |dx: &[f32]| dx.iter().map(|&v| v + shift as f32).collect::<Vec<f32>>();
            let expected = |times: f64| gradient.iter().map(|g| times * g + shift).collect::<Vec<f64>>();
            for isa in Isa::available() {
                let (mut y, mut lengths) = (vec![f32::NAN; x.len()], vec![f32::NAN; n]);
                normalise(isa, &x, &mut lengths, &mut y);
                check("forward", &y, &reference(d, &x64), 1e-6);
                let mut dx = vec![f32::NAN; x.len()];
                normalise_backward(isa, &y, &lengths, &dy, Write::Replace, &mut dx);
                check("gradient", &shifted(&dx), &expected(1.0), 1e-5);
                normalise_backward(isa, &y, &lengths, &dy, Write::Add, &mut dx);
                check("added gradient", &shifted(&dx), &expected(2.0), 1e-5);
            }
        }
    }

    #[test]
    fn short_rows_are_scaled_by_a_constant() {
        let x = [0.0, 0.0, 3e-13, 4e-13];
        let (mut y, mut lengths, mut dx) = ([f32::NAN; 4], [f32::NAN; 2], [f32::NAN; 4]);
        normalise(Isa::best(), &x, &mut lengths, &mut y);
        check("forward", &y, &[0.0, 0.0, 0.3, 0.4], 1e-6);
        normalise_backward(Isa::best(), &y, &lengths, &[1.0, -2.0, 3.0, 0.5], Write::Replace, &mut dx);
        check("gradient", &dx, &[1e12, -2e12, 3e12, 0.5e12], 1e-6);
    }

    #[test]
    fn lengths_agree_with_the_definition() {
        for n in [0, 1, 7, 8, 1000, 3 * CHUNK + 5] {
            let x = values(3, n);
            let expected = wide(&x).iter().map(|v| v * v).sum::<f64>().sqrt();
            let w = values(4, n);
            let product = |(x, w): (f64, f64)| (x * (w.abs() + 0.25)).powi(2);
            let weighted = wide(&x).into_iter().zip(wide(&w)).map(product).sum::<f64>().sqrt();
            for isa in Isa::available() {
                assert!((length(isa, &x) - expected).abs() <= 1e-12 * expected, "{n} {}", isa.name());
                let got = weighted_length(isa, &x, &w, 0.25);
                assert!((got - weighted).abs() <= 1e-12 * weighted, "{n} {}", isa.name());
            }
        }
        assert!(length(Isa::best(), &[1.0, f32::NAN]).is_nan());
        // The squares do not overflow.
        assert!((length(Isa::best(), &[1.5e38, 2e38]) / 2.5e38 - 1.0).abs() < 1e-6);
    }

    #[test]
    fn neither_threads_nor_instructions_change_a_bit() {
        let (x, dy) = (values(1, 5 * CHUNK), values(2, 5 * CHUNK));
        let run = |threads: usize, isa: Isa| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let (mut y, mut lengths, mut dx) = (vec![0.0; x.len()], vec![0.0; 1024], vec![0.0; x.len()]);
                normalise(isa, &x, &mut lengths, &mut y);
                normalise_backward(isa, &y, &lengths, &dy, Write::Replace, &mut dx);
                (length(isa, &x), weighted_length(isa, &x, &dy, 0.1), lengths, y, dx)
            })
        };
        let expected = run(1, Isa::best());
        for isa in Isa::available() {
            assert!(run(1, isa) == expected && run(2, isa) == expected && run(3, isa) == expected, "{}", isa.name());
        }
    }
}
