//! The linear layer: `y = x w' + b` with `w` [out, in], PyTorch's layout.
//!
//! Plain dot products: classifiers are too small for a blocked matrix product to pay.

use super::isa::multiversion;
use super::{Isa, Write, lanes};
use rayon::prelude::*;

/// `x` [n, in] to `y` [n, out].
pub fn forward(isa: Isa, x: &[f32], weights: &[f32], bias: &[f32], y: &mut [f32]) {
    let (n_out, n_in) = sizes(weights, bias);
    assert!(x.len() / n_in == y.len() / n_out, "batch sizes of input and output");
    y.par_chunks_mut(n_out).zip(x.par_chunks(n_in)).for_each(|(y, x)| dots(isa, x, weights, bias, y));
}

/// `dx (+)= dy w`, [n, in].
pub fn backward_input(isa: Isa, dy: &[f32], weights: &[f32], n_out: usize, write: Write, dx: &mut [f32]) {
    let n_in = weights.len() / n_out;
    assert!(dx.len() / n_in == dy.len() / n_out, "batch sizes of input and output");
    dx.par_chunks_mut(n_in).zip(dy.par_chunks(n_out)).for_each(|(dx, dy)| {
        if write == Write::Replace {
            dx.fill(0.0);
        }
        for (row, &dy) in weights.chunks_exact(n_in).zip(dy) {
            add_scaled(isa, dy, row, dx);
        }
    });
}

/// Gradients on weights, [out, in], and bias, [out]; both are overwritten. Sums go over the batch in order.
pub fn backward_weights(isa: Isa, x: &[f32], dy: &[f32], d_weights: &mut [f32], d_bias: &mut [f32]) {
    let (n_out, n_in) = sizes(d_weights, d_bias);
    assert!(x.len() / n_in == dy.len() / n_out, "batch sizes of input and output");
    let rows = d_weights.par_chunks_mut(n_in).zip(d_bias.par_iter_mut());
    rows.enumerate().for_each(|(k, (row, bias))| {
        row.fill(0.0);
        *bias = 0.0;
        for (x, dy) in x.chunks_exact(n_in).zip(dy.chunks_exact(n_out)) {
            add_scaled(isa, dy[k], x, row);
            *bias += dy[k];
        }
    });
}

fn sizes(weights: &[f32], bias: &[f32]) -> (usize, usize) {
    assert!(!bias.is_empty() && weights.len().is_multiple_of(bias.len()), "{} x {}", weights.len(), bias.len());
    (bias.len(), weights.len() / bias.len())
}

/// Width of the partial sums of a dot product: the same for all instruction sets.
const LANES: usize = 16;

multiversion! {
    fn dots(x: &[f32], weights: &[f32], bias: &[f32], y: &mut [f32]) {
        for ((y, row), &bias) in y.iter_mut().zip(weights.chunks_exact(x.len())).zip(bias) {
            let mut sums = [0.0f32; LANES];
            let mut at = 0;
            while at + LANES <= x.len() {
                let (a, b): ([f32; LANES], [f32; LANES]) = (lanes(x, at), lanes(row, at));
                for i in 0..LANES {
                    sums[i] += a[i] * b[i];
                }
                at += LANES;
            }
            let mut sum = bias;
            for i in at..x.len() {
                sum += x[i] * row[i];
            }
            for value in sums {
                sum += value;
            }
            *y = sum;
        }
    }
}

multiversion! {
    fn add_scaled(scale: f32, x: &[f32], y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y += scale * x;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::reference::{check, check_gradient, values, wide};

    fn reference(n_in: usize, x: &[f64], w: &[f64], b: &[f64]) -> Vec<f64> {
        let dot = |x: &[f64], w: &[f64]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
        x.chunks(n_in).flat_map(|x| w.chunks(n_in).zip(b).map(move |(w, b)| b + dot(x, w))).collect()
    }

    #[test]
    fn agrees_with_the_reference() {
        for (n, n_in, n_out) in [(2, 3, 5), (3, 16, 10), (5, 48, 16), (2, 37, 3)] {
            let (x, w) = (values(1, n * n_in), values(2, n_out * n_in));
            let (b, dy) = (values(3, n_out), values(4, n * n_out));
            let (x64, w64, b64, dy64) = (wide(&x), wide(&w), wide(&b), wide(&dy));
            let (mut dx, mut dw, mut db) = (vec![0.0; x.len()], vec![0.0; w.len()], vec![0.0; n_out]);
            for s in 0..n {
                for k in 0..n_out {
                    db[k] += dy64[s * n_out + k];
                    for i in 0..n_in {
                        dx[s * n_in + i] += dy64[s * n_out + k] * w64[k * n_in + i];
                        dw[k * n_in + i] += dy64[s * n_out + k] * x64[s * n_in + i];
                    }
                }
            }
            check_gradient("input", &x64, &dy64, &dx, |x| reference(n_in, x, &w64, &b64));
            check_gradient("weights", &w64, &dy64, &dw, |w| reference(n_in, &x64, w, &b64));
            check_gradient("bias", &b64, &dy64, &db, |b| reference(n_in, &x64, &w64, b));
            for isa in Isa::available() {
                let mut y = vec![f32::NAN; dy.len()];
                forward(isa, &x, &w, &b, &mut y);
                check("forward", &y, &reference(n_in, &x64, &w64, &b64), 1e-6);
                let mut got = vec![f32::NAN; x.len()];
                backward_input(isa, &dy, &w, n_out, Write::Replace, &mut got);
                check("input gradient", &got, &dx, 1e-6);
                backward_input(isa, &dy, &w, n_out, Write::Add, &mut got);
                check("added input gradient", &got, &dx.iter().map(|d| 2.0 * d).collect::<Vec<_>>(), 1e-6);
                let (mut weights, mut bias) = (vec![f32::NAN; w.len()], vec![f32::NAN; n_out]);
                backward_weights(isa, &x, &dy, &mut weights, &mut bias);
                check("weight gradient", &weights, &dw, 1e-6);
                check("bias gradient", &bias, &db, 1e-6);
            }
        }
    }
}
