//! Naive f64 versions of the kernels, for tests; their own gradients are checked by central differences.

use super::conv::Geometry;
use super::pool::Image;

/// Reproducible values in [-1, 1), never 0.
pub(crate) fn values(seed: u32, n: usize) -> Vec<f32> {
    let mix = |i: usize| {
        let mut h = (i as u32).wrapping_mul(0x9e37_79b9) ^ seed.wrapping_mul(0x85eb_ca6b);
        h = (h ^ (h >> 16)).wrapping_mul(0x7feb_352d);
        h = (h ^ (h >> 15)).wrapping_mul(0x846c_a68b);
        ((h ^ (h >> 16)) >> 9) as f32
    };
    (0..n).map(|i| (mix(i) + 0.5) / 4_194_304.0 - 1.0).collect()
}

pub(crate) fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

/// Largest difference, relative to the largest expected value.
pub(crate) fn error(got: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let scale = expected.iter().fold(1e-30, |m: f64, v| m.max(v.abs()));
    got.iter().zip(expected).fold(0.0, |e: f64, (&g, &x)| e.max((f64::from(g) - x).abs())) / scale
}

#[track_caller]
pub(crate) fn check(what: &str, got: &[f32], expected: &[f64], tolerance: f64) {
    let error = error(got, expected);
    assert!(error < tolerance, "{what}: relative error {error:.2e}, allowed {tolerance:.0e}");
}

/// Compares `gradient` with central differences of `sum(weights * f(x))`.
#[track_caller]
pub(crate) fn check_gradient(what: &str, x: &[f64], weights: &[f64], gradient: &[f64], f: impl Fn(&[f64]) -> Vec<f64>) {
    const STEP: f64 = 1e-5;
    let objective = |x: &[f64]| f(x).iter().zip(weights).map(|(y, w)| y * w).sum::<f64>();
    let scale = gradient.iter().fold(1e-3, |m: f64, v| m.max(v.abs()));
    let mut moved = x.to_vec();
    // Every coordinate of small inputs, an even sample of large ones.
    for i in (0..x.len()).step_by(x.len().div_ceil(200)) {
        moved[i] = x[i] + STEP;
        let above = objective(&moved);
        moved[i] = x[i] - STEP;
        let below = objective(&moved);
        moved[i] = x[i];
        let difference = (above - below) / (2.0 * STEP);
        assert!(
            (difference - gradient[i]).abs() < 1e-6 * scale,
            "{what}: coordinate {i}: central difference {difference}, gradient {}",
            gradient[i]
        );
    }
}

/// For every (output, input, weight) triple of a convolution, by index.
fn conv_visit(g: &Geometry, n: usize, mut visit: impl FnMut(usize, usize, usize)) {
    let (height, width) = (g.out_height(), g.out_width());
    for image in 0..n {
        for y in 0..height {
            for x in 0..width {
                for tap in 0..g.n_taps() {
                    let row = (y * g.stride + tap / g.kernel) as isize - g.padding as isize;
                    let column = (x * g.stride + tap % g.kernel) as isize - g.padding as isize;
                    if row < 0 || column < 0 || row >= g.height as isize || column >= g.width as isize {
                        continue;
                    }
                    let input = (image * g.height + row as usize) * g.width + column as usize;
                    let output = (image * height + y) * width + x;
                    for ci in 0..g.in_channels {
                        for co in 0..g.out_channels {
                            visit(
                                output * g.out_channels + co,
                                input * g.in_channels + ci,
                                (tap * g.in_channels + ci) * g.out_channels + co,
                            );
                        }
                    }
                }
            }
        }
    }
}

pub(crate) fn conv(g: &Geometry, n: usize, x: &[f64], w: &[f64], bias: &[f64]) -> Vec<f64> {
    let mut y: Vec<f64> =
        bias.iter().copied().cycle().take(n * g.out_height() * g.out_width() * g.out_channels).collect();
    conv_visit(g, n, |o, i, k| y[o] += x[i] * w[k]);
    y
}

/// Gradients on input and weights.
pub(crate) fn conv_gradients(g: &Geometry, n: usize, x: &[f64], w: &[f64], dy: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; w.len()]);
    conv_visit(g, n, |o, i, k| {
        dx[i] += dy[o] * w[k];
        dw[k] += dy[o] * x[i];
    });
    (dx, dw)
}

/// A batch normalisation in f64; `frozen` holds mean and variance.
pub(crate) struct Norm {
    pub(crate) n_channels: usize,
    pub(crate) frozen: Option<(Vec<f64>, Vec<f64>)>,
    pub(crate) relu: bool,
}

impl Norm {
    /// Biased mean and variance per channel.
    pub(crate) fn moments(&self, x: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let rows = (x.len() / self.n_channels) as f64;
        let mut mean = vec![0.0; self.n_channels];
        let mut variance = vec![0.0; self.n_channels];
        for (i, v) in x.iter().enumerate() {
            mean[i % self.n_channels] += v / rows;
        }
        for (i, v) in x.iter().enumerate() {
            variance[i % self.n_channels] += (v - mean[i % self.n_channels]).powi(2) / rows;
        }
        (mean, variance)
    }

    pub(crate) fn forward(&self, x: &[f64], gamma: &[f64], beta: &[f64], residual: &[f64]) -> Vec<f64> {
        let (mean, variance) = self.frozen.clone().unwrap_or_else(|| self.moments(x));
        let normal = |(i, v): (usize, &f64)| {
            let c = i % self.n_channels;
            let y = gamma[c] * (v - mean[c]) / (variance[c] + 1e-5).sqrt() + beta[c] + residual[i];
            if self.relu { y.max(0.0) } else { y }
        };
        x.iter().enumerate().map(normal).collect()
    }

    /// Gradients on input, scale, shift and residual.
    pub(crate) fn backward(&self, x: &[f64], y: &[f64], gamma: &[f64], dy: &[f64]) -> [Vec<f64>; 4] {
        let (mean, variance) = self.frozen.clone().unwrap_or_else(|| self.moments(x));
        let rows = (x.len() / self.n_channels) as f64;
        let g: Vec<f64> = dy.iter().zip(y).map(|(&d, &y)| if self.relu && y <= 0.0 { 0.0 } else { d }).collect();
        let normal = |i: usize| (x[i] - mean[i % self.n_channels]) / (variance[i % self.n_channels] + 1e-5).sqrt();
        let (mut d_gamma, mut d_beta) = (vec![0.0; self.n_channels], vec![0.0; self.n_channels]);
        for (i, g) in g.iter().enumerate() {
            d_gamma[i % self.n_channels] += g * normal(i);
            d_beta[i % self.n_channels] += g;
        }
        let input = |i: usize| {
            let c = i % self.n_channels;
            let through = match self.frozen {
                Some(_) => 0.0,
                None => (d_beta[c] + normal(i) * d_gamma[c]) / rows,
            };
            gamma[c] / (variance[c] + 1e-5).sqrt() * (g[i] - through)
        };
        let dx = (0..x.len()).map(input).collect();
        [dx, d_gamma, d_beta, g]
    }
}

/// Index of the first maximum of every 2 x 2 window.
fn maxima(image: Image, x: &[f64]) -> Vec<usize> {
    let Image { height, width, channels } = image;
    let mut found = Vec::new();
    for n in 0..x.len() / (height * width * channels) {
        for row in 0..height / 2 {
            for column in 0..width / 2 {
                for c in 0..channels {
                    let at = |r: usize, k: usize| ((n * height + 2 * row + r) * width + 2 * column + k) * channels + c;
                    let mut best = at(0, 0);
                    for candidate in [at(0, 1), at(1, 0), at(1, 1)] {
                        if x[candidate] > x[best] {
                            best = candidate;
                        }
                    }
                    found.push(best);
                }
            }
        }
    }
    found
}

pub(crate) fn max_pool(image: Image, x: &[f64]) -> Vec<f64> {
    maxima(image, x).into_iter().map(|i| x[i]).collect()
}

pub(crate) fn max_pool_gradient(image: Image, x: &[f64], dy: &[f64]) -> Vec<f64> {
    let mut dx = vec![0.0; x.len()];
    for (i, d) in maxima(image, x).into_iter().zip(dy) {
        dx[i] += d;
    }
    dx
}
