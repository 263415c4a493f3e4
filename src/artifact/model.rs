//! A classifier: weights under PyTorch's names and layouts, and what is needed to build the network.

use super::dataset::About;
use super::{Files, Kind, Open, Save, Sink};
use crate::error::{Error, Result};
use crate::nn::Work;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is known of a model besides its weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// The architecture, such as `resnet18`.
    pub architecture: String,
    /// Number of classes.
    pub n_classes: usize,
    /// Rows and columns of the input, in pixels.
    pub size: (usize, usize),
    /// Channel means that inputs are centred by, in [0, 1].
    pub mean: [f64; 3],
    /// Channel standard deviations that inputs are divided by, in [0, 1].
    pub std: [f64; 3],
    /// Standard deviation of the noise after the stem and every block (sigma_xt of the IB paper); 0 for none.
    pub sigma_xt: f64,
    /// Standard deviation of the noise before the classifier (sigma_ty of the IB paper); 0 for none.
    pub sigma_ty: f64,
    /// What it was trained on.
    pub data: About,
    /// How it came to be, oldest first: one line a stage, such as `train/classifier: 120 epochs, sgd`.
    pub history: Vec<String>,
    /// Whether the test images chose among its epochs, so that its test accuracy is no estimate.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub chosen_by_test: bool,
    /// What a reader of its scores must know of its training, a line each: an attacker who took part in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// The defence that made it, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defence: Option<Defence>,
}

/// What a table says of the defence that made a model, besides its scores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Defence {
    /// Its name, the stage's without the family: `fine_tune`.
    pub name: String,
    /// Clean images that it was given.
    pub n_clean: usize,
    /// Those of them that only its thresholds were chosen on.
    pub n_held_out: usize,
    /// Images in its forward and backward passes.
    pub work: Work,
    /// What a reader of its scores must know, a line each: a threshold that was found, a legacy formula.
    pub notes: Vec<String>,
}

/// One named tensor, f32.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// PyTorch's shape: [out, in, k, k] for convolutions, [out, in] for linear layers.
    pub shape: Vec<usize>,
    /// Row-major values.
    pub values: Vec<f32>,
}

/// Weights by PyTorch's names (`layer1.0.conv1.weight`, `bn1.running_mean`, ...).
pub type Weights = BTreeMap<String, NamedTensor>;

/// A model.
#[derive(Clone, Debug)]
pub struct Model {
    /// What is known of it.
    pub info: ModelInfo,
    /// Its weights, parameters and running statistics alike.
    pub weights: Weights,
}

/// Weights as the bytes of a safetensors file.
///
/// # Errors
/// A tensor whose shape and length disagree.
pub fn to_safetensors(weights: &Weights) -> Result<Vec<u8>> {
    let bytes: Vec<(&String, &NamedTensor, Vec<u8>)> =
        weights.iter().map(|(name, t)| (name, t, t.values.iter().flat_map(|v| v.to_le_bytes()).collect())).collect();
    let mut views = Vec::with_capacity(bytes.len());
    for (name, tensor, data) in &bytes {
        views.push((name.as_str(), TensorView::new(Dtype::F32, tensor.shape.clone(), data)?));
    }
    Ok(safetensors::serialize(views, None)?)
}

/// Weights from the bytes of a safetensors file; f32 only, other types are skipped (`num_batches_tracked`).
///
/// # Errors
/// A malformed file.
pub fn from_safetensors(bytes: &[u8]) -> Result<Weights> {
    let tensors = SafeTensors::deserialize(bytes)?;
    let mut weights = Weights::new();
    for (name, view) in tensors.tensors() {
        match view.dtype() {
            Dtype::F32 => {
                let values =
                    view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
                weights.insert(name, NamedTensor { shape: view.shape().to_vec(), values });
            }
            Dtype::I64 => {}
            other => return Err(Error::user(format!("tensor `{name}` is {other:?}, expected F32"))),
        }
    }
    Ok(weights)
}

impl Save for Model {
    const KIND: Kind = Kind::Model;

    fn save(&self, sink: &mut Sink) -> Result<()> {
        sink.json("model.json", &self.info)?;
        sink.bytes("model.safetensors", &to_safetensors(&self.weights)?)
    }
}

impl Open for Model {
    const KIND: Kind = Kind::Model;

    fn open(files: &Files) -> Result<Model> {
        Ok(Model { info: files.json("model.json")?, weights: from_safetensors(&files.map("model.safetensors")?)? })
    }
}
