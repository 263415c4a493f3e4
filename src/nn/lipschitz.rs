//! How much each channel can amplify: upper bounds of channels' Lipschitz constants.
//!
//! Zheng et al., "Data-free Backdoor Removal based on Channel Lipschitzness" (ECCV 2022, arXiv:2208.03111), section 3.3:
//! for a convolution followed by a normalisation, channel k's bound is the largest singular value of its kernel as a
//! matrix of input channels by taps, times `|gamma_k| / sqrt(variance_k + epsilon)`.
//!
//! A normalisation belongs to the convolution that feeds it, by the graph. The released code pairs modules in the order
//! of their definition, which joins the first normalisation of most pre-activation blocks, fed by a sum, with the
//! convolution that happens to stand before it. Differs from the paper: epsilon, as the normalisation has it.

use super::graph::{Graph, Op};
use crate::embedding::eigen;
use crate::error::Result;
use std::ops::Range;

/// Batch normalisation's, added to the variance.
const EPSILON: f64 = 1e-5;

/// The channels of a convolution and its normalisation.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Where the normalisation's scale lies in the parameters.
    pub gamma: Range<usize>,
    /// Where its shift lies.
    pub beta: Range<usize>,
    /// A bound for every channel.
    pub bounds: Vec<f64>,
}

/// Bounds for every normalisation that a convolution feeds, in the order of the graph.
///
/// # Errors
/// Weights that are not finite.
pub fn bounds(graph: &Graph, params: &[f32], statistics: &[f32]) -> Result<Vec<Bounds>> {
    let mut found = Vec::new();
    for node in &graph.nodes {
        let Op::BatchNorm { gamma, beta, variance, .. } = &node.op else { continue };
        let mut source = node.inputs[0];
        // Noise adds to what it passes on, and amplifies nothing.
        while let Op::Noise { .. } = graph.nodes[source].op {
            source = graph.nodes[source].inputs[0];
        }
        let Op::Conv { geometry, weight, .. } = &graph.nodes[source].op else { continue };
        let (n_taps, n_in, n_out) = (geometry.n_taps(), geometry.in_channels, geometry.out_channels);
        let weights = &params[weight.clone()];
        let mut bounds = Vec::with_capacity(n_out);
        for k in 0..n_out {
            let at = |tap: usize, i: usize| f64::from(weights[(tap * n_in + i) * n_out + k]);
            let mut gram = vec![0.0; n_taps * n_taps];
            for (a, row) in gram.chunks_exact_mut(n_taps).enumerate() {
                for (b, value) in row.iter_mut().enumerate() {
                    *value = (0..n_in).map(|i| at(a, i) * at(b, i)).sum();
                }
            }
            let largest = eigen::symmetric(gram, n_taps)?.values.first().copied().unwrap_or(0.0).max(0.0).sqrt();
            let scale = f64::from(params[gamma.start + k]).abs();
            bounds.push(largest * scale / (f64::from(statistics[variance.start + k]) + EPSILON).sqrt());
        }
        found.push(Bounds { gamma: gamma.clone(), beta: beta.clone(), bounds });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Architecture, golden};

    #[test]
    fn pairs_and_bounds_are_those_of_pytorch() {
        for (architecture, n_pairs) in [(Architecture::Resnet8, 9), (Architecture::PreactResnet18, 9)] {
            let (network, _) = golden::hashed(architecture, 1, (16, 16));
            let found = bounds(network.graph(), network.params(), network.buffers()).unwrap();
            let expected = &golden::purify()["clp"][architecture.name()];
            assert_eq!((found.len(), expected.as_object().unwrap().len()), (n_pairs, n_pairs));
            for Bounds { gamma, bounds, .. } in found {
                let tensor = network.graph().parameters.iter().find(|t| t.range == gamma).unwrap();
                let theirs = golden::floats(&expected[tensor.name.strip_suffix(".weight").unwrap()]);
                assert_eq!(bounds.len(), theirs.len());
                for (ours, theirs) in bounds.iter().zip(theirs) {
                    assert!((ours - theirs).abs() < 1e-5 * theirs.max(1.0), "{}: {ours} and {theirs}", tensor.name);
                }
            }
        }
    }
}
