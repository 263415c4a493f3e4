//! Random directions in which a network's loss is looked at: every filter as long as the network's own.
//!
//! H. Li et al., "Visualizing the Loss Landscape of Neural Nets" (NeurIPS 2018), section 4: a filter is what makes one
//! output channel of a convolution, or one output of a linear layer. A network whose filters are scaled up, and whose
//! next layer takes that back, looks the same. Biases and normalisations stay where they are, as in the paper's code.

use super::graph::{Graph, Role};
use crate::rng::Stream;

/// A direction at `params`, laid out like them. A tensor's draws come from the child of `stream` that has its name, so that
/// networks of one architecture share their random part.
pub fn direction(graph: &Graph, params: &[f32], stream: &Stream) -> Vec<f32> {
    let mut direction = vec![0.0; params.len()];
    for tensor in &graph.parameters {
        let filter_of: &dyn Fn(usize) -> usize = match tensor.role {
            Role::ConvWeight { out_channels, .. } => &move |i| i % out_channels,
            Role::LinearWeight { n_in, .. } => &move |i| i / n_in,
            _ => continue,
        };
        let n_filters = tensor.shape()[0];
        let draws = stream.child(&tensor.name).normals(tensor.range.len(), 1.0);
        let weights = &params[tensor.range.clone()];
        let mut squares = vec![(0.0f64, 0.0f64); n_filters];
        for (i, (&draw, &weight)) in draws.iter().zip(weights).enumerate() {
            let (of_draws, of_weights) = &mut squares[filter_of(i)];
            *of_draws += f64::from(draw).powi(2);
            *of_weights += f64::from(weight).powi(2);
        }
        let scales: Vec<f64> = squares.iter().map(|(draws, weights)| (weights / draws.max(1e-20)).sqrt()).collect();
        for (i, (target, &draw)) in direction[tensor.range.clone()].iter_mut().zip(&draws).enumerate() {
            *target = (f64::from(draw) * scales[filter_of(i)]) as f32;
        }
    }
    direction
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Architecture, golden};
    use crate::rng::Streams;

    /// Through PyTorch's layout, in which a filter is a row.
    #[test]
    fn filters_are_as_long_as_the_networks() {
        let (mut network, _) = golden::hashed(Architecture::Resnet8, 1, (8, 8));
        let stream = Streams::new(0, "filters").stream("x");
        let own = network.weights();
        let direction = direction(network.graph(), network.params(), &stream);
        network.params_mut().copy_from_slice(&direction);
        let found = network.weights();
        let mut n_filters = 0;
        for (name, tensor) in &found {
            let length = |values: &[f32]| values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
            if tensor.shape.len() < 2 {
                let is_statistic = name.contains("running");
                assert!(is_statistic || tensor.values.iter().all(|&v| v == 0.0), "{name}");
                continue;
            }
            let width = tensor.values.len() / tensor.shape[0];
            for (filter, own) in tensor.values.chunks(width).zip(own[name].values.chunks(width)) {
                let (found, expected) = (length(filter), length(own));
                assert!((found - expected).abs() < 1e-5 * expected, "{name}: {found} instead of {expected}");
                assert!(filter != own);
                n_filters += 1;
            }
        }
        assert!(n_filters > 200);
    }

    #[test]
    fn draws_do_not_depend_on_the_weights() {
        let (network, _) = golden::hashed(Architecture::Resnet8, 1, (8, 8));
        let stream = Streams::new(0, "filters").stream("x");
        let once = direction(network.graph(), network.params(), &stream);
        let twice: Vec<f32> = network.params().iter().map(|p| 2.0 * p).collect();
        let twice = direction(network.graph(), &twice, &stream);
        assert!(once.iter().zip(&twice).all(|(a, b)| (2.0 * a - b).abs() <= 1e-6 * b.abs()));
    }
}
