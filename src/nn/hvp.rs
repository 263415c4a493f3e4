//! Hessian-vector products by central differences of gradients: `Hv = (g(w + e v) - g(w - e v)) / 2e`.
//!
//! Two ordinary gradients, no second backward graph. The step is `e = 1e-4 |w| / |v|` unless told otherwise: relative to
//! the weights, so that in f32 neither the rounding of `w + e v` (less than 1e-3 of the product) nor the third derivative
//! dominates (3e-4 of the largest eigenvalue of a trained ResNet-8, and 3e-2 at a step ten times as long).
//!
//! A rectifier that changes sides on the way adds its jump, and on a batch enough of them do at any step that f32 bears to
//! drown the product: take gradients with the [gates](super::gates) held, which gives the product of double backward.
//! Take them in [`Mode::Eval`](super::Mode::Eval) (what PyHessian does) or [`Mode::Batch`](super::Mode::Batch), always on
//! the same images and with the same noise; [`Mode::Train`](super::Mode::Train) would move the running statistics.

use super::Network;
use crate::error::{Error, Result};
use crate::kernels::{Isa, l2};
use rayon::prelude::*;

/// Step over |w| / |v|.
const RELATIVE_STEP: f64 = 1e-4;

/// Values that one task handles.
const CHUNK: usize = 1 << 14;

/// Buffers for products, made once: a power iteration or a Lanczos run takes many.
#[derive(Clone, Debug)]
pub struct HessianProduct {
    /// Step over |w| / |v|.
    relative_step: f64,
    /// Weights of a network meanwhile.
    kept: Vec<f32>,
    /// Weights with the step.
    moved: Vec<f32>,
    /// The gradient at `w - e v`.
    below: Vec<f32>,
}

impl Default for HessianProduct {
    fn default() -> HessianProduct {
        HessianProduct::with_step(RELATIVE_STEP)
    }
}

impl HessianProduct {
    /// No buffers yet.
    pub fn new() -> HessianProduct {
        HessianProduct::default()
    }

    /// The same with a step of `relative_step |w| / |v|`: smaller where the loss bends sharply, larger where it is so flat
    /// that rounding shows.
    pub fn with_step(relative_step: f64) -> HessianProduct {
        HessianProduct { relative_step, kept: Vec::new(), moved: Vec::new(), below: Vec::new() }
    }

    /// Writes `H vector` into `product`, both [n_parameters], for the loss whose gradient `gradient` leaves in the
    /// network, at the parameters that it finds there: a forward and a backward pass.
    ///
    /// The network has the same bits as parameters afterwards, also after an error; its gradients are overwritten.
    ///
    /// # Errors
    /// See [`HessianProduct::of`].
    pub fn of_network(
        &mut self,
        network: &mut Network,
        vector: &[f32],
        product: &mut [f32],
        mut gradient: impl FnMut(&mut Network) -> Result<()>,
    ) -> Result<()> {
        let mut kept = std::mem::take(&mut self.kept);
        kept.clear();
        kept.extend_from_slice(network.params());
        let result = self.of(&kept, vector, product, |weights, target| {
            network.params_mut().copy_from_slice(weights);
            gradient(network)?;
            target.copy_from_slice(network.grads());
            Ok(())
        });
        network.params_mut().copy_from_slice(&kept);
        self.kept = kept;
        result
    }

    /// Writes `H vector` into `product`, where H belongs to the loss whose gradient at the weights that it gets
    /// `gradient` writes. All slices are as long as `weights`. `gradient` is called exactly twice; not at all for a
    /// vector of zeros.
    ///
    /// # Errors
    /// Slices of another length, a vector that is not finite, or what `gradient` says.
    pub fn of(
        &mut self,
        weights: &[f32],
        vector: &[f32],
        product: &mut [f32],
        mut gradient: impl FnMut(&[f32], &mut [f32]) -> Result<()>,
    ) -> Result<()> {
        let n = weights.len();
        if vector.len() != n || product.len() != n {
            let message = format!("expected a vector of {n} values, got {} for {}", vector.len(), product.len());
            return Err(Error::stage(message));
        }
        let isa = Isa::best();
        let (size, length) = (l2::length(isa, weights), l2::length(isa, vector));
        if !length.is_finite() {
            return Err(Error::stage("a Hessian product with a vector that is not finite"));
        }
        if length == 0.0 {
            product.fill(0.0);
            return Ok(());
        }
        // At the origin there is no scale to go by.
        let step = self.relative_step * if size > 0.0 { size } else { 1.0 } / length;
        self.moved.resize(n, 0.0);
        self.below.resize(n, 0.0);
        step_along(weights, vector, step as f32, &mut self.moved);
        gradient(&self.moved, product)?;
        step_along(weights, vector, -step as f32, &mut self.moved);
        gradient(&self.moved, &mut self.below)?;
        let scale = (0.5 / step) as f32;
        product.par_chunks_mut(CHUNK).zip(self.below.par_chunks(CHUNK)).for_each(|(product, below)| {
            for (product, below) in product.iter_mut().zip(below) {
                *product = (*product - below) * scale;
            }
        });
        Ok(())
    }
}

/// `moved = weights + step * vector`.
fn step_along(weights: &[f32], vector: &[f32], step: f32, moved: &mut [f32]) {
    let chunks = moved.par_chunks_mut(CHUNK).zip(weights.par_chunks(CHUNK)).zip(vector.par_chunks(CHUNK));
    chunks.for_each(|((moved, weights), vector)| {
        for ((moved, weight), direction) in moved.iter_mut().zip(weights).zip(vector) {
            *moved = weight + step * direction;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::reference::{check, values, wide};
    use crate::nn::{Architecture, Config, Mode, loss};
    use crate::rng::Streams;

    const N: usize = 12;

    fn dot(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    /// Eigenvector i of the quadratic: column i of the reflection `I - 2 u u' / u'u`, which is orthogonal.
    fn eigenvector(i: usize) -> Vec<f64> {
        let u = wide(&values(1, N));
        let scale = 2.0 * u[i] / dot(&u, &u);
        u.iter().enumerate().map(|(k, u)| f64::from(u8::from(i == k)) - scale * u).collect()
    }

    /// Both signs, and zero.
    fn eigenvalue(i: usize) -> f64 {
        i as f64 * 3.0 - 9.0
    }

    /// `H w + b` of the quadratic.
    fn quadratic(weights: &[f32], target: &mut [f32]) {
        let (weights, mut gradient) = (wide(weights), wide(&values(2, N)));
        for i in 0..N {
            let direction = eigenvector(i);
            let along = eigenvalue(i) * dot(&direction, &weights);
            gradient.iter_mut().zip(direction).for_each(|(g, d)| *g += along * d);
        }
        target.iter_mut().zip(gradient).for_each(|(t, g)| *t = g as f32);
    }

    fn narrow(values: &[f64]) -> Vec<f32> {
        values.iter().map(|&v| v as f32).collect()
    }

    fn product_of_quadratic(weights: &[f32], vector: &[f32]) -> Vec<f32> {
        let (mut product, mut calls) = (vec![f32::NAN; N], 0);
        let gradient = |weights: &[f32], target: &mut [f32]| {
            calls += 1;
            quadratic(weights, target);
            Ok(())
        };
        HessianProduct::new().of(weights, vector, &mut product, gradient).unwrap();
        assert_eq!(calls, 2);
        product
    }

    #[test]
    fn a_quadratic_has_its_spectrum() {
        for weights in [values(3, N), vec![0.0; N]] {
            for i in 0..N {
                // Lengths must not matter.
                for length in [1.0, 1e-4, 1e5] {
                    let vector: Vec<f64> = eigenvector(i).iter().map(|v| v * length).collect();
                    let product = product_of_quadratic(&weights, &narrow(&vector));
                    for (got, v) in product.iter().zip(&vector) {
                        let error = (f64::from(*got) - eigenvalue(i) * v).abs();
                        assert!(error < 0.01 * length, "eigenvalue {i}: {got} instead of {}", eigenvalue(i) * v);
                    }
                }
            }
        }
    }

    #[test]
    fn power_iteration_finds_the_largest_eigenvalue() {
        let weights = values(3, N);
        let mut vector = values(4, N);
        let mut found = 0.0;
        for _ in 0..100 {
            vector = product_of_quadratic(&weights, &vector);
            found = l2::length(Isa::best(), &vector);
            vector.iter_mut().for_each(|v| *v = (f64::from(*v) / found) as f32);
        }
        assert!((found / eigenvalue(N - 1) - 1.0).abs() < 1e-3, "{found}");
    }

    /// Two layers, `sum over samples of (b . tanh(A x) - y)^2`, A [4, 3] before b [4] in the weights.
    struct TwoLayers {
        x: Vec<f64>,
        y: Vec<f64>,
    }

    impl TwoLayers {
        fn hidden(weights: &[f64], x: &[f64]) -> Vec<f64> {
            weights[..12].chunks(3).map(|row| dot(row, x).tanh()).collect()
        }

        fn loss(&self, weights: &[f64]) -> f64 {
            let residual = |(x, y): (&[f64], &f64)| dot(&weights[12..], &TwoLayers::hidden(weights, x)) - y;
            self.x.chunks(3).zip(&self.y).map(residual).map(|r| r * r).sum()
        }

        fn gradient(&self, weights: &[f64]) -> Vec<f64> {
            let mut gradient = vec![0.0; 16];
            for (x, y) in self.x.chunks(3).zip(&self.y) {
                let hidden = TwoLayers::hidden(weights, x);
                let slope = 2.0 * (dot(&weights[12..], &hidden) - y);
                for (i, h) in hidden.iter().enumerate() {
                    gradient[12 + i] += slope * h;
                    for (j, x) in x.iter().enumerate() {
                        gradient[3 * i + j] += slope * weights[12 + i] * (1.0 - h * h) * x;
                    }
                }
            }
            gradient
        }
    }

    #[test]
    fn two_layers_agree_with_double_differences_of_the_loss() {
        const STEP: f64 = 1e-3;
        let net = TwoLayers { x: wide(&values(5, 3 * 7)), y: wide(&values(6, 7)) };
        let (weights, vector) = (values(7, 16), values(8, 16));
        let mut product = vec![f32::NAN; 16];
        let gradient = |weights: &[f32], target: &mut [f32]| {
            target.copy_from_slice(&narrow(&net.gradient(&wide(weights))));
            Ok(())
        };
        HessianProduct::new().of(&weights, &vector, &mut product, gradient).unwrap();
        let second_difference = |i: usize| {
            let at = |along_i: f64, along_v: f64| {
                let mut moved = wide(&weights);
                moved.iter_mut().zip(wide(&vector)).for_each(|(w, v)| *w += along_v * v);
                moved[i] += along_i;
                net.loss(&moved)
            };
            (at(STEP, STEP) - at(STEP, -STEP) - at(-STEP, STEP) + at(-STEP, -STEP)) / (4.0 * STEP * STEP)
        };
        let expected: Vec<f64> = (0..16).map(second_difference).collect();
        check("product", &product, &expected, 1e-3);
    }

    #[test]
    fn a_network_is_left_as_it_was() {
        let size = (8, 8);
        let config = Config { architecture: Architecture::Resnet8, n_classes: 4, size, sigma_xt: 0.0, sigma_ty: 0.0 };
        let mut network = Network::new(&config).unwrap();
        network.init(&Streams::new(3, "test").stream("hvp"));
        let (images, labels) = (values(1, 6 * 8 * 8 * 3), [0, 1, 2, 3, 0, 1]);
        network.forward(&images, 6, Mode::Train).unwrap();
        let before = (network.params().to_vec(), network.buffers().to_vec());
        let n = network.n_parameters();
        let mut products = HessianProduct::new();
        for mode in [Mode::Eval, Mode::Batch] {
            let mut calls = 0;
            let mut gradient = |network: &mut Network| {
                calls += 1;
                let logits = network.forward(&images, 6, mode)?;
                let mut grad = vec![0.0; logits.len()];
                loss::cross_entropy(logits, &labels, 4, 0.0, &mut grad)?;
                network.backward(&grad)
            };
            let mut of = |vector: &[f32]| {
                let mut product = vec![f32::NAN; n];
                products.of_network(&mut network, vector, &mut product, &mut gradient).unwrap();
                assert!((network.params().to_vec(), network.buffers().to_vec()) == before);
                wide(&product)
            };
            // Symmetric: u' H v = v' H u.
            let (u, v) = (values(2, n), values(3, n));
            let (on_u, on_v) = (of(&u), of(&v));
            let (uhv, vhu) = (dot(&wide(&u), &on_v), dot(&wide(&v), &on_u));
            let scale = (dot(&on_u, &on_u) * dot(&wide(&v), &wide(&v))).sqrt();
            assert!((uhv - vhu).abs() < 1e-2 * scale, "{mode:?}: {uhv} and {vhu} of {scale}");
            assert!(of(&vec![0.0; n]).iter().all(|&p| p == 0.0));
            assert_eq!(calls, 4, "two gradients a product");
        }
        let broken = products.of_network(&mut network, &values(2, n), &mut vec![0.0; n], |_| Err(Error::stage("no")));
        assert_eq!(broken.unwrap_err().message(), "no");
        assert!(network.params() == before.0);
    }

    #[test]
    fn impossible_vectors() {
        let check = |vector: &[f32], expected: &str| {
            let result = HessianProduct::new().of(&[1.0; 3], vector, &mut [0.0; 3], |_, _| Ok(()));
            assert_eq!(result.unwrap_err().message(), expected);
        };
        check(&[1.0; 2], "expected a vector of 3 values, got 2 for 3");
        check(&[f32::NAN; 3], "a Hessian product with a vector that is not finite");
    }
}
