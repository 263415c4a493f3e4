//! Numbers that PyTorch gave, for tests; `tests/peers/torch_optim.py` and `torch_purify.py` write them.

use super::graph::{Builder, Conv, ConvInit};
use super::network::{Architecture, Config, Network};
use crate::artifact::model::NamedTensor;
use crate::kernels::Isa;
use crate::kernels::reference::values;
use serde_json::Value;

/// The golden file of optimisers, schedules and losses.
pub(crate) fn torch() -> Value {
    serde_json::from_str(include_str!("../../tests/golden/torch_optim.json")).unwrap()
}

/// The golden file of defences.
pub(crate) fn purify() -> Value {
    serde_json::from_str(include_str!("../../tests/golden/nn/torch_purify.json")).unwrap()
}

/// An array of numbers.
pub(crate) fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

/// The network of ten classes whose weights follow from a hash, and `n` images likewise, as the scripts have them.
pub(crate) fn hashed(architecture: Architecture, n: usize, size: (usize, usize)) -> (Network, Vec<f32>) {
    let config = Config { architecture, n_classes: 10, size, sigma_xt: 0.0, sigma_ty: 0.0 };
    let mut network = Network::new(&config).unwrap();
    let tensors =
        network.weights().into_iter().enumerate().map(|(seed, (name, NamedTensor { shape, values: own }))| {
            let (offset, scale) = match shape.as_slice() {
                [n_out, _, rows, columns] => (0.0, (6.0 / (n_out * rows * columns) as f64).sqrt()),
                [_, n_in] => (0.0, (3.0 / *n_in as f64).sqrt()),
                _ if name.ends_with("running_var") => (1.0, 0.5),
                _ if name.ends_with("running_mean") || name.ends_with("bias") => (0.0, 0.3),
                _ => (1.0, 0.3),
            };
            let values =
                values(seed as u32, own.len()).iter().map(|&v| (offset + scale * f64::from(v)) as f32).collect();
            (name, NamedTensor { shape, values })
        });
    let weights = tensors.collect();
    network.load(&weights).unwrap();
    let images = values(1000, n * size.0 * size.1 * 3).iter().map(|v| 2.0 * v).collect();
    (network, images)
}

/// Two linear layers and a softmax of three classes on images of 4x4: a convolution, its mean, a classifier. Smooth, so
/// that differences are exact.
pub(crate) fn softmax_model() -> Network {
    let config =
        Config { architecture: Architecture::Resnet8, n_classes: 3, size: (4, 4), sigma_xt: 0.0, sigma_ty: 0.0 };
    let mut net = Builder::new(config.size, 0.0, 0.0, ConvInit::TorchDefault);
    let x = net.conv_with_bias(net.input(), "conv", Conv { channels: 5, kernel: 3, stride: 1 });
    let mut network = Network::of_graph(&config, net.classifier(x, "fc", 3), Isa::best());
    let n = network.n_parameters();
    network.params_mut().copy_from_slice(&values(1, n));
    network
}
