//! Batch normalisation with what surrounds it in a residual block, in two passes over memory each way.
//!
//! `y = activation(gamma * (x - mean) / sqrt(variance + eps) + beta + residual)` over [rows, C], PyTorch's semantics:
//! the biased variance normalises, the unbiased one enters the running estimate with momentum 0.1, eps is 1e-5
//! (Ioffe & Szegedy 2015, arXiv:1502.03167). Frozen statistics have their own gradient.
//!
//! Statistics are sums of deviations from the batch's first row, so that a large mean does not cancel; partial sums
//! are f32 over a chunk of fixed size and f64 over chunks, in order (Invariant 3).

use super::isa::multiversion;
use super::{Activation, CHUNK, Isa, Write, lanes};
use rayon::prelude::*;

/// Added to the variance, as in `torch.nn.BatchNorm2d`.
const EPSILON: f64 = 1e-5;
/// Share of the batch in the running statistics, as in `torch.nn.BatchNorm2d`.
const MOMENTUM: f64 = 0.1;

/// What the backward pass needs of the forward pass.
#[derive(Clone, Debug)]
pub struct Saved {
    /// Mean that was subtracted, [C].
    mean: Vec<f32>,
    /// 1 / sqrt(variance + eps), [C].
    inv_std: Vec<f32>,
}

impl Saved {
    /// For `n_channels` channels.
    pub fn new(n_channels: usize) -> Saved {
        Saved { mean: vec![0.0; n_channels], inv_std: vec![0.0; n_channels] }
    }
}

/// Working memory, shared by all layers; grows to the largest.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    /// Two sums per channel, per chunk: [chunk][2][C].
    partials: Vec<f32>,
    /// Their totals, [2][C].
    totals: Vec<f64>,
    /// Coefficients of the apply pass, [3][C].
    coefficients: Vec<f32>,
}

/// Which statistics a forward pass takes, and what becomes of the running ones.
pub enum Statistics<'a> {
    /// The batch's; the running ones move towards them.
    Batch {
        /// Running mean, [C].
        mean: &'a mut [f32],
        /// Running variance (unbiased), [C].
        variance: &'a mut [f32],
    },
    /// The running ones.
    Running {
        /// Running mean, [C].
        mean: &'a [f32],
        /// Running variance, [C].
        variance: &'a [f32],
    },
}

/// One layer's forward pass; all activations are [rows, C].
pub struct Forward<'a> {
    /// Input.
    pub x: &'a [f32],
    /// Added before the activation.
    pub residual: Option<&'a [f32]>,
    /// Scale, [C].
    pub gamma: &'a [f32],
    /// Shift, [C].
    pub beta: &'a [f32],
    /// What follows.
    pub activation: Activation,
}

/// Normalises into `y`.
pub fn forward(
    isa: Isa,
    layer: &Forward,
    statistics: Statistics,
    saved: &mut Saved,
    scratch: &mut Scratch,
    y: &mut [f32],
) {
    let Forward { x, residual, gamma, beta, activation } = *layer;
    let n_channels = gamma.len();
    assert!(x.len() == y.len() && x.len().is_multiple_of(n_channels), "{} values, {n_channels} channels", x.len());
    assert!(residual.is_none_or(|residual| residual.len() == x.len()), "residual of another size");
    let rows = x.len() / n_channels;
    match statistics {
        Statistics::Running { mean, variance } => {
            saved.mean.copy_from_slice(mean);
            for (inv_std, &variance) in saved.inv_std.iter_mut().zip(variance) {
                *inv_std = (1.0 / (f64::from(variance) + EPSILON).sqrt()) as f32;
            }
        }
        Statistics::Batch { mean: running_mean, variance: running_variance } => {
            let origin = &x[..n_channels];
            column_sums(x.len(), n_channels, scratch, |range, sums, squares| {
                moments(isa, &x[range], origin, sums, squares);
            });
            for c in 0..n_channels {
                let offset = scratch.totals[c] / rows as f64;
                let variance = (scratch.totals[n_channels + c] / rows as f64 - offset * offset).max(0.0);
                let mean = f64::from(origin[c]) + offset;
                saved.mean[c] = mean as f32;
                saved.inv_std[c] = (1.0 / (variance + EPSILON).sqrt()) as f32;
                let unbiased = variance * rows as f64 / (rows as f64 - 1.0).max(1.0);
                move_towards(&mut running_mean[c], mean);
                move_towards(&mut running_variance[c], unbiased);
            }
        }
    }
    scratch.coefficients.resize((3 * n_channels).max(scratch.coefficients.len()), 0.0);
    let (scale, shift) = scratch.coefficients[..2 * n_channels].split_at_mut(n_channels);
    for c in 0..n_channels {
        scale[c] = gamma[c] * saved.inv_std[c];
        shift[c] = beta[c] - saved.mean[c] * scale[c];
    }
    let (scale, shift) = (&*scale, &*shift);
    let chunk = chunk_of(n_channels);
    y.par_chunks_mut(chunk).enumerate().for_each(|(i, y)| {
        let range = i * chunk..i * chunk + y.len();
        apply(isa, &x[range.clone()], residual.map(|residual| &residual[range]), activation, scale, shift, y);
    });
}

fn move_towards(running: &mut f32, batch: f64) {
    *running = ((1.0 - MOMENTUM) * f64::from(*running) + MOMENTUM * batch) as f32;
}

/// Whether the statistics depended on the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dependence {
    /// Batch statistics: the gradient flows through them.
    Batch,
    /// Running statistics: constants.
    Frozen,
}

/// One layer's backward pass; all activations are [rows, C].
pub struct Backward<'a> {
    /// The forward pass's input.
    pub x: &'a [f32],
    /// Its output, if a ReLU was fused.
    pub relu_output: Option<&'a [f32]>,
    /// Gradient on its output.
    pub dy: &'a [f32],
    /// Scale, [C].
    pub gamma: &'a [f32],
    /// Which statistics it took.
    pub dependence: Dependence,
}

/// Where a layer's gradients go.
pub struct Gradients<'a> {
    /// On the input, [rows, C].
    pub dx: &'a mut [f32],
    /// How `dx` is written.
    pub dx_write: Write,
    /// On the residual, [rows, C], and how it is written.
    pub residual: Option<(&'a mut [f32], Write)>,
    /// On the scale, [C]; overwritten.
    pub gamma: &'a mut [f32],
    /// On the shift, [C]; overwritten.
    pub beta: &'a mut [f32],
}

/// Gradients of a forward pass that left `saved`.
pub fn backward(isa: Isa, layer: &Backward, saved: &Saved, scratch: &mut Scratch, gradients: Gradients) {
    let Backward { x, relu_output, dy, gamma, dependence } = *layer;
    let n_channels = gamma.len();
    let rows = x.len() / n_channels;
    assert!(x.len() == dy.len() && x.len() == gradients.dx.len() && x.len().is_multiple_of(n_channels), "{}", x.len());
    column_sums(x.len(), n_channels, scratch, |range, sums, products| {
        let relu_output = relu_output.map(|y| &y[range.clone()]);
        gradient_moments(isa, &x[range.clone()], &dy[range], relu_output, &saved.mean, sums, products);
    });
    scratch.coefficients.resize((3 * n_channels).max(scratch.coefficients.len()), 0.0);
    let (on_gradient, rest) = scratch.coefficients[..3 * n_channels].split_at_mut(n_channels);
    let (on_input, constant) = rest.split_at_mut(n_channels);
    for c in 0..n_channels {
        let inv_std = f64::from(saved.inv_std[c]);
        let d_beta = scratch.totals[c];
        let d_gamma = scratch.totals[n_channels + c] * inv_std;
        gradients.beta[c] = d_beta as f32;
        gradients.gamma[c] = d_gamma as f32;
        // dx = gamma * inv_std * (g - mean(g) - x_hat * mean(g * x_hat)); with frozen statistics the means are absent.
        let scale = f64::from(gamma[c]) * inv_std;
        on_gradient[c] = scale as f32;
        (on_input[c], constant[c]) = match dependence {
            Dependence::Frozen => (0.0, 0.0),
            Dependence::Batch => {
                let slope = -scale * inv_std * d_gamma / rows as f64;
                (slope as f32, (-scale * d_beta / rows as f64) as f32)
            }
        };
    }
    let coefficients = [&*on_gradient, &*on_input, &*constant, &saved.mean];
    let chunk = chunk_of(n_channels);
    let dx_write = gradients.dx_write;
    let slice = |i: usize, length: usize| {
        let range = i * chunk..i * chunk + length;
        Incoming { x: &x[range.clone()], dy: &dy[range.clone()], relu_output: relu_output.map(|y| &y[range]) }
    };
    match gradients.residual {
        None => gradients.dx.par_chunks_mut(chunk).enumerate().for_each(|(i, dx)| {
            apply_gradient(isa, slice(i, dx.len()), coefficients, dx, dx_write, None);
        }),
        Some((residual, residual_write)) => {
            assert_eq!(residual.len(), x.len(), "residual of another size");
            let chunks = gradients.dx.par_chunks_mut(chunk).zip(residual.par_chunks_mut(chunk));
            chunks.enumerate().for_each(|(i, (dx, residual))| {
                let residual = Some((residual, residual_write));
                apply_gradient(isa, slice(i, dx.len()), coefficients, dx, dx_write, residual);
            });
        }
    }
}

/// Sums over rows of `x`, [rows, C], into `sums`, [C]: the gradient of a bias.
pub fn bias_gradient(isa: Isa, dy: &[f32], scratch: &mut Scratch, bias: &mut [f32]) {
    let n_channels = bias.len();
    let origin = vec_of_zeros(scratch, n_channels);
    column_sums(dy.len(), n_channels, scratch, |range, sums, squares| {
        moments(isa, &dy[range], &origin, sums, squares);
    });
    for (bias, &total) in bias.iter_mut().zip(&scratch.totals) {
        *bias = total as f32;
    }
    scratch.coefficients = origin;
}

/// The scratch's coefficients as `n` zeros, moved out so that the sums can borrow the rest.
fn vec_of_zeros(scratch: &mut Scratch, n: usize) -> Vec<f32> {
    let mut zeros = std::mem::take(&mut scratch.coefficients);
    zeros.resize(n.max(zeros.len()), 0.0);
    zeros.fill(0.0);
    zeros
}

/// Whole rows that make up a chunk.
fn chunk_of(n_channels: usize) -> usize {
    (CHUNK / n_channels).max(1) * n_channels
}

/// Two sums per channel over all rows, into `scratch.totals`. `sum` adds those of a range of values.
fn column_sums(
    length: usize,
    n_channels: usize,
    scratch: &mut Scratch,
    sum: impl Fn(std::ops::Range<usize>, &mut [f32], &mut [f32]) + Sync,
) {
    let chunk = chunk_of(n_channels);
    let n_chunks = length.div_ceil(chunk);
    scratch.partials.resize((n_chunks * 2 * n_channels).max(scratch.partials.len()), 0.0);
    let partials = &mut scratch.partials[..n_chunks * 2 * n_channels];
    partials.par_chunks_mut(2 * n_channels).enumerate().for_each(|(i, partial)| {
        partial.fill(0.0);
        let (first, second) = partial.split_at_mut(n_channels);
        sum(i * chunk..((i + 1) * chunk).min(length), first, second);
    });
    scratch.totals.clear();
    scratch.totals.resize(2 * n_channels, 0.0);
    for partial in scratch.partials[..n_chunks * 2 * n_channels].chunks_exact(2 * n_channels) {
        for (total, &value) in scratch.totals.iter_mut().zip(partial) {
            *total += f64::from(value);
        }
    }
}

/// Channels that the passes below take at once; what remains goes one by one.
const LANES: usize = 16;

/// Calls `$function::<W>(.., channel)` for all channels, W at a time.
macro_rules! for_channels {
    ($n_channels:expr, $function:ident($($arg:expr),*)) => {
        let mut channel = 0;
        while channel + LANES <= $n_channels {
            $function::<LANES>($($arg,)* channel);
            channel += LANES;
        }
        while channel < $n_channels {
            $function::<1>($($arg,)* channel);
            channel += 1;
        }
    };
}

multiversion! {
    /// Adds the sums of `x - origin` and of its squares per channel.
    fn moments(x: &[f32], origin: &[f32], sums: &mut [f32], squares: &mut [f32]) {
        for_channels!(sums.len(), moments_of(x, origin, sums, squares));
    }
}

#[inline(always)]
fn moments_of<const W: usize>(x: &[f32], origin: &[f32], sums: &mut [f32], squares: &mut [f32], channel: usize) {
    let n_channels = sums.len();
    let origin: [f32; W] = lanes(origin, channel);
    // Even and odd rows apart: two chains of additions.
    let (mut first, mut second) = ([[0.0f32; W]; 2], [[0.0f32; W]; 2]);
    let mut at = channel;
    let mut parity = 0;
    while at + W <= x.len() {
        let values: [f32; W] = lanes(x, at);
        for i in 0..W {
            let deviation = values[i] - origin[i];
            first[parity][i] += deviation;
            second[parity][i] += deviation * deviation;
        }
        parity ^= 1;
        at += n_channels;
    }
    for i in 0..W {
        sums[channel + i] += first[0][i] + first[1][i];
        squares[channel + i] += second[0][i] + second[1][i];
    }
}

multiversion! {
    /// Adds the sums of `g` and of `g * (x - mean)` per channel, where g is `dy` behind the ReLU.
    fn gradient_moments(
        x: &[f32],
        dy: &[f32],
        relu_output: Option<&[f32]>,
        mean: &[f32],
        sums: &mut [f32],
        products: &mut [f32],
    ) {
        for_channels!(sums.len(), gradient_moments_of(x, dy, relu_output, mean, sums, products));
    }
}

#[inline(always)]
fn gradient_moments_of<const W: usize>(
    x: &[f32],
    dy: &[f32],
    relu_output: Option<&[f32]>,
    mean: &[f32],
    sums: &mut [f32],
    products: &mut [f32],
    channel: usize,
) {
    let n_channels = sums.len();
    let mean: [f32; W] = lanes(mean, channel);
    let (mut first, mut second) = ([[0.0f32; W]; 2], [[0.0f32; W]; 2]);
    let mut at = channel;
    let mut parity = 0;
    while at + W <= x.len() {
        let values: [f32; W] = lanes(x, at);
        let gradient: [f32; W] = behind_relu(dy, relu_output, at);
        for i in 0..W {
            first[parity][i] += gradient[i];
            second[parity][i] += gradient[i] * (values[i] - mean[i]);
        }
        parity ^= 1;
        at += n_channels;
    }
    for i in 0..W {
        sums[channel + i] += first[0][i] + first[1][i];
        products[channel + i] += second[0][i] + second[1][i];
    }
}

/// `dy` where the ReLU let its input through, 0 elsewhere.
#[inline(always)]
fn behind_relu<const W: usize>(dy: &[f32], relu_output: Option<&[f32]>, at: usize) -> [f32; W] {
    let mut gradient: [f32; W] = lanes(dy, at);
    if let Some(y) = relu_output {
        let y: [f32; W] = lanes(y, at);
        for i in 0..W {
            gradient[i] = if y[i] > 0.0 { gradient[i] } else { 0.0 };
        }
    }
    gradient
}

/// Rows that a pass over one block of channels takes before the next block: all where few channels keep their
/// coefficients in registers, one where many make memory order count.
fn rows_at_once(n_rows: usize, n_channels: usize) -> usize {
    if n_channels <= 64 { n_rows } else { 1 }
}

multiversion! {
    /// `y = activation(x * scale + shift + residual)`.
    fn apply(
        x: &[f32],
        residual: Option<&[f32]>,
        activation: Activation,
        scale: &[f32],
        shift: &[f32],
        y: &mut [f32],
    ) {
        let n_channels = scale.len();
        let floor = match activation {
            Activation::Relu => 0.0,
            Activation::None => f32::NEG_INFINITY,
        };
        let n_rows = rows_at_once(x.len() / n_channels, n_channels);
        for start in (0..x.len()).step_by(n_rows * n_channels) {
            for_channels!(n_channels, apply_to(x, residual, floor, scale, shift, y, start, n_rows));
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn apply_to<const W: usize>(
    x: &[f32],
    residual: Option<&[f32]>,
    floor: f32,
    scale: &[f32],
    shift: &[f32],
    y: &mut [f32],
    start: usize,
    n_rows: usize,
    channel: usize,
) {
    let n_channels = scale.len();
    let (scale, shift): ([f32; W], [f32; W]) = (lanes(scale, channel), lanes(shift, channel));
    let mut at = start + channel;
    for _ in 0..n_rows {
        let mut values: [f32; W] = lanes(x, at);
        for i in 0..W {
            values[i] = values[i] * scale[i] + shift[i];
        }
        if let Some(residual) = residual {
            let residual: [f32; W] = lanes(residual, at);
            for i in 0..W {
                values[i] += residual[i];
            }
        }
        for value in &mut values {
            // Not `max`: a NaN must stay visible.
            *value = if *value < floor { floor } else { *value };
        }
        y[at..at + W].copy_from_slice(&values);
        at += n_channels;
    }
}

/// A chunk of what the backward pass reads.
struct Incoming<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    relu_output: Option<&'a [f32]>,
}

multiversion! {
    /// `dx (+)= a * g + b * (x - mean) + c`, and the residual's gradient `(+)= g`.
    fn apply_gradient(
        incoming: Incoming<'_>,
        coefficients: [&[f32]; 4],
        dx: &mut [f32],
        dx_write: Write,
        residual_target: Option<(&mut [f32], Write)>,
    ) {
        let n_channels = coefficients[0].len();
        let n_rows = rows_at_once(dx.len() / n_channels, n_channels);
        let mut residual = residual_target;
        for start in (0..dx.len()).step_by(n_rows * n_channels) {
            for_channels!(
                n_channels,
                apply_gradient_to(&incoming, coefficients, dx, dx_write, &mut residual, start, n_rows)
            );
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn apply_gradient_to<const W: usize>(
    incoming: &Incoming<'_>,
    coefficients: [&[f32]; 4],
    dx: &mut [f32],
    dx_write: Write,
    residual: &mut Option<(&mut [f32], Write)>,
    start: usize,
    n_rows: usize,
    channel: usize,
) {
    let n_channels = coefficients[0].len();
    let [a, b, c, mean]: [[f32; W]; 4] = coefficients.map(|values| lanes(values, channel));
    let mut at = start + channel;
    for _ in 0..n_rows {
        let x: [f32; W] = lanes(incoming.x, at);
        let gradient: [f32; W] = behind_relu(incoming.dy, incoming.relu_output, at);
        if let Some((residual, write)) = residual {
            let mut sum = gradient;
            if *write == Write::Add {
                let before: [f32; W] = lanes(residual, at);
                for i in 0..W {
                    sum[i] += before[i];
                }
            }
            residual[at..at + W].copy_from_slice(&sum);
        }
        let mut sum = [0.0f32; W];
        if dx_write == Write::Add {
            sum = lanes(dx, at);
        }
        for i in 0..W {
            sum[i] += a[i] * gradient[i] + b[i] * (x[i] - mean[i]) + c[i];
        }
        dx[at..at + W].copy_from_slice(&sum);
        at += n_channels;
    }
}

#[cfg(test)]
mod tests;
