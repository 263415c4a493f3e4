//! First values of a network's tensors.

use super::graph::{ConvInit, Graph, Role, Tensor};
use crate::rng::Stream;

/// Draws parameters and resets running statistics; tensor number i draws from sub-stream i.
///
/// Linear layers and biases start as in PyTorch: U(-1/sqrt(fan_in), 1/sqrt(fan_in)), which is what its
/// `kaiming_uniform_(a = sqrt 5)` comes to. Convolutions follow [`Graph::conv_init`]; batch normalisation is the
/// identity.
pub fn init(graph: &Graph, stream: &Stream, parameters: &mut [f32], statistics: &mut [f32]) {
    for (i, tensor) in graph.parameters.iter().enumerate() {
        let mut stream = stream.at(i as u64);
        fill(tensor, graph.conv_init, &mut stream, &mut parameters[tensor.range.clone()]);
    }
    for tensor in &graph.statistics {
        let first = if tensor.role == Role::RunningVariance { 1.0 } else { 0.0 };
        statistics[tensor.range.clone()].fill(first);
    }
}

fn fill(tensor: &Tensor, conv_init: ConvInit, stream: &mut Stream, values: &mut [f32]) {
    match tensor.role {
        Role::ConvWeight { kernel, in_channels, out_channels } => match conv_init {
            ConvInit::HeFanOut => {
                let std = (2.0 / (kernel * kernel * out_channels) as f64).sqrt();
                values.fill_with(|| (stream.normal() * std) as f32);
            }
            ConvInit::TorchDefault => uniform(kernel * kernel * in_channels, stream, values),
        },
        Role::LinearWeight { n_in, .. } => uniform(n_in, stream, values),
        Role::Bias { fan_in } => uniform(fan_in, stream, values),
        Role::NormScale | Role::RunningVariance => values.fill(1.0),
        Role::NormShift | Role::RunningMean => values.fill(0.0),
    }
}

fn uniform(fan_in: usize, stream: &mut Stream, values: &mut [f32]) {
    let bound = 1.0 / (fan_in as f64).sqrt();
    values.fill_with(|| stream.uniform_in(-bound, bound) as f32);
}
