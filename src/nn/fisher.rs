//! Fisher information of a classifier on labelled images: its diagonal, its trace, and the gradient of the trace.
//!
//! The empirical Fisher, as in FIP (Karim et al., "Fisher Information guided Purification against Backdoor Attacks") and
//! in elastic weight consolidation (Kirkpatrick et al. 2017, arXiv:1612.00796): with g_k the gradient of log p(y_k | x_k)
//! on the given label, diag F = mean of g_k^2 and Tr F = mean of |g_k|^2. In evaluation mode, so that samples do not
//! speak with each other through batch statistics.
//!
//! The trace needs no gradient per sample and its gradient no second backward graph. For random signs s_k, the mixture
//! g_s = sum of s_k g_k comes from one weighted backward pass, and E |g_s|^2 = sum of |g_k|^2 = n Tr F. With H_s the
//! Hessian of the same weighted sum, the gradient of |g_s|^2 is 2 H_s g_s: a [Hessian product](super::hvp) along g_s, two
//! more passes. Its [gates](super::gates) are held meanwhile: the derivative is that of double backward, on any number of
//! images.
//!
//! Everything is in [`Coordinates`]: of all parameters, or of what is trained in their place.

use super::augment::{self, Normalise};
use super::coordinates::Coordinates;
use super::hvp::HessianProduct;
use super::loss;
use super::network::{Mode, Network};
use crate::artifact::Split;
use crate::error::Result;
use crate::kernels::{Isa, l2};

/// The diagonal in `coordinates`, on the images `rows` of `split` as they are: a pass for every image. `each` is called
/// before it.
///
/// # Errors
/// Images or labels that do not fit the network, and what `each` says.
pub fn diagonal(
    network: &mut Network,
    coordinates: &dyn Coordinates,
    (split, rows, normalise): (&Split, &[usize], &Normalise),
    mut each: impl FnMut() -> Result<()>,
) -> Result<Vec<f32>> {
    let n_values = coordinates.values().len();
    let mut sums = vec![0.0f64; n_values];
    let mut gradient = vec![0.0f32; n_values];
    let mut image = vec![0.0; split.image_bytes()];
    for row in rows {
        each()?;
        augment::plain(split, std::slice::from_ref(row), normalise, &mut image)?;
        weighted(network, &image, &split.label[*row..=*row], &[1.0])?;
        coordinates.pull_back(network.grads(), &mut gradient);
        sums.iter_mut().zip(&gradient).for_each(|(sum, &g)| *sum += f64::from(g) * f64::from(g));
    }
    let scale = 1.0 / rows.len().max(1) as f64;
    Ok(sums.into_iter().map(|sum| (sum * scale) as f32).collect())
}

/// Estimates traces; keeps the room that they need.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    product: HessianProduct,
    mixture: Vec<f32>,
}

impl Trace {
    /// No room yet.
    pub fn new() -> Trace {
        Trace::default()
    }

    /// |g_s|^2 / n on `images` [n, H, W, 3], normalised, with `labels` and `signs` [n]: an unbiased estimate of Tr F for
    /// random signs. Writes its gradient with respect to the coordinates into `gradient`.
    ///
    /// Parameters and coordinates have the same bits afterwards; the network's gradients are overwritten.
    ///
    /// # Errors
    /// Images or labels that do not fit the network; a gradient that is not finite.
    pub fn estimate(
        &mut self,
        network: &mut Network,
        coordinates: &mut dyn Coordinates,
        (images, labels): (&[f32], &[i64]),
        signs: &[f32],
        gradient: &mut [f32],
    ) -> Result<f64> {
        let Trace { product, mixture } = self;
        weighted(network, images, labels, signs)?;
        mixture.resize(gradient.len(), 0.0);
        coordinates.pull_back(network.grads(), mixture);
        let length = l2::length(Isa::best(), mixture);
        let of_weighted = |network: &mut Network| weighted(network, images, labels, signs);
        network.holding_gates(|network| along(product, (network, coordinates), mixture, gradient, of_weighted))?;
        let scale = 1.0 / labels.len() as f64;
        gradient.iter_mut().for_each(|g| *g *= (2.0 * scale) as f32);
        Ok(length * length * scale)
    }
}

/// Writes into `target` the product of `vector` with the Hessian, in coordinates, of the function whose gradient
/// `gradient` leaves in the network.
///
/// # Errors
/// See [`HessianProduct::of`].
pub fn along(
    product: &mut HessianProduct,
    (network, coordinates): (&mut Network, &mut dyn Coordinates),
    vector: &[f32],
    target: &mut [f32],
    mut gradient: impl FnMut(&mut Network) -> Result<()>,
) -> Result<()> {
    let (params, values) = (network.params().to_vec(), coordinates.values().to_vec());
    let result = product.of(&values, vector, target, |moved, target| {
        coordinates.values_mut().copy_from_slice(moved);
        coordinates.write(network.params_mut());
        gradient(network)?;
        coordinates.pull_back(network.grads(), target);
        Ok(())
    });
    coordinates.values_mut().copy_from_slice(&values);
    // Kept, not written anew: rounding would move parameters that did not come from the values.
    network.params_mut().copy_from_slice(&params);
    result
}

/// Leaves the gradient of the sum of `weights[k] * log p(y_k | x_k)` in the network.
fn weighted(network: &mut Network, images: &[f32], labels: &[i64], weights: &[f32]) -> Result<()> {
    let n_classes = network.config().n_classes;
    let logits = network.forward(images, labels.len(), Mode::Eval)?;
    let mut on_logits = vec![0.0; logits.len()];
    loss::cross_entropy(logits, labels, n_classes, 0.0, &mut on_logits)?;
    // That was the gradient of the mean of -log p.
    let n = labels.len() as f32;
    for (row, weight) in on_logits.chunks_exact_mut(n_classes).zip(weights) {
        row.iter_mut().for_each(|g| *g *= -n * weight);
    }
    network.backward(&on_logits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::reference::{check, values, wide};
    use crate::nn::coordinates::Plain;
    use crate::nn::spectral::Spectral;
    use crate::nn::{Architecture, golden};
    use crate::rng::Streams;

    const N: usize = 6;
    const LABELS: [i64; N] = [0, 1, 2, 2, 1, 0];

    fn softmax_model() -> (Network, Vec<f32>) {
        (golden::softmax_model(), values(2, N * 48).iter().map(|v| 2.0 * v).collect())
    }

    /// Tr F by its definition: a gradient for every sample.
    fn exact_trace(network: &mut Network, images: &[f32], params: &[f32]) -> f64 {
        network.params_mut().copy_from_slice(params);
        let each = (0..N).map(|k| {
            weighted(network, &images[k * 48..(k + 1) * 48], &LABELS[k..=k], &[1.0]).unwrap();
            network.grads().iter().map(|&g| f64::from(g).powi(2)).sum::<f64>()
        });
        each.sum::<f64>() / N as f64
    }

    /// The mean of the estimates and of their gradients over `patterns` of signs.
    fn mean_over(patterns: impl Iterator<Item = [f32; N]>) -> (f64, Vec<f64>) {
        let (mut network, images) = softmax_model();
        let mut plain = Plain::new(network.params());
        let mut trace = Trace::new();
        let (mut total, mut count) = (0.0, 0.0);
        let mut sums = vec![0.0; network.n_parameters()];
        let mut gradient = vec![0.0; sums.len()];
        for signs in patterns {
            total += trace.estimate(&mut network, &mut plain, (&images, &LABELS), &signs, &mut gradient).unwrap();
            sums.iter_mut().zip(&gradient).for_each(|(sum, &g)| *sum += f64::from(g));
            count += 1.0;
        }
        (total / count, sums.into_iter().map(|sum| sum / count).collect())
    }

    fn all_signs() -> impl Iterator<Item = [f32; N]> {
        (0..1 << N).map(|bits: u32| std::array::from_fn(|k| if (bits >> k) & 1 == 1 { 1.0 } else { -1.0 }))
    }

    #[test]
    fn over_all_signs_the_trace_and_its_gradient_are_exact() {
        let (mut network, images) = softmax_model();
        let params = network.params().to_vec();
        let exact = exact_trace(&mut network, &images, &params);
        let (estimate, gradient) = mean_over(all_signs());
        assert!((estimate / exact - 1.0).abs() < 1e-5, "{estimate} instead of {exact}");
        const STEP: f32 = 1e-2;
        let differences: Vec<f64> = (0..params.len())
            .map(|i| {
                let mut at = |by: f32| {
                    let mut moved = params.clone();
                    moved[i] += by;
                    exact_trace(&mut network, &images, &moved)
                };
                (at(STEP) - at(-STEP)) / f64::from(2.0 * STEP)
            })
            .collect();
        let narrow: Vec<f32> = gradient.iter().map(|&g| g as f32).collect();
        check("gradient of the trace", &narrow, &differences, 1e-2);
    }

    #[test]
    fn sixty_four_random_signs_come_within_five_percent() {
        let (mut network, images) = softmax_model();
        let params = network.params().to_vec();
        let exact = exact_trace(&mut network, &images, &params);
        let mut stream = Streams::new(0, "test").stream("signs");
        let draws: Vec<[f32; N]> =
            (0..64).map(|_| std::array::from_fn(|_| if stream.chance(0.5) { 1.0 } else { -1.0 })).collect();
        let (estimate, _) = mean_over(draws.into_iter());
        assert!((estimate / exact - 1.0).abs() < 0.05, "{estimate} instead of {exact}");
    }

    /// PyTorch, a backward pass a sample; every tensor by the norm of its diagonal.
    #[test]
    fn the_diagonal_is_that_of_pytorch() {
        let expected = &golden::purify()["fisher"];
        let (mut network, images) = golden::hashed(Architecture::Resnet8, 4, (8, 8));
        let pixels: Vec<u8> = values(5, images.len()).iter().map(|v| ((v + 1.0) * 127.0) as u8).collect();
        let split = Split::clean((8, 8), pixels, vec![3, 1, 0, 9]).unwrap();
        let plain = Plain::new(network.params());
        let normalise = Normalise::none();
        let diagonal = diagonal(&mut network, &plain, (&split, &[0, 1, 2, 3], &normalise), || Ok(())).unwrap();
        let trace: f64 = wide(&diagonal).iter().sum();
        assert!((trace / expected["trace"].as_f64().unwrap() - 1.0).abs() < 1e-3, "{trace}");
        for tensor in &network.graph().parameters {
            let norm = diagonal[tensor.range.clone()].iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
            let theirs = expected["norms"][&tensor.name].as_f64().unwrap();
            assert!((norm - theirs).abs() < 1e-3 * theirs.max(1e-3), "{}: {norm} instead of {theirs}", tensor.name);
        }
    }

    /// With singular values as coordinates: against differences of the trace that only moves them.
    #[test]
    fn the_trace_of_singular_values_has_its_gradient() {
        let (mut network, images) = softmax_model();
        let mut spectral = Spectral::new(network.graph(), network.params()).unwrap();
        spectral.write(network.params_mut());
        let signs: [f32; N] = [1.0, -1.0, 1.0, 1.0, -1.0, -1.0];
        let start = spectral.values().to_vec();
        let mut gradient = vec![0.0; start.len()];
        let before = network.params().to_vec();
        Trace::new().estimate(&mut network, &mut spectral, (&images, &LABELS), &signs, &mut gradient).unwrap();
        assert!(network.params() == before && spectral.values() == start);
        const STEP: f32 = 1e-2;
        let mut at = |i: usize, by: f32| {
            spectral.values_mut().copy_from_slice(&start);
            spectral.values_mut()[i] += by;
            spectral.write(network.params_mut());
            weighted(&mut network, &images, &LABELS, &signs).unwrap();
            let mut pulled = vec![0.0; start.len()];
            spectral.pull_back(network.grads(), &mut pulled);
            pulled.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>() / N as f64
        };
        let differences: Vec<f64> =
            (0..start.len()).map(|i| (at(i, STEP) - at(i, -STEP)) / f64::from(2.0 * STEP)).collect();
        check("gradient", &gradient, &differences, 1e-2);
    }
}
