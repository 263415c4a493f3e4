//! Critics: networks that score how well a value of one variable goes with a value of the other.
//!
//! Both score all n² pairs of a batch at once. Gradients are written out by hand and checked against finite
//! differences in f64.

pub mod concat;
pub mod separable;

pub use concat::Concat;
pub use separable::Separable;

use crate::kernels::product::Real;
use crate::rng::Stream;

/// The gradient of the loss by one row of scores: (row i, scores of a_i with every b_j, gradient to fill).
pub type Rule<'r, T> = dyn FnMut(usize, &[T], &mut [T]) + 'r;

/// A critic over flat parameters.
pub trait Critic<T: Real>: Send {
    /// The parameters, and the gradient of the loss that [`Critic::gradient`] left.
    fn parameters(&mut self) -> (&mut [T], &mut [T]);

    /// The scores of all pairs, [n, n], row i for a_i, column j for b_j.
    ///
    /// `a` is [n, width of a], `b` is [n, width of b].
    fn scores(&mut self, a: &[T], b: &[T], n: usize) -> &[T];

    /// Overwrites the gradient by the parameters, from the gradient by the scores that `rule` gives row by row in
    /// ascending order.
    fn gradient(&mut self, a: &[T], b: &[T], n: usize, rule: &mut Rule<'_, T>);
}

/// Fills the weight and the bias of a linear layer with `fan_in` inputs as PyTorch does: U(-1/√fan_in, 1/√fan_in).
fn init_linear<T: Real>(values: &mut [T], fan_in: usize, mut stream: Stream) {
    let bound = 1.0 / (fan_in.max(1) as f64).sqrt();
    values.fill_with(|| T::from_f64(stream.uniform_in(-bound, bound)));
}

/// The first `n` rows of a buffer that grows on demand.
fn room<T: Real>(buffer: &mut Vec<T>, len: usize) -> &mut [T] {
    if buffer.len() < len {
        buffer.resize(len, T::ZERO);
    }
    &mut buffer[..len]
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::kernels::joint::dot;
    use crate::rng::Streams;

    /// Central differences of Σ_ij c_ij s_ij by every parameter against the written gradient, n pairs.
    fn check_gradient(critic: &mut dyn Critic<f64>, widths: (usize, usize), n: usize) {
        let stream = Streams::new(5, "critic").stream("finite differences");
        let draw = |at: u64, count: usize| -> Vec<f64> {
            let mut stream = stream.at(at);
            (0..count).map(|_| stream.normal()).collect()
        };
        let (a, b, weights) = (draw(0, n * widths.0), draw(1, n * widths.1), draw(2, n * n));
        critic.gradient(&a, &b, n, &mut |i, _, grad| grad.copy_from_slice(&weights[i * n..(i + 1) * n]));
        let written = critic.parameters().1.to_vec();
        assert!(written.iter().filter(|g| g.abs() > 1e-6).count() * 4 > written.len(), "many gradients are not zero");
        let value = |critic: &mut dyn Critic<f64>| dot(critic.scores(&a, &b, n), &weights);
        for (at, &written) in written.iter().enumerate() {
            let start = critic.parameters().0[at];
            let step = 1e-6;
            critic.parameters().0[at] = start + step;
            let above = value(critic);
            critic.parameters().0[at] = start - step;
            let below = value(critic);
            critic.parameters().0[at] = start;
            let numeric = (above - below) / (2.0 * step);
            assert!(
                (numeric - written).abs() < 1e-6 * (1.0 + written.abs()),
                "parameter {at}: {written} written, {numeric} by differences"
            );
        }
    }

    #[test]
    fn gradients_agree_with_finite_differences() {
        let stream = Streams::new(6, "critic").stream("init");
        for n in [2, 3, 8] {
            check_gradient(&mut Concat::new(5, 3, 7, &stream), (5, 3), n);
            check_gradient(&mut Concat::new(4, 6, 16, &stream), (4, 6), n);
            check_gradient(&mut Separable::new(5, 3, 7, 4, &stream), (5, 3), n);
        }
    }

    /// A step's rows are computed in blocks; a batch that is no multiple of the block must not differ.
    #[test]
    fn rule_sees_the_scores() {
        let stream = Streams::new(7, "critic").stream("init");
        let n = 37;
        let mut draws = stream.at(99);
        let (a, b) = (draws.normals(n * 5, 1.0), draws.normals(n * 3, 1.0));
        let critics: [Box<dyn Critic<f32>>; 2] =
            [Box::new(Concat::new(5, 3, 7, &stream)), Box::new(Separable::new(5, 3, 7, 4, &stream))];
        for mut critic in critics {
            let scores = critic.scores(&a, &b, n).to_vec();
            let mut seen = Vec::new();
            critic.gradient(&a, &b, n, &mut |i, row, grad| {
                assert_eq!(seen.len(), i * n);
                seen.extend_from_slice(row);
                grad.fill(0.0);
            });
            assert_eq!(seen, scores);
            assert!(critic.parameters().1.iter().all(|&g| g == 0.0));
        }
    }
}
