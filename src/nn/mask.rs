//! Masks on a network as [`Coordinates`]: on its normalised channels, or on its weights.
//!
//! All start at 1, where the network is what it was.

use super::coordinates::Coordinates;
use super::graph::{Graph, Op, Role};
use std::ops::Range;

/// A mask for every channel of every batch normalisation, on its scale (ANP, Wu & Wang 2021, arXiv:2110.14430, section
/// 4; RNP has the same): `gamma = m gamma_0`.
///
/// Adversarial noise goes on top of it: `gamma = (m + d) gamma_0`, `beta = (1 + x) beta_0`.
#[derive(Clone, Debug)]
pub struct Channels {
    norms: Vec<Norm>,
    scales: Vec<f32>,
    shifts: Vec<f32>,
    values: Vec<f32>,
}

#[derive(Clone, Debug)]
struct Norm {
    gamma: Range<usize>,
    beta: Range<usize>,
    /// In the values.
    own: Range<usize>,
}

impl Channels {
    /// Over the normalisations of `params`, in the order of the graph.
    pub fn new(graph: &Graph, params: &[f32]) -> Channels {
        let mut masks = Channels { norms: Vec::new(), scales: Vec::new(), shifts: Vec::new(), values: Vec::new() };
        for node in &graph.nodes {
            if let Op::BatchNorm { gamma, beta, .. } = &node.op {
                let start = masks.scales.len();
                masks.scales.extend_from_slice(&params[gamma.clone()]);
                masks.shifts.extend_from_slice(&params[beta.clone()]);
                let own = start..masks.scales.len();
                masks.norms.push(Norm { gamma: gamma.clone(), beta: beta.clone(), own });
            }
        }
        masks.values = vec![1.0; masks.scales.len()];
        masks
    }

    /// Sets the normalisations of `params` to the masked ones with `noise` on scale and shift, each [channels].
    pub fn write_perturbed(&self, noise: (&[f32], &[f32]), params: &mut [f32]) {
        for Norm { gamma, beta, own } in &self.norms {
            for (target, i) in params[gamma.clone()].iter_mut().zip(own.clone()) {
                *target = (self.values[i] + noise.0[i]) * self.scales[i];
            }
            for (target, i) in params[beta.clone()].iter_mut().zip(own.clone()) {
                *target = (1.0 + noise.1[i]) * self.shifts[i];
            }
        }
    }

    /// Writes the gradients with respect to the noise on scale and shift into `targets`, each [channels], from the
    /// gradient with respect to the parameters.
    pub fn pull_back_noise(&self, grads: &[f32], targets: (&mut [f32], &mut [f32])) {
        for Norm { gamma, beta, own } in &self.norms {
            for (grad, i) in grads[gamma.clone()].iter().zip(own.clone()) {
                targets.0[i] = grad * self.scales[i];
            }
            for (grad, i) in grads[beta.clone()].iter().zip(own.clone()) {
                targets.1[i] = grad * self.shifts[i];
            }
        }
    }

    /// Sets the scale of the channels whose mask is at most `threshold` to 0 in `params`; returns how many they are.
    pub fn prune(&self, threshold: f32, params: &mut [f32]) -> usize {
        let mut n = 0;
        for Norm { gamma, own, .. } in &self.norms {
            for (scale, &mask) in params[gamma.clone()].iter_mut().zip(&self.values[own.clone()]) {
                if mask <= threshold {
                    *scale = 0.0;
                    n += 1;
                }
            }
        }
        n
    }
}

impl Coordinates for Channels {
    fn values(&self) -> &[f32] {
        &self.values
    }

    fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    fn write(&self, params: &mut [f32]) {
        for Norm { gamma, beta, own } in &self.norms {
            for (target, i) in params[gamma.clone()].iter_mut().zip(own.clone()) {
                *target = self.values[i] * self.scales[i];
            }
            params[beta.clone()].copy_from_slice(&self.shifts[own.clone()]);
        }
    }

    fn pull_back(&self, grads: &[f32], target: &mut [f32]) {
        for Norm { gamma, own, .. } in &self.norms {
            for (grad, i) in grads[gamma.clone()].iter().zip(own.clone()) {
                target[i] = grad * self.scales[i];
            }
        }
    }
}

/// What one mask covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// A single weight of a convolution (AWM).
    Weight,
    /// All weights into one output of a convolution or of the linear layer: a neuron (NFT).
    Neuron,
}

/// Masks that multiply weights.
#[derive(Clone, Debug)]
pub struct Weights {
    reach: Reach,
    layers: Vec<Layer>,
    /// The weights that are masked, layer after layer.
    base: Vec<f32>,
    values: Vec<f32>,
}

#[derive(Clone, Debug)]
struct Layer {
    weight: Range<usize>,
    base: Range<usize>,
    /// In the values.
    own: Range<usize>,
    /// Whether outputs are the fastest index, as in convolutions.
    is_conv: bool,
}

impl Layer {
    /// The mask of the layer's weight number `i`, within the layer's own.
    fn mask_of(&self, reach: Reach, i: usize) -> usize {
        match reach {
            Reach::Weight => i,
            Reach::Neuron if self.is_conv => i % self.own.len(),
            Reach::Neuron => i / (self.base.len() / self.own.len()),
        }
    }
}

impl Weights {
    /// Over the layers of `params`, in the order of the parameters.
    pub fn new(graph: &Graph, params: &[f32], reach: Reach) -> Weights {
        let mut masks = Weights { reach, layers: Vec::new(), base: Vec::new(), values: Vec::new() };
        for tensor in &graph.parameters {
            let (n_outputs, is_conv) = match tensor.role {
                Role::ConvWeight { out_channels, .. } => (out_channels, true),
                Role::LinearWeight { n_out, .. } if reach == Reach::Neuron => (n_out, false),
                _ => continue,
            };
            let n = match reach {
                Reach::Weight => tensor.range.len(),
                Reach::Neuron => n_outputs,
            };
            let (start, first) = (masks.base.len(), masks.values.len());
            masks.base.extend_from_slice(&params[tensor.range.clone()]);
            masks.values.resize(first + n, 1.0);
            let (base, own) = (start..masks.base.len(), first..first + n);
            masks.layers.push(Layer { weight: tensor.range.clone(), base, own, is_conv });
        }
        masks
    }

    /// Where each layer's masks lie among the values.
    pub fn layers(&self) -> impl Iterator<Item = Range<usize>> {
        self.layers.iter().map(|layer| layer.own.clone())
    }
}

impl Coordinates for Weights {
    fn values(&self) -> &[f32] {
        &self.values
    }

    fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    fn write(&self, params: &mut [f32]) {
        for layer in &self.layers {
            let (base, masks) = (&self.base[layer.base.clone()], &self.values[layer.own.clone()]);
            for (i, (target, base)) in params[layer.weight.clone()].iter_mut().zip(base).enumerate() {
                *target = masks[layer.mask_of(self.reach, i)] * base;
            }
        }
    }

    fn pull_back(&self, grads: &[f32], target: &mut [f32]) {
        for layer in &self.layers {
            let targets = &mut target[layer.own.clone()];
            targets.fill(0.0);
            let base = &self.base[layer.base.clone()];
            for (i, (grad, base)) in grads[layer.weight.clone()].iter().zip(base).enumerate() {
                targets[layer.mask_of(self.reach, i)] += grad * base;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::reference::{values, wide};
    use crate::nn::{Architecture, Mode, Network, golden, loss};

    /// Norm and product with hashed values, as the script's `summary`.
    fn summary(tensor: &[f32], seed: u32) -> [f64; 2] {
        let (tensor, hash) = (wide(tensor), wide(&values(seed, tensor.len())));
        [tensor.iter().map(|v| v * v).sum::<f64>().sqrt(), tensor.iter().zip(hash).map(|(t, h)| t * h).sum()]
    }

    /// The loss over batch statistics, its gradient left in the network.
    fn loss_of(network: &mut Network, images: &[f32]) -> f64 {
        let labels = [0, 1, 2, 3, 4, 5];
        let logits = network.forward(images, 6, Mode::Batch).unwrap();
        let mut grad = vec![0.0; logits.len()];
        let each = loss::cross_entropy(logits, &labels, 10, 0.0, &mut grad).unwrap();
        network.backward(&grad).unwrap();
        each.iter().map(|&l| f64::from(l)).sum::<f64>() / 6.0
    }

    #[test]
    fn masks_and_noise_have_the_gradients_of_pytorch() {
        let golden = &golden::purify()["anp"];
        let (mut network, images) = golden::hashed(Architecture::Resnet8, 6, (8, 8));
        let mut masks = Channels::new(network.graph(), network.params());
        let name_of = |norm: &Norm| {
            let tensor = network.graph().parameters.iter().find(|t| t.range == norm.gamma).unwrap();
            tensor.name.strip_suffix(".weight").unwrap().to_string()
        };
        let names: Vec<String> = masks.norms.iter().map(name_of).collect();
        let mut sorted = names.clone();
        sorted.sort_unstable();
        let (mut on_scale, mut on_shift) = (vec![0.0; masks.values.len()], vec![0.0; masks.values.len()]);
        for (norm, name) in masks.norms.clone().iter().zip(&names) {
            let seed = sorted.iter().position(|other| other == name).unwrap() as u32;
            let n = norm.own.len();
            let scaled = |offset: f32, scale: f32, seed| values(seed, n).into_iter().map(move |v| offset + scale * v);
            masks.values.splice(norm.own.clone(), scaled(0.75, 0.25, 100 + seed));
            on_scale.splice(norm.own.clone(), scaled(0.0, 0.4, 200 + seed));
            on_shift.splice(norm.own.clone(), scaled(0.0, 0.4, 300 + seed));
        }
        let n = masks.values.len();
        masks.write(network.params_mut());
        let clean = loss_of(&mut network, &images);
        let mut of_clean = vec![0.0; n];
        masks.pull_back(network.grads(), &mut of_clean);
        masks.write_perturbed((&on_scale, &on_shift), network.params_mut());
        let perturbed = loss_of(&mut network, &images);
        let (mut of_perturbed, mut scale, mut shift) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
        masks.pull_back(network.grads(), &mut of_perturbed);
        masks.pull_back_noise(network.grads(), (&mut scale, &mut shift));
        let of_mask: Vec<f32> = of_clean.iter().zip(&of_perturbed).map(|(c, p)| 0.2 * c + 0.8 * p).collect();
        for (got, expected) in [clean, perturbed].iter().zip(golden::floats(&golden["losses"])) {
            assert!((got - expected).abs() < 1e-4, "{got} instead of {expected}");
        }
        for (norm, name) in masks.norms.iter().zip(&names) {
            for (part, tensor, seed) in [("scale", &scale, 1), ("shift", &shift, 2), ("mask", &of_mask, 3)] {
                let expected = golden::floats(&golden["layers"][name][part]);
                for (got, expected) in summary(&tensor[norm.own.clone()], seed).iter().zip(&expected) {
                    let scale = golden::floats(&golden["layers"][name][part])[0].max(0.01);
                    assert!((got - expected).abs() < 2e-3 * scale, "{name} {part}: {got} instead of {expected}");
                }
            }
        }
    }

    #[test]
    fn pruning_takes_the_channels_up_to_the_threshold() {
        let (network, _) = golden::hashed(Architecture::Resnet8, 1, (8, 8));
        let mut masks = Channels::new(network.graph(), network.params());
        masks.values[3] = 0.2;
        masks.values[20] = 0.5;
        let mut params = network.params().to_vec();
        assert_eq!(masks.prune(0.1, &mut params), 0);
        assert_eq!(params, network.params());
        assert_eq!(masks.prune(0.5, &mut params), 2);
        let changed: Vec<usize> = (0..params.len()).filter(|&i| params[i] != network.params()[i]).collect();
        assert_eq!(changed, [masks.norms[0].gamma.start + 3, masks.norms[1].gamma.start + 4]);
        assert!(changed.iter().all(|&i| params[i] == 0.0));
    }

    /// Invariant 11: on `sum of hash * parameters`.
    #[test]
    fn weight_masks_follow_the_chain_rule() {
        let (network, _) = golden::hashed(Architecture::Resnet8, 1, (8, 8));
        let hash = values(3, network.n_parameters());
        for (reach, n) in [(Reach::Weight, 76_720), (Reach::Neuron, 16 * 3 + 32 * 3 + 64 * 3 + 10)] {
            let mut masks = Weights::new(network.graph(), network.params(), reach);
            assert_eq!((masks.values.len(), masks.layers().map(|l| l.len()).sum::<usize>()), (n, n));
            let mut params = network.params().to_vec();
            masks.write(&mut params);
            assert_eq!(params, network.params());
            let mut gradient = vec![f32::NAN; n];
            masks.pull_back(&hash, &mut gradient);
            for i in (0..n).step_by(n / 20).chain([n - 1]) {
                masks.values[i] = 2.0;
                masks.write(&mut params);
                masks.values[i] = 1.0;
                let moved = params.iter().zip(network.params()).map(|(a, b)| f64::from(*a) - f64::from(*b));
                let slope: f64 = moved.zip(&hash).map(|(d, &h)| d * f64::from(h)).sum();
                assert!((slope - f64::from(gradient[i])).abs() < 1e-4, "{reach:?} {i}: {slope} and {}", gradient[i]);
            }
        }
    }
}
