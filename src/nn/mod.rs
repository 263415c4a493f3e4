//! Networks: described once as an explicit graph, executed forwards and backwards over preallocated buffers.

pub mod augment;
#[cfg(test)]
mod golden;
pub mod loss;
pub mod network;
pub mod optim;
pub mod predict;
pub mod schedule;

pub use network::{Architecture, Config, LayerGradient, Mode, Network};
