//! Layers by their singular values: `W = U diag(max(0, s)) V'`, of which only s is trained.
//!
//! Fast FIP (Karim et al., section on efficient purification; the released code's `svd_layers.py`): every convolution,
//! as a matrix of output channels by input channels and taps, and every linear layer. Biases and normalisation stay as
//! they are. The code trains a shift of s that starts at 0; here the values are s itself, which is the same without
//! weight decay.

use super::coordinates::Coordinates;
use super::graph::{Graph, Role};
use crate::embedding::eigen;
use crate::error::Result;
use crate::kernels::product::{Matrix, Target, product};
use rayon::prelude::*;
use std::ops::Range;

/// A network's layers by their singular values.
#[derive(Clone, Debug)]
pub struct Spectral {
    layers: Vec<Layer>,
    /// Layer after layer, each in descending order at first.
    values: Vec<f32>,
}

#[derive(Clone, Debug)]
struct Layer {
    /// In the parameters.
    weight: Range<usize>,
    /// In the values.
    singular: Range<usize>,
    /// Columns of the weight as it is stored: output channels of a convolution ([fan][out]), inputs of a linear layer.
    columns: usize,
    /// Singular vectors of its rows, [rank, rows].
    left: Vec<f32>,
    /// Singular vectors of its columns, [rank, columns].
    right: Vec<f32>,
}

impl Layer {
    fn rank(&self) -> usize {
        self.singular.len()
    }

    fn rows(&self) -> usize {
        self.weight.len() / self.columns
    }
}

impl Spectral {
    /// Decomposes the convolutions and linear layers of `params`, in f64.
    ///
    /// # Errors
    /// Weights that are not finite.
    pub fn new(graph: &Graph, params: &[f32]) -> Result<Spectral> {
        let columns = |role| match role {
            Role::ConvWeight { out_channels, .. } => Some(out_channels),
            Role::LinearWeight { n_in, .. } => Some(n_in),
            _ => None,
        };
        let matrices: Vec<_> =
            graph.parameters.iter().filter_map(|t| Some((t.range.clone(), columns(t.role)?))).collect();
        let parts: Vec<Parts> = matrices
            .par_iter()
            .map(|(range, columns)| decompose(&params[range.clone()], *columns))
            .collect::<Result<_>>()?;
        let mut values = Vec::new();
        let mut layers = Vec::new();
        for ((weight, columns), Parts { singular, left, right }) in matrices.into_iter().zip(parts) {
            let start = values.len();
            values.extend(singular);
            layers.push(Layer { weight, singular: start..values.len(), columns, left, right });
        }
        Ok(Spectral { layers, values })
    }
}

impl Coordinates for Spectral {
    fn values(&self) -> &[f32] {
        &self.values
    }

    fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    fn write(&self, params: &mut [f32]) {
        for layer in &self.layers {
            let (rank, rows, columns) = (layer.rank(), layer.rows(), layer.columns);
            let mut scaled = layer.right.clone();
            for (row, s) in scaled.chunks_exact_mut(columns).zip(&self.values[layer.singular.clone()]) {
                row.iter_mut().for_each(|v| *v *= s.max(0.0));
            }
            let (left, scaled) = (Matrix::new(&layer.left, rank, rows).t(), Matrix::new(&scaled, rank, columns));
            product(&mut params[layer.weight.clone()], Target::Fresh, left, scaled);
        }
    }

    fn pull_back(&self, grads: &[f32], target: &mut [f32]) {
        for layer in &self.layers {
            let (rank, rows, columns) = (layer.rank(), layer.rows(), layer.columns);
            let gradient = Matrix::new(&grads[layer.weight.clone()], rows, columns);
            let mut along = vec![0.0; rank * columns];
            product(&mut along, Target::Fresh, Matrix::new(&layer.left, rank, rows), gradient);
            let pairs = along.chunks_exact(columns).zip(layer.right.chunks_exact(columns));
            let targets = target[layer.singular.clone()].iter_mut().zip(&self.values[layer.singular.clone()]);
            for ((target, &s), (along, right)) in targets.zip(pairs) {
                let slope: f64 = along.iter().zip(right).map(|(&a, &r)| f64::from(a) * f64::from(r)).sum();
                *target = if s > 0.0 { slope as f32 } else { 0.0 };
            }
        }
    }
}

/// A singular value decomposition of rank min(rows, columns).
struct Parts {
    singular: Vec<f32>,
    /// [rank, rows]
    left: Vec<f32>,
    /// [rank, columns]
    right: Vec<f32>,
}

/// Of `weight` [rows, columns]: the eigenvectors of the smaller of its two Gram matrices, and the images of the weight
/// under them. The product of the parts is the weight however close two singular values lie.
fn decompose(weight: &[f32], columns: usize) -> Result<Parts> {
    let rows = weight.len() / columns;
    let wide: Vec<f64> = weight.iter().map(|&w| f64::from(w)).collect();
    let matrix = Matrix::new(&wide, rows, columns);
    let is_flat = rows <= columns;
    // Over its short side: [short, long].
    let (short, long, matrix) = if is_flat { (rows, columns, matrix) } else { (columns, rows, matrix.t()) };
    let mut gram = vec![0.0; short * short];
    product(&mut gram, Target::Fresh, matrix, matrix.t());
    let vectors = eigen::symmetric(gram, short)?.vectors;
    let mut images = vec![0.0; short * long];
    product(&mut images, Target::Fresh, Matrix::new(&vectors, short, short), matrix);
    let mut singular = Vec::with_capacity(short);
    for image in images.chunks_exact_mut(long) {
        let length = image.iter().map(|v| v * v).sum::<f64>().sqrt();
        singular.push(length as f32);
        if length > 0.0 {
            image.iter_mut().for_each(|v| *v /= length);
        }
    }
    let narrow = |values: Vec<f64>| values.into_iter().map(|v| v as f32).collect();
    let (left, right) = if is_flat { (vectors, images) } else { (images, vectors) };
    Ok(Parts { singular, left: narrow(left), right: narrow(right) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::reference::values;
    use crate::nn::{Architecture, Mode, golden};

    #[test]
    fn layers_reproduce_the_network() {
        for (architecture, size) in [(Architecture::Resnet8, (8, 8)), (Architecture::Resnet20, (16, 16))] {
            let (mut network, images) = golden::hashed(architecture, 3, size);
            let before = network.forward(&images, 3, Mode::Eval).unwrap().to_vec();
            let spectral = Spectral::new(network.graph(), network.params()).unwrap();
            spectral.write(network.params_mut());
            let after = network.forward(&images, 3, Mode::Eval).unwrap();
            for (after, before) in after.iter().zip(&before) {
                assert!((after - before).abs() < 1e-5, "{}: {after} instead of {before}", architecture.name());
            }
        }
    }

    /// NumPy's singular values, layer by layer: the largest, the smallest, and their sum.
    #[test]
    fn singular_values_are_those_of_numpy() {
        let (network, _) = golden::hashed(Architecture::Resnet8, 1, (8, 8));
        let spectral = Spectral::new(network.graph(), network.params()).unwrap();
        let names = network.graph().parameters.iter().filter(|t| matches!(t.shape().len(), 2 | 4)).map(|t| &t.name);
        for (layer, name) in spectral.layers.iter().zip(names) {
            let own = &spectral.values[layer.singular.clone()];
            let ours = [own[0], own[own.len() - 1], own.iter().sum()];
            let theirs = golden::floats(&golden::purify()["singular"][name]);
            for (ours, theirs) in ours.iter().zip(theirs) {
                assert!(
                    (f64::from(*ours) - theirs).abs() < 1e-4 * theirs.max(1.0),
                    "{name}: {ours} instead of {theirs}"
                );
            }
        }
    }

    /// Invariant 11: on `sum of hash * W`, whose gradient with respect to the parameters is the hash.
    #[test]
    fn the_gradient_is_pulled_back_by_the_chain_rule() {
        let (network, _) = golden::hashed(Architecture::Resnet8, 1, (8, 8));
        let mut spectral = Spectral::new(network.graph(), network.params()).unwrap();
        spectral.values_mut()[2] = -0.3;
        let hash = values(3, network.n_parameters());
        let mut gradient = vec![f32::NAN; spectral.values().len()];
        spectral.pull_back(&hash, &mut gradient);
        let mut loss = |i: usize, by: f32| {
            spectral.values_mut()[i] += by;
            let mut params = network.params().to_vec();
            spectral.write(&mut params);
            spectral.values_mut()[i] -= by;
            params.iter().zip(&hash).map(|(&p, &h)| f64::from(p) * f64::from(h)).sum::<f64>()
        };
        for i in (0..gradient.len()).step_by(7).chain([2]) {
            let slope = (loss(i, 0.0625) - loss(i, -0.0625)) * 8.0;
            assert!((slope - f64::from(gradient[i])).abs() < 1e-3, "{i}: slope {slope}, gradient {}", gradient[i]);
        }
        assert_eq!(gradient[2], 0.0);
    }
}
