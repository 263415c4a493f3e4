//! The joint critic of the IB paper's code (TNet): [a; b] -> Linear(h) -> ReLU -> Linear(h) -> ReLU -> Linear(1).
//!
//! The first layer is linear, so W₁[a; b] = Wₐa + W_b b: both halves are computed once per batch, and the n² pairs
//! are formed by adding rows. Every other activation lives only for a block of rows, forwards and backwards in one
//! go, so that memory grows with n and not with n², and the block stays in the second-level cache.

use super::{Critic, Rule, init_linear, room};
use crate::kernels::product::{Matrix, Real, Target, product};
use crate::kernels::{Isa, joint};
use crate::rng::Stream;

/// Values of a hidden layer in a block; the three buffers of a block then take 384 KiB.
const BLOCK: usize = 32_768;

/// The joint critic.
pub struct Concat<T> {
    layout: Layout,
    isa: Isa,
    /// wa [a, h], wb [b, h], b1 [h], w2 [h, h], b2 [h], w3 [h], b3 [1], one after the other.
    params: Vec<T>,
    grads: Vec<T>,
    work: Work<T>,
}

#[derive(Clone, Copy)]
struct Layout {
    a: usize,
    b: usize,
    hidden: usize,
}

impl Layout {
    fn lengths(self) -> [usize; 7] {
        let h = self.hidden;
        [self.a * h, self.b * h, h, h * h, h, h, 1]
    }

    fn split<T>(self, values: &[T]) -> Parts<&[T]> {
        let mut rest = values;
        Parts::from(self.lengths().map(|len| {
            let (part, after) = rest.split_at(len);
            rest = after;
            part
        }))
    }

    fn split_mut<T>(self, values: &mut [T]) -> Parts<&mut [T]> {
        let mut rest = values;
        Parts::from(self.lengths().map(|len| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(len);
            rest = after;
            part
        }))
    }
}

struct Parts<S> {
    wa: S,
    wb: S,
    b1: S,
    w2: S,
    b2: S,
    w3: S,
    b3: S,
}

impl<S> From<[S; 7]> for Parts<S> {
    fn from([wa, wb, b1, w2, b2, w3, b3]: [S; 7]) -> Parts<S> {
        Parts { wa, wb, b1, w2, b2, w3, b3 }
    }
}

struct Work<T> {
    /// Wₐa + b₁, [n, h].
    half_a: Vec<T>,
    /// W_b b, [n, h].
    half_b: Vec<T>,
    /// Gradients of both halves, [n, h].
    grad_a: Vec<T>,
    grad_b: Vec<T>,
    /// First and second hidden layer of a block, [pairs, h]; `back` takes the gradient of either.
    first: Vec<T>,
    second: Vec<T>,
    back: Vec<T>,
    /// [n, n].
    scores: Vec<T>,
    /// Gradient by a block's scores, [pairs].
    grad_scores: Vec<T>,
}

impl<T: Real> Concat<T> {
    /// A critic for variables of `a` and `b` coordinates with `hidden` units a layer, initialised as PyTorch does.
    pub fn new(a: usize, b: usize, hidden: usize, stream: &Stream) -> Concat<T> {
        let layout = Layout { a, b, hidden };
        let n_params = layout.lengths().iter().sum();
        let mut params = vec![T::ZERO; n_params];
        let parts = layout.split_mut(&mut params);
        // One matrix [a + b, h] in truth, so both halves have its fan-in.
        let fans = [(parts.wa, a + b), (parts.wb, a + b), (parts.b1, a + b)];
        let deeper = [(parts.w2, hidden), (parts.b2, hidden), (parts.w3, hidden), (parts.b3, hidden)];
        for (at, (part, fan_in)) in fans.into_iter().chain(deeper).enumerate() {
            init_linear(part, fan_in, stream.at(at as u64));
        }
        let work = Work {
            half_a: Vec::new(),
            half_b: Vec::new(),
            grad_a: Vec::new(),
            grad_b: Vec::new(),
            first: Vec::new(),
            second: Vec::new(),
            back: Vec::new(),
            scores: Vec::new(),
            grad_scores: Vec::new(),
        };
        Concat { layout, isa: Isa::best(), grads: vec![T::ZERO; n_params], params, work }
    }

    /// Both halves of the first layer.
    fn halves(&mut self, a: &[T], b: &[T], n: usize) {
        let Layout { a: width_a, b: width_b, hidden } = self.layout;
        let parts = self.layout.split(&self.params);
        let half_a = room(&mut self.work.half_a, n * hidden);
        for row in half_a.chunks_exact_mut(hidden) {
            row.copy_from_slice(parts.b1);
        }
        product(half_a, Target::Sum, Matrix::new(a, n, width_a), Matrix::new(parts.wa, width_a, hidden));
        let half_b = room(&mut self.work.half_b, n * hidden);
        product(half_b, Target::Fresh, Matrix::new(b, n, width_b), Matrix::new(parts.wb, width_b, hidden));
    }

    /// Hidden layers and scores of the pairs of `rows` rows from row `from`.
    fn block(&mut self, from: usize, rows: usize, n: usize) {
        let hidden = self.layout.hidden;
        let parts = self.layout.split(&self.params);
        let pairs = rows * n;
        let first = room(&mut self.work.first, pairs * hidden);
        let half_a = &self.work.half_a[from * hidden..(from + rows) * hidden];
        let half_b = &self.work.half_b[..n * hidden];
        joint::pair_sums(self.isa, half_a, half_b, hidden, first);
        let second = room(&mut self.work.second, pairs * hidden);
        product(second, Target::Fresh, Matrix::new(first, pairs, hidden), Matrix::new(parts.w2, hidden, hidden));
        let scores = &mut room(&mut self.work.scores, n * n)[from * n..from * n + pairs];
        joint::scores(self.isa, second, parts.b2, parts.w3, parts.b3[0], scores);
    }

    /// Adds a block's part of the gradient; `grad_scores` holds the gradient by its scores.
    fn block_gradient(&mut self, from: usize, rows: usize, n: usize) {
        let hidden = self.layout.hidden;
        let parts = self.layout.split(&self.params);
        let grads = self.layout.split_mut(&mut self.grads);
        let pairs = rows * n;
        let first = &self.work.first[..pairs * hidden];
        let second = &mut self.work.second[..pairs * hidden];
        // `second` becomes its own gradient before the ReLU, in place.
        let grad_scores = &self.work.grad_scores[..pairs];
        grad_scores.iter().for_each(|&grad| grads.b3[0] += grad);
        joint::scores_gradient(self.isa, grad_scores, parts.w3, second, grads.w3, grads.b2);
        let by_second = Matrix::new(second, pairs, hidden);
        product(grads.w2, Target::Sum, Matrix::new(first, pairs, hidden).t(), by_second);
        let back = room(&mut self.work.back, pairs * hidden);
        product(back, Target::Fresh, by_second, Matrix::new(parts.w2, hidden, hidden).t());
        let grad_a = &mut self.work.grad_a[from * hidden..(from + rows) * hidden];
        joint::pair_sums_gradient(self.isa, back, first, hidden, grad_a, &mut self.work.grad_b);
    }
}

/// Ranges of rows whose pairs have at most `BLOCK` hidden values: (first row, rows).
fn blocks(n: usize, hidden: usize) -> impl Iterator<Item = (usize, usize)> {
    let rows = (BLOCK / (n * hidden).max(1)).max(1);
    (0..n).step_by(rows).map(move |from| (from, rows.min(n - from)))
}

impl<T: Real> Critic<T> for Concat<T> {
    fn parameters(&mut self) -> (&mut [T], &mut [T]) {
        (&mut self.params, &mut self.grads)
    }

    fn scores(&mut self, a: &[T], b: &[T], n: usize) -> &[T] {
        let hidden = self.layout.hidden;
        self.halves(a, b, n);
        for (from, rows) in blocks(n, hidden) {
            self.block(from, rows, n);
        }
        &self.work.scores[..n * n]
    }

    fn gradient(&mut self, a: &[T], b: &[T], n: usize, rule: &mut Rule<'_, T>) {
        let Layout { a: width_a, b: width_b, hidden } = self.layout;
        self.halves(a, b, n);
        self.grads.fill(T::ZERO);
        room(&mut self.work.grad_a, n * hidden).fill(T::ZERO);
        self.work.grad_b.clear();
        self.work.grad_b.resize(n * hidden, T::ZERO);
        for (from, rows) in blocks(n, hidden) {
            self.block(from, rows, n);
            let grad_scores = room(&mut self.work.grad_scores, rows * n);
            let scores = &self.work.scores[from * n..(from + rows) * n];
            for (row, (scores, grad)) in scores.chunks_exact(n).zip(grad_scores.chunks_exact_mut(n)).enumerate() {
                rule(from + row, scores, grad);
            }
            self.block_gradient(from, rows, n);
        }
        let grads = self.layout.split_mut(&mut self.grads);
        let (grad_a, grad_b) = (&self.work.grad_a[..n * hidden], &self.work.grad_b[..n * hidden]);
        for row in grad_a.chunks_exact(hidden) {
            for (sum, &grad) in grads.b1.iter_mut().zip(row) {
                *sum += grad;
            }
        }
        product(grads.wa, Target::Fresh, Matrix::new(a, n, width_a).t(), Matrix::new(grad_a, n, hidden));
        product(grads.wb, Target::Fresh, Matrix::new(b, n, width_b).t(), Matrix::new(grad_b, n, hidden));
    }
}
