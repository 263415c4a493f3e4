//! The separable critic: two towers, a -> Linear(h) -> ReLU -> Linear(h) -> ReLU -> Linear(e), b likewise, and their
//! scalar product.
//!
//! Costs n instead of n² passes through the network, at some loss of expressiveness (Poole et al. 2019, "On
//! variational bounds of mutual information", section 4).

use super::{Critic, Rule, init_linear, room};
use crate::kernels::joint::relu;
use crate::kernels::product::{Matrix, Real, Target, product};
use crate::rng::Stream;

/// The separable critic.
pub struct Separable<T> {
    towers: [Tower; 2],
    /// Both towers, one after the other.
    params: Vec<T>,
    grads: Vec<T>,
    work: [Work<T>; 2],
    /// [n, n].
    scores: Vec<T>,
    grad_scores: Vec<T>,
}

#[derive(Clone, Copy)]
struct Tower {
    /// Input, hidden, hidden, embedding.
    widths: [usize; 4],
}

struct Work<T> {
    /// Outputs of the three layers (after the ReLU, but for the last), [n, width].
    outputs: [Vec<T>; 3],
    /// Gradients by them, [n, width].
    grads: [Vec<T>; 3],
}

impl Tower {
    /// Weight [in, out] and bias [out] of each layer.
    fn lengths(self) -> [usize; 3] {
        let [input, first, second, last] = self.widths;
        [(input + 1) * first, (first + 1) * second, (second + 1) * last]
    }

    fn len(self) -> usize {
        self.lengths().iter().sum()
    }

    /// The widths of layer `at` and the range of its parameters.
    fn layer(self, at: usize) -> (usize, usize, std::ops::Range<usize>) {
        let start: usize = self.lengths()[..at].iter().sum();
        (self.widths[at], self.widths[at + 1], start..start + self.lengths()[at])
    }

    fn forward<T: Real>(self, params: &[T], input: &[T], n: usize, work: &mut Work<T>) {
        for at in 0..3 {
            let (width, out_width, range) = self.layer(at);
            let (weight, bias) = params[range].split_at(width * out_width);
            let (before, after) = work.outputs.split_at_mut(at);
            let from = before.last().map_or(input, |values| &values[..n * width]);
            let out = room(&mut after[0], n * out_width);
            product(out, Target::Fresh, Matrix::new(from, n, width), Matrix::new(weight, width, out_width));
            for row in out.chunks_exact_mut(out_width) {
                for (value, &bias) in row.iter_mut().zip(bias) {
                    *value = if at < 2 { relu(*value + bias) } else { *value + bias };
                }
            }
        }
    }

    /// From `work.grads[2]`, the gradient by the embeddings.
    fn backward<T: Real>(self, params: &[T], grads: &mut [T], input: &[T], n: usize, work: &mut Work<T>) {
        for at in (0..3).rev() {
            let (width, out_width, range) = self.layer(at);
            let weight = &params[range.start..range.start + width * out_width];
            let (grad_weight, grad_bias) = grads[range].split_at_mut(width * out_width);
            let (before, after) = work.grads.split_at_mut(at);
            let grad_out = &after[0][..n * out_width];
            let from = if at == 0 { input } else { &work.outputs[at - 1][..n * width] };
            let by_out = Matrix::new(grad_out, n, out_width);
            product(grad_weight, Target::Fresh, Matrix::new(from, n, width).t(), by_out);
            grad_bias.fill(T::ZERO);
            for row in grad_out.chunks_exact(out_width) {
                for (sum, &grad) in grad_bias.iter_mut().zip(row) {
                    *sum += grad;
                }
            }
            if let Some(grad_in) = before.last_mut() {
                let grad_in = room(grad_in, n * width);
                product(grad_in, Target::Fresh, by_out, Matrix::new(weight, width, out_width).t());
                for (grad, &value) in grad_in.iter_mut().zip(from) {
                    if value <= T::ZERO {
                        *grad = T::ZERO;
                    }
                }
            }
        }
    }
}

impl<T: Real> Separable<T> {
    /// A critic for variables of `a` and `b` coordinates with `hidden` units a layer and embeddings of `embedding`
    /// coordinates, initialised as PyTorch does.
    pub fn new(a: usize, b: usize, hidden: usize, embedding: usize, stream: &Stream) -> Separable<T> {
        let towers = [a, b].map(|input| Tower { widths: [input, hidden, hidden, embedding] });
        let n_params = towers[0].len() + towers[1].len();
        let mut params = vec![T::ZERO; n_params];
        let mut rest = params.as_mut_slice();
        for (side, tower) in towers.iter().enumerate() {
            for at in 0..3 {
                let (fan_in, _, range) = tower.layer(at);
                let (layer, after) = rest.split_at_mut(range.len());
                init_linear(layer, fan_in, stream.at((side * 3 + at) as u64));
                rest = after;
            }
        }
        let work = || Work { outputs: [const { Vec::new() }; 3], grads: [const { Vec::new() }; 3] };
        Separable {
            towers,
            grads: vec![T::ZERO; n_params],
            params,
            work: [work(), work()],
            scores: Vec::new(),
            grad_scores: Vec::new(),
        }
    }

    fn embedding(&self) -> usize {
        self.towers[0].widths[3]
    }
}

impl<T: Real> Critic<T> for Separable<T> {
    fn parameters(&mut self) -> (&mut [T], &mut [T]) {
        (&mut self.params, &mut self.grads)
    }

    fn scores(&mut self, a: &[T], b: &[T], n: usize) -> &[T] {
        let (params_a, params_b) = self.params.split_at(self.towers[0].len());
        self.towers[0].forward(params_a, a, n, &mut self.work[0]);
        self.towers[1].forward(params_b, b, n, &mut self.work[1]);
        let embedding = self.embedding();
        let [of_a, of_b] = [0, 1].map(|side| Matrix::new(&self.work[side].outputs[2][..n * embedding], n, embedding));
        let scores = room(&mut self.scores, n * n);
        product(scores, Target::Fresh, of_a, of_b.t());
        scores
    }

    fn gradient(&mut self, a: &[T], b: &[T], n: usize, rule: &mut Rule<'_, T>) {
        self.scores(a, b, n);
        let embedding = self.embedding();
        let grad_scores = room(&mut self.grad_scores, n * n);
        let rows = self.scores[..n * n].chunks_exact(n).zip(grad_scores.chunks_exact_mut(n));
        for (row, (scores, grad)) in rows.enumerate() {
            rule(row, scores, grad);
        }
        let by_scores = Matrix::new(grad_scores, n, n);
        let (first, second) = self.work.split_at_mut(1);
        let (work_a, work_b) = (&mut first[0], &mut second[0]);
        let of_a = Matrix::new(&work_a.outputs[2][..n * embedding], n, embedding);
        let of_b = Matrix::new(&work_b.outputs[2][..n * embedding], n, embedding);
        product(room(&mut work_a.grads[2], n * embedding), Target::Fresh, by_scores, of_b);
        product(room(&mut work_b.grads[2], n * embedding), Target::Fresh, by_scores.t(), of_a);
        let split = self.towers[0].len();
        let (params_a, params_b) = self.params.split_at(split);
        let (grads_a, grads_b) = self.grads.split_at_mut(split);
        self.towers[0].backward(params_a, grads_a, a, n, work_a);
        self.towers[1].backward(params_b, grads_b, b, n, work_b);
    }
}
