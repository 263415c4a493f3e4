//! Universal perturbations, and how their answer to the weights enters the weights' gradient.
//!
//! I-BAU (Zeng et al. 2022, arXiv:2110.03735) removes backdoors by a minimax problem: the inner one looks for one
//! perturbation d of all images that does most harm, the outer one for weights that withstand it. The gradient of the
//! outer loss F(d(w), w) has a part through d(w), found by the implicit function theorem: with one inner gradient step
//! `P(d, w) = d - eta dg/dd` as the fixed-point map, K iterations `v <- J_d P' v + dF/dd` from 0, and then
//! `dF/dw + J_w P' v` (section 3.2 and algorithm 1).
//!
//! Products with second derivatives are central differences of gradients, `H_dd v` and `H_wd v` from the same two passes,
//! with the [gates](super::gates) of the inner problem held.
//! Perturbations are of normalised images; networks are in evaluation mode.

use super::loss;
use super::network::{Mode, Network};
use super::predict;
use crate::error::Result;

/// Length, in normalised pixels, of the step of a central difference.
const STEP: f64 = 0.1;

/// The inner problem: `g(d) = - mean CE(f(x + d), label) + penalty |d|^2`, to be made small.
#[derive(Clone, Copy, Debug)]
pub struct Inner<'a> {
    /// [n, H, W, 3], normalised.
    pub images: &'a [f32],
    /// What the images are to be led away from, [n].
    pub labels: &'a [i64],
    /// Weight of the perturbation's squared length.
    pub penalty: f64,
}

impl Inner<'_> {
    /// g(d), its gradient on d into `gradient` [H, W, 3]; its gradient on the weights stays in the network, which must
    /// want gradients on images.
    ///
    /// # Errors
    /// Images that do not fit the network.
    pub fn gradient(&self, network: &mut Network, d: &[f32], gradient: &mut [f32]) -> Result<f64> {
        let mut moved = self.images.to_vec();
        for image in moved.chunks_exact_mut(d.len()) {
            image.iter_mut().zip(d).for_each(|(value, d)| *value += d);
        }
        let loss = descend(network, &moved, self.labels, -1.0)?;
        gradient.fill(0.0);
        for image in network.input_grad()?.chunks_exact(d.len()) {
            gradient.iter_mut().zip(image).for_each(|(sum, g)| *sum += g);
        }
        gradient.iter_mut().zip(d).for_each(|(sum, &d)| *sum += (2.0 * self.penalty) as f32 * d);
        Ok(self.penalty * d.iter().map(|&d| f64::from(d).powi(2)).sum::<f64>() - loss)
    }
}

/// The outer problem on the same images: `F(d, w) = mean CE(f(x + chosen d), label)`.
#[derive(Clone, Copy, Debug)]
pub struct Outer<'a> {
    /// The true labels, [n].
    pub labels: &'a [i64],
    /// The images that the perturbation is put on, [n].
    pub chosen: &'a [bool],
}

/// How the fixed point is iterated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FixedPoint {
    /// eta, the inner step.
    pub step: f64,
    /// K.
    pub n_iterations: usize,
}

/// F(d, w), and its gradient on the weights into `gradient` [n_parameters], the answer of d to the weights included.
///
/// # Errors
/// Images that do not fit the network.
pub fn hyper_gradient(
    network: &mut Network,
    (inner, outer): (&Inner, &Outer),
    d: &[f32],
    how: FixedPoint,
    gradient: &mut [f32],
) -> Result<f64> {
    let mut moved = inner.images.to_vec();
    for (image, _) in moved.chunks_exact_mut(d.len()).zip(outer.chosen).filter(|(_, chosen)| **chosen) {
        image.iter_mut().zip(d).for_each(|(value, d)| *value += d);
    }
    let loss = descend(network, &moved, outer.labels, 1.0)?;
    gradient.copy_from_slice(network.grads());
    let mut on_d = vec![0.0f32; d.len()];
    for (image, _) in network.input_grad()?.chunks_exact(d.len()).zip(outer.chosen).filter(|(_, chosen)| **chosen) {
        on_d.iter_mut().zip(image).for_each(|(sum, g)| *sum += g);
    }
    let mut v = vec![0.0f32; d.len()];
    let mut product = vec![0.0; d.len()];
    let mut mixed = vec![0.0; gradient.len()];
    // Leaves the gates of the inner problem.
    inner.gradient(network, d, &mut product)?;
    network.holding_gates(|network| {
        for _ in 0..how.n_iterations {
            differences(network, inner, d, &v, &mut product, None)?;
            for ((v, product), on_d) in v.iter_mut().zip(&product).zip(&on_d) {
                *v += on_d - (how.step as f32) * product;
            }
        }
        differences(network, inner, d, &v, &mut product, Some(&mut mixed[..]))
    })?;
    gradient.iter_mut().zip(&mixed).for_each(|(g, mixed)| *g -= (how.step as f32) * mixed);
    Ok(loss)
}

/// `H_dd v` of the inner problem into `on_d` and, where asked for, `H_wd v` into `on_weights`.
fn differences(
    network: &mut Network,
    inner: &Inner,
    d: &[f32],
    v: &[f32],
    on_d: &mut [f32],
    mut on_weights: Option<&mut [f32]>,
) -> Result<()> {
    let length = v.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    on_d.fill(0.0);
    if let Some(on_weights) = &mut on_weights {
        on_weights.fill(0.0);
    }
    if length == 0.0 {
        return Ok(());
    }
    let step = STEP / length;
    let scale = (0.5 / step) as f32;
    let mut gradient = vec![0.0; d.len()];
    for sign in [1.0, -1.0f32] {
        let moved: Vec<f32> = d.iter().zip(v).map(|(d, v)| d + sign * step as f32 * v).collect();
        inner.gradient(network, &moved, &mut gradient)?;
        on_d.iter_mut().zip(&gradient).for_each(|(target, g)| *target += sign * scale * g);
        if let Some(on_weights) = &mut on_weights {
            on_weights.iter_mut().zip(network.grads()).for_each(|(target, g)| *target += sign * scale * g);
        }
    }
    Ok(())
}

/// The perturbation after a pass over `batches` of normalised images, each a gradient step of `rate` on the inner
/// problem, from 0; led away from `labels`, or from what the network says of the images as they are.
///
/// # Errors
/// Images that do not fit the network; a perturbation that is not finite.
pub fn universal<'a>(
    network: &mut Network,
    batches: impl Iterator<Item = (&'a [f32], Option<&'a [i64]>)>,
    n_values: usize,
    (rate, penalty): (f64, f64),
) -> Result<Vec<f32>> {
    let (mut d, mut gradient) = (vec![0.0f32; n_values], vec![0.0f32; n_values]);
    let n_classes = network.config().n_classes;
    for (images, labels) in batches {
        let said = match labels {
            Some(labels) => labels.to_vec(),
            None => predict::classes(network.forward(images, images.len() / n_values, Mode::Eval)?, n_classes),
        };
        Inner { images, labels: &said, penalty }.gradient(network, &d, &mut gradient)?;
        d.iter_mut().zip(&gradient).for_each(|(d, g)| *d -= rate as f32 * g);
    }
    match d.iter().all(|d| d.is_finite()) {
        true => Ok(d),
        false => Err(crate::error::Error::stage("the universal perturbation is not finite")
            .hint("choose a smaller inner learning rate")),
    }
}

/// Mean cross-entropy; the gradient of `factor` times it stays in the network.
fn descend(network: &mut Network, images: &[f32], labels: &[i64], factor: f32) -> Result<f64> {
    let n_classes = network.config().n_classes;
    let logits = network.forward(images, labels.len(), Mode::Eval)?;
    let mut on_logits = vec![0.0; logits.len()];
    let losses = loss::cross_entropy(logits, labels, n_classes, 0.0, &mut on_logits)?;
    on_logits.iter_mut().for_each(|g| *g *= factor);
    network.backward(&on_logits)?;
    Ok(losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / labels.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::reference::values;
    use crate::nn::golden;

    const LABELS: [i64; 4] = [0, 1, 2, 1];
    const PENALTY: f64 = 0.5;
    const STEP_OF_INNER: f64 = 0.4;

    fn network() -> Network {
        let mut network = golden::softmax_model();
        network.want_input_grad(true);
        network
    }

    /// The perturbation that solves the inner problem, by many steps.
    fn solve(network: &mut Network, inner: &Inner) -> Vec<f32> {
        let (mut d, mut gradient) = (vec![0.0f32; 48], vec![0.0f32; 48]);
        for _ in 0..200 {
            inner.gradient(network, &d, &mut gradient).unwrap();
            d.iter_mut().zip(&gradient).for_each(|(d, g)| *d -= STEP_OF_INNER as f32 * g);
        }
        d
    }

    /// Against central differences of the outer loss at the inner problem's solution, solved anew for every weight.
    #[test]
    fn the_hyper_gradient_is_the_slope_of_the_solved_problem() {
        let mut network = network();
        let images: Vec<f32> = values(2, 4 * 48).iter().map(|v| 2.0 * v).collect();
        let inner = Inner { images: &images, labels: &LABELS, penalty: PENALTY };
        let outer = Outer { labels: &LABELS, chosen: &[true, false, true, true] };
        let d = solve(&mut network, &inner);
        let n = network.n_parameters();
        let (mut gradient, mut direct) = (vec![0.0; n], vec![0.0; n]);
        let how = FixedPoint { step: STEP_OF_INNER, n_iterations: 100 };
        hyper_gradient(&mut network, (&inner, &outer), &d, how, &mut gradient).unwrap();
        let none = FixedPoint { step: STEP_OF_INNER, n_iterations: 0 };
        hyper_gradient(&mut network, (&inner, &outer), &d, none, &mut direct).unwrap();
        let start = network.params().to_vec();
        let through: Vec<f32> = gradient.iter().zip(&direct).map(|(all, direct)| all - direct).collect();
        let length = |v: &[f32]| v.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        assert!(length(&through) > 0.05 * length(&direct), "the answer of d matters: {}", length(&through));
        for direction in [&gradient, &through, &values(9, n)] {
            let norm = length(direction);
            let mut at = |step: f64| {
                let moved = start.iter().zip(direction).map(|(w, g)| w + (step / norm) as f32 * g);
                network.params_mut().copy_from_slice(&moved.collect::<Vec<_>>());
                let d = solve(&mut network, &inner);
                let mut moved = images.clone();
                for (image, _) in moved.chunks_exact_mut(48).zip(outer.chosen).filter(|(_, chosen)| **chosen) {
                    image.iter_mut().zip(&d).for_each(|(value, d)| *value += d);
                }
                descend(&mut network, &moved, &LABELS, 1.0).unwrap()
            };
            let slope = (at(0.02) - at(-0.02)) / 0.04;
            let expected =
                gradient.iter().zip(direction).map(|(&g, &d)| f64::from(g) * f64::from(d)).sum::<f64>() / norm;
            let scale = length(&gradient);
            assert!((slope - expected).abs() < 0.01 * scale, "difference {slope}, gradient {expected} of {scale}");
        }
    }

    #[test]
    fn the_perturbation_raises_the_loss() {
        let mut network = network();
        let images: Vec<f32> = values(2, 4 * 48).iter().map(|v| 2.0 * v).collect();
        let before = descend(&mut network, &images, &LABELS, 1.0).unwrap();
        let batches = std::iter::repeat_n((&images[..], Some(&LABELS[..])), 5);
        let d = universal(&mut network, batches, 48, (1.0, 0.001)).unwrap();
        let moved: Vec<f32> = images.iter().zip(d.iter().cycle()).map(|(x, d)| x + d).collect();
        let after = descend(&mut network, &moved, &LABELS, 1.0).unwrap();
        assert!(after > before + 0.3, "{before} before, {after} after");
    }
}
