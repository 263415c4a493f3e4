//! Networks.
//!
//! A network is described once, as an explicit [`graph`] (one architecture per file in [`models`]), and executed by its
//! own [`tape`] over preallocated channels-last buffers with the [kernels](crate::kernels): forwards in the order of the
//! nodes, backwards in reverse. Parameters, gradients and running statistics are one flat buffer each, so an optimiser
//! or a checkpoint is one pass over a slice.
//!
//! Why not an autograd: candle's costs a zeroed buffer and an addition for every gradient, frees nothing before the
//! end of the backward pass, and cannot fuse a residual block. Here a step allocates nothing, and its buffers have
//! fixed addresses. Any loss still works: [`Network::forward`] returns logits (and layers' values), and
//! [`Network::backward_from`] takes gradients on logits and on any layers.

pub mod attention;
pub mod augment;
pub mod batch_loss;
pub mod bilevel;
pub mod coordinates;
pub mod curvature;
#[cfg(feature = "cuda")]
pub mod engine;
pub mod filters;
pub mod fisher;
pub mod gates;
#[cfg(test)]
pub(crate) mod golden;
pub mod graph;
pub mod hvp;
mod init;
pub mod lipschitz;
pub mod loss;
pub mod mask;
mod models;
pub mod network;
pub mod optim;
pub mod pgd;
mod place;
pub mod predict;
pub mod sam;
pub mod schedule;
pub mod spectral;
mod tape;
pub mod trigger;
mod weights;

pub use network::{Architecture, Config, LayerGradient, Mode, Network, Work};
pub use place::Place;
