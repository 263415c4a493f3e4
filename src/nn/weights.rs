//! Weights in and out, under PyTorch's names and layouts.

use super::graph::{Graph, Role, Tensor};
use crate::artifact::model::{NamedTensor, Weights};
use crate::error::{Error, Result};

/// Copies `weights` into the flat buffers.
///
/// # Errors
/// Tensors that are missing, that the network does not have, or whose shape differs; all are named, and nothing is
/// copied.
pub fn load(graph: &Graph, weights: &Weights, parameters: &mut [f32], statistics: &mut [f32]) -> Result<()> {
    let known = || graph.parameters.iter().chain(&graph.statistics);
    let mut problems = Vec::new();
    for tensor in known() {
        match weights.get(&tensor.name) {
            None => problems.push(format!("`{}` is missing", tensor.name)),
            Some(found) if found.shape != tensor.shape() => {
                problems.push(format!("`{}` has shape {:?}, expected {:?}", tensor.name, found.shape, tensor.shape()));
            }
            Some(found) if found.values.len() != tensor.range.len() => {
                let (n, expected) = (found.values.len(), tensor.range.len());
                problems.push(format!("`{}` has {n} values, expected {expected}", tensor.name));
            }
            Some(_) => {}
        }
    }
    for name in weights.keys() {
        if !known().any(|tensor| tensor.name == *name) {
            problems.push(format!("`{name}` is not part of the network"));
        }
    }
    if !problems.is_empty() {
        return Err(mismatch(&problems));
    }
    for (tensors, buffer) in [(&graph.parameters, parameters), (&graph.statistics, statistics)] {
        for tensor in tensors {
            if let Some(found) = weights.get(&tensor.name) {
                let values = &mut buffer[tensor.range.clone()];
                transpose(tensor, |torch, own| values[own] = found.values[torch]);
            }
        }
    }
    Ok(())
}

fn mismatch(problems: &[String]) -> Error {
    /// A wrong architecture has hundreds; the first ones tell which.
    const SHOWN: usize = 8;
    let mut text = problems[..problems.len().min(SHOWN)].join("; ");
    if problems.len() > SHOWN {
        text += &format!("; and {} more", problems.len() - SHOWN);
    }
    Error::user(format!("the weights do not fit the network: {text}"))
        .hint("check that architecture and number of classes are those that the weights were trained with")
}

/// The flat buffers as named tensors.
pub fn save(graph: &Graph, parameters: &[f32], statistics: &[f32]) -> Weights {
    let mut weights = Weights::new();
    for (tensors, buffer) in [(&graph.parameters, parameters), (&graph.statistics, statistics)] {
        for tensor in tensors {
            let own_values = &buffer[tensor.range.clone()];
            let mut values = vec![0.0; own_values.len()];
            transpose(tensor, |torch, own| values[torch] = own_values[own]);
            weights.insert(tensor.name.clone(), NamedTensor { shape: tensor.shape(), values });
        }
    }
    weights
}

/// Calls `pair` with every element's place in PyTorch's layout and in ours.
fn transpose(tensor: &Tensor, mut pair: impl FnMut(usize, usize)) {
    let Role::ConvWeight { kernel, in_channels, out_channels } = tensor.role else {
        (0..tensor.range.len()).for_each(|i| pair(i, i));
        return;
    };
    let n_taps = kernel * kernel;
    for tap in 0..n_taps {
        for ci in 0..in_channels {
            for co in 0..out_channels {
                pair((co * in_channels + ci) * n_taps + tap, (tap * in_channels + ci) * out_channels + co);
            }
        }
    }
}
