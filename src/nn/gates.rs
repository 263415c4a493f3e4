//! The side on which every rectifier of a network stands for a batch, and which value of every pooled window passes.
//!
//! A network of rectifiers is smooth in its weights while none of them changes sides, and what automatic differentiation
//! calls its Hessian is that of the smooth piece. A central difference steps over the edges of the piece, however short
//! the step: on 100 images, 10^5 to 10^7 rectifiers stand close to one. With the gates of the point *held*
//! ([`Network::hold`](super::Network::hold)), the same function continues smoothly beyond the piece, and the difference
//! has the Hessian of the piece at a step that rounding does not see.

use super::graph::{Graph, NodeId};
use crate::error::{Error, Result};
#[cfg(feature = "cuda")]
use crate::kernels::cuda::{Address, Buffer};

/// The gates of a batch.
pub struct Gates {
    /// Images of the batch.
    pub(super) n: usize,
    /// By node.
    pub(super) of_nodes: Vec<Gate>,
}

/// The gates of a node.
pub(super) enum Gate {
    /// Smooth everywhere.
    None,
    /// A bit for every value of a rectifier.
    Open(Vec<u8>),
    /// The place in its window of every value of a pool.
    Places(Vec<u8>),
    /// On a GPU: a rectifier's output, or a pool's input.
    #[cfg(feature = "cuda")]
    OnDevice(Buffer),
}

impl Gates {
    /// Fails unless they are those of `n` images in `graph`.
    pub(super) fn check(&self, graph: &Graph, n: usize) -> Result<()> {
        if self.n == n && self.of_nodes.len() == graph.nodes.len() {
            return Ok(());
        }
        Err(Error::stage(format!("gates of {} images are held, and {n} were given", self.n)))
    }

    /// The bits of a rectifier.
    pub(super) fn open(&self, node: NodeId) -> Option<&[u8]> {
        match &self.of_nodes[node] {
            Gate::Open(bits) => Some(bits),
            _ => None,
        }
    }

    /// What a GPU keeps of a rectifier or a pool.
    #[cfg(feature = "cuda")]
    pub(super) fn on_device(&self, node: NodeId) -> Option<Address> {
        match &self.of_nodes[node] {
            Gate::OnDevice(values) => Some(values.address()),
            _ => None,
        }
    }

    /// The places of a pool.
    pub(super) fn places(&self, node: NodeId) -> Option<&[u8]> {
        match &self.of_nodes[node] {
            Gate::Places(places) => Some(places),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::batch_loss::BatchLoss;
    use super::super::curvature::signs;
    use super::super::hvp::HessianProduct;
    use super::super::network::{Architecture, Mode};
    use super::super::{Network, golden};
    use crate::kernels::reference::values;
    use crate::kernels::{Isa, l2};
    use crate::rng::Streams;

    const N: usize = 6;

    fn made(architecture: Architecture) -> (Network, BatchLoss) {
        let side = if architecture == Architecture::Vgg16Bn { 32 } else { 8 };
        let (network, _) = golden::hashed(architecture, 1, (side, side));
        let n_classes = network.config().n_classes;
        let labels = (0..N).map(|i| (i % n_classes) as i64).collect();
        (network, BatchLoss::new(values(2, N * side * side * 3), labels).unwrap())
    }

    /// Rectifiers on their own, in a block, and pools.
    const KINDS: [Architecture; 3] = [Architecture::Resnet8, Architecture::PreactResnet18, Architecture::Vgg16Bn];

    #[test]
    fn at_the_point_itself_nothing_changes() {
        for architecture in KINDS {
            let (mut network, mut batch) = made(architecture);
            let value = batch.gradient(&mut network).unwrap();
            let gradient = network.grads().to_vec();
            batch.hold(&mut network).unwrap();
            assert_eq!(batch.gradient(&mut network).unwrap(), value, "{architecture:?}");
            assert!(network.grads() == gradient, "{architecture:?}");
        }
    }

    /// The Hessian of a smooth function does not depend on the step. With free gates it does: by more than itself.
    #[test]
    fn products_with_held_gates_do_not_depend_on_the_step() {
        for architecture in KINDS {
            let (mut network, mut batch) = made(architecture);
            let vector = signs(Streams::new(0, "gates").stream("vector"), network.n_parameters());
            let mut change = |batch: &mut BatchLoss| {
                let [one, other] = [2e-3, 5e-4].map(|step| {
                    let mut product = vec![0.0; vector.len()];
                    let gradient = |network: &mut Network| batch.gradient(network).map(drop);
                    let mut differences = HessianProduct::with_step(step);
                    differences.of_network(&mut network, &vector, &mut product, gradient).unwrap();
                    product
                });
                let difference: Vec<f32> = one.iter().zip(&other).map(|(a, b)| a - b).collect();
                l2::length(Isa::best(), &difference) / l2::length(Isa::best(), &other)
            };
            let free = change(&mut batch);
            batch.hold(&mut made(architecture).0).unwrap();
            let held = change(&mut batch);
            assert!(held < 5e-3 && free > 0.1, "{architecture:?}: {held} held, {free} free");
        }
    }

    #[test]
    fn gates_belong_to_a_batch() {
        let (mut network, mut batch) = made(Architecture::Resnet8);
        assert!(network.gates().is_err(), "before a forward pass");
        batch.gradient(&mut network).unwrap();
        network.hold(Some(network.gates().unwrap().into()));
        let error = network.forward(&values(2, 8 * 8 * 3), 1, Mode::Eval).unwrap_err();
        assert_eq!(error.message(), "gates of 6 images are held, and 1 were given");
        network.hold(None);
        network.forward(&values(2, 8 * 8 * 3), 1, Mode::Eval).unwrap();
    }
}
