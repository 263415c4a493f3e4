//! The elementwise parts of a critic on all pairs of a batch: the layers around its one large product, and AdamW.
//!
//! One thread: critics run side by side. Values are `f32` in runs and `f64` where gradients are checked. Sums go in a
//! fixed order, of lanes or of pairs, so that every instruction set gives the same bits.

use super::isa::multiversion;
use super::product::Real;

/// Exponential decay rates of AdamW's moments and the term against division by zero: PyTorch's defaults.
const BETAS: (f32, f32) = (0.9, 0.999);
const EPSILON: f32 = 1e-8;

/// max(x, 0).
#[inline(always)]
pub fn relu<T: Real>(value: T) -> T {
    if value > T::ZERO { value } else { T::ZERO }
}

/// The scalar product, summed in eight lanes so that it vectorises.
#[inline(always)]
pub fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    let mut lanes = [T::ZERO; 8];
    let (a_chunks, b_chunks) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest = a_chunks.remainder().iter().zip(b_chunks.remainder()).fold(T::ZERO, |sum, (&x, &y)| sum + x * y);
    for (x, y) in a_chunks.zip(b_chunks) {
        for ((lane, &x), &y) in lanes.iter_mut().zip(x).zip(y) {
            *lane += x * y;
        }
    }
    lanes.into_iter().fold(rest, |sum, lane| sum + lane)
}

multiversion! {
    /// The first hidden layer: pair (i, j) becomes relu(a_i + b_j). `a` is [rows, hidden], `b` [n, hidden], `out`
    /// [rows, n, hidden].
    pub fn pair_sums<T: Real>(a: &[T], b: &[T], hidden: usize, out: &mut [T]) {
        for (of_row, a) in out.chunks_exact_mut(b.len()).zip(a.chunks_exact(hidden)) {
            for (of_pair, b) in of_row.chunks_exact_mut(hidden).zip(b.chunks_exact(hidden)) {
                for ((out, &x), &y) in of_pair.iter_mut().zip(a).zip(b) {
                    *out = relu(x + y);
                }
            }
        }
    }
}

multiversion! {
    /// Bias and rectifier of the second hidden layer in place, [pairs, hidden], and the scores, [pairs], that the last
    /// layer of weights `w` and bias `b` gives.
    pub fn scores<T: Real>(second: &mut [T], bias: &[T], w: &[T], b: T, scores: &mut [T]) {
        for (of_pair, score) in second.chunks_exact_mut(bias.len()).zip(scores) {
            for (value, &bias) in of_pair.iter_mut().zip(bias) {
                *value = relu(*value + bias);
            }
            *score = dot(of_pair, w) + b;
        }
    }
}

multiversion! {
    /// From the gradient by the scores, [pairs]: `second`, [pairs, hidden], becomes the gradient before its own
    /// rectifier, and the gradients by the last layer's weights `w` and by the bias of `second` are added up.
    pub fn scores_gradient<T: Real>(
        grad_scores: &[T],
        w: &[T],
        second: &mut [T],
        grad_w: &mut [T],
        grad_bias: &mut [T],
    ) {
        for (of_pair, &grad) in second.chunks_exact_mut(w.len()).zip(grad_scores) {
            for (((value, &w), gw), gb) in of_pair.iter_mut().zip(w).zip(grad_w.iter_mut()).zip(grad_bias.iter_mut()) {
                *gw += grad * *value;
                let passed = if *value > T::ZERO { grad * w } else { T::ZERO };
                *gb += passed;
                *value = passed;
            }
        }
    }
}

multiversion! {
    /// From the gradient `back` by the first hidden layer `first`, both [rows, n, hidden]: what passes its rectifier is
    /// added to the gradients by its two summands, `a` [rows, hidden] and `b` [n, hidden].
    pub fn pair_sums_gradient<T: Real>(back: &[T], first: &[T], hidden: usize, a: &mut [T], b: &mut [T]) {
        let of_rows = back.chunks_exact(b.len()).zip(first.chunks_exact(b.len()));
        for (a, (back, first)) in a.chunks_exact_mut(hidden).zip(of_rows) {
            let of_pairs = back.chunks_exact(hidden).zip(first.chunks_exact(hidden));
            for (b, (back, first)) in b.chunks_exact_mut(hidden).zip(of_pairs) {
                for (((a, b), &grad), &value) in a.iter_mut().zip(b).zip(back).zip(first) {
                    let passed = if value > T::ZERO { grad } else { T::ZERO };
                    *a += passed;
                    *b += passed;
                }
            }
        }
    }
}

/// Factors of one AdamW step.
#[derive(Clone, Copy, Debug)]
pub struct AdamStep {
    /// What gradients are multiplied by first.
    pub scale: f32,
    /// What remains of a parameter: 1 - learning rate * weight decay.
    pub decay: f32,
    /// Learning rate over the first moment's bias correction.
    pub rate: f32,
    /// One over the square root of the second moment's bias correction.
    pub root: f32,
}

impl AdamStep {
    /// Of step number `step`, from 1.
    pub fn new(step: i32, learning_rate: f64, weight_decay: f64, scale: f32) -> AdamStep {
        let correction = |beta: f32| 1.0 - f64::from(beta).powi(step);
        AdamStep {
            scale,
            decay: (1.0 - learning_rate * weight_decay) as f32,
            rate: (learning_rate / correction(BETAS.0)) as f32,
            root: (1.0 / correction(BETAS.1).sqrt()) as f32,
        }
    }
}

multiversion! {
    /// AdamW on parameters of one length with their gradients and both moments.
    pub fn adamw(step: AdamStep, params: &mut [f32], grads: &[f32], means: &mut [f32], variances: &mut [f32]) {
        let AdamStep { scale, decay, rate, root } = step;
        let moments = means.iter_mut().zip(variances);
        for ((param, &grad), (mean, variance)) in params.iter_mut().zip(grads).zip(moments) {
            let grad = grad * scale;
            *mean = BETAS.0 * *mean + (1.0 - BETAS.0) * grad;
            *variance = BETAS.1 * *variance + (1.0 - BETAS.1) * grad * grad;
            *param = *param * decay - rate * *mean / (variance.sqrt() * root + EPSILON);
        }
    }
}

multiversion! {
    /// The sum of squares, added in eight lanes in f64, into `sum`.
    pub fn sum_of_squares(values: &[f32], sum: &mut f64) {
        let mut lanes = [0.0f64; 8];
        let (chunks, rest) = values.as_chunks::<8>();
        for chunk in chunks {
            for (lane, &value) in lanes.iter_mut().zip(chunk) {
                *lane += f64::from(value) * f64::from(value);
            }
        }
        for (lane, &value) in lanes.iter_mut().zip(rest) {
            *lane += f64::from(value) * f64::from(value);
        }
        *sum = lanes.iter().sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Isa;
    use crate::rng::Streams;

    /// All instruction sets give the bits of the portable one, on widths with and without a rest; what they compute is
    /// checked by the critics' finite differences and by PyTorch's AdamW.
    #[test]
    fn same_bits_on_every_instruction_set() {
        let stream = Streams::new(11, "joint").stream("values");
        let draw = |at: u64, n: usize| stream.at(at).normals(n, 1.0);
        for (rows, n, hidden) in [(1, 1, 1), (2, 3, 7), (3, 5, 16), (2, 4, 33)] {
            let pairs = rows * n;
            let run = |isa: Isa| {
                let (mut a, mut b) = (draw(0, rows * hidden), draw(1, n * hidden));
                let (bias, w, grad_scores) = (draw(2, hidden), draw(3, hidden), draw(4, pairs));
                let mut first = vec![f32::NAN; pairs * hidden];
                pair_sums(isa, &a, &b, hidden, &mut first);
                let mut second = draw(5, pairs * hidden);
                let mut of_pairs = vec![f32::NAN; pairs];
                scores(isa, &mut second, &bias, &w, 0.5, &mut of_pairs);
                let (mut grad_w, mut grad_bias) = (draw(6, hidden), draw(7, hidden));
                scores_gradient(isa, &grad_scores, &w, &mut second, &mut grad_w, &mut grad_bias);
                pair_sums_gradient(isa, &second, &first, hidden, &mut a, &mut b);
                let (mut means, mut variances) = (vec![0.1; hidden], vec![0.2; hidden]);
                let mut params = bias;
                adamw(isa, AdamStep::new(3, 1e-2, 1e-4, 0.7), &mut params, &grad_w, &mut means, &mut variances);
                let mut sum = f64::NAN;
                sum_of_squares(isa, &first, &mut sum);
                let all = [a, b, first, second, of_pairs, grad_w, grad_bias, means, variances, params].concat();
                let bits: Vec<u32> = all.iter().map(|value| value.to_bits()).collect();
                assert!(all.iter().all(|value| value.is_finite()), "every value is written");
                (bits, sum.to_bits())
            };
            let found: Vec<_> = Isa::available().into_iter().map(|isa| (isa.name(), run(isa))).collect();
            for (name, bits) in &found {
                assert!(*bits == found[0].1, "{name} on {rows} x {n} pairs of {hidden}");
            }
        }
    }
}
