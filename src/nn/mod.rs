//! Networks: described once as an explicit graph, executed forwards and backwards over preallocated buffers.

pub mod network;

pub use network::{Architecture, Config, LayerGradient, Mode, Network};
