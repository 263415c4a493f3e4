//! A network and its tape (interface only in this commit).

use crate::artifact::model::Weights;
use crate::error::{Error, Result};
use crate::rng::Stream;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which statistics batch normalisation uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Statistics of the batch; the running ones are updated.
    Train,
    /// Running statistics, left as they are.
    Eval,
}

/// The architectures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Architecture {
    /// ResNet-8 of widths 16, 32, 64.
    Resnet8,
    /// ResNet-18 with a 3x3 stem.
    Resnet18,
    /// ResNet-20 of widths 16, 32, 64.
    Resnet20,
    /// Pre-activation ResNet-18 with a 3x3 stem.
    PreactResnet18,
    /// VGG-16 with batch normalisation and one linear layer.
    #[serde(rename = "vgg16-bn")]
    Vgg16Bn,
}

/// What is needed to build a network.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The architecture.
    pub architecture: Architecture,
    /// Number of classes.
    pub n_classes: usize,
    /// Rows and columns of the input, in pixels.
    pub size: (usize, usize),
    /// Standard deviation of the noise after the stem and every block; 0 for none.
    pub sigma_xt: f64,
    /// Standard deviation of the noise before the classifier; 0 for none.
    pub sigma_ty: f64,
}

/// A gradient that enters the network at a layer.
pub enum LayerGradient<'a> {
    /// On the global average of the layer, [n, C].
    Pooled(&'a [f32]),
    /// On every position of the layer, [n, H, W, C].
    Map(&'a [f32]),
}

/// A network.
pub struct Network {}

fn later<T>() -> Result<T> {
    Err(Error::stage("interface only"))
}

#[allow(missing_docs)]
#[rustfmt::skip]
impl Network {
    pub fn new(_config: &Config) -> Result<Network> { later() }
    pub fn config(&self) -> &Config { unreachable!() }
    pub fn init(&mut self, _stream: &Stream) {}
    pub fn load(&mut self, _weights: &Weights) -> Result<()> { later() }
    pub fn weights(&self) -> Weights { Weights::new() }
    pub fn n_parameters(&self) -> usize { 0 }
    pub fn noise(&mut self, _noise: Option<Stream>) {}
    pub fn set_step(&mut self, _step: u64) {}
    pub fn forward(&mut self, _images: &[f32], _n: usize, _mode: Mode) -> Result<&[f32]> { later() }
    pub fn backward(&mut self, _grad_logits: &[f32]) -> Result<()> { later() }
    pub fn backward_from(&mut self, _layers: &[(&str, LayerGradient)], _grad_logits: Option<&[f32]>) -> Result<()> { later() }
    pub fn want_input_grad(&mut self, _want: bool) {}
    pub fn input_grad(&self) -> Result<&[f32]> { later() }
    pub fn params(&self) -> &[f32] { &[] }
    pub fn params_mut(&mut self) -> &mut [f32] { &mut [] }
    pub fn grads(&self) -> &[f32] { &[] }
    /// Parameters and gradients together, for an optimiser step.
    pub fn params_and_grads(&mut self) -> (&mut [f32], &[f32]) { (&mut [], &[]) }
    pub fn buffers(&self) -> &[f32] { &[] }
    pub fn buffers_mut(&mut self) -> &mut [f32] { &mut [] }
    pub fn layer_names(&self) -> Vec<String> { Vec::new() }
    pub fn representation(&self, _layer: &str) -> Result<(usize, Vec<f32>)> { later() }
}
