//! Networks against PyTorch's numbers (`tests/peers/torch_models.py golden`, float64).
//!
//! Weights and images follow from a hash, so the golden file holds results alone: logits, layers, gradients, running
//! statistics. Tensors are compared by norm and by their product with hashed values.

#![allow(clippy::unwrap_used)]

use runner::artifact::model::{NamedTensor, Weights};
use runner::nn::{Architecture, Config, Mode, Network};
use serde_json::Value;

const GOLDEN: &str = include_str!("../golden/nn/torch.json");

/// The same hash as `values` in the script.
fn values(seed: u32, n: usize) -> Vec<f64> {
    let mix = |i: u32| {
        let mut h = i.wrapping_mul(0x9e37_79b9) ^ seed.wrapping_mul(0x85eb_ca6b);
        h = (h ^ (h >> 16)).wrapping_mul(0x7feb_352d);
        h = (h ^ (h >> 15)).wrapping_mul(0x846c_a68b);
        (h ^ (h >> 16)) >> 9
    };
    (0..n as u32).map(|i| (f64::from(mix(i)) + 0.5) / 4_194_304.0 - 1.0).collect()
}

fn hashed_weights(network: &Network) -> Weights {
    let named = network.weights().into_iter().enumerate();
    named
        .map(|(seed, (name, tensor))| {
            let shape = tensor.shape;
            let (offset, scale) = match shape.as_slice() {
                [n_out, _, rows, columns] => (0.0, (6.0 / (n_out * rows * columns) as f64).sqrt()),
                [_, n_in] => (0.0, (3.0 / *n_in as f64).sqrt()),
                _ if name.ends_with("running_var") => (1.0, 0.5),
                _ if name.ends_with("running_mean") || name.ends_with("bias") => (0.0, 0.3),
                _ => (1.0, 0.3),
            };
            let values = values(seed as u32, tensor.values.len()).iter().map(|v| (offset + scale * v) as f32).collect();
            (name, NamedTensor { shape, values })
        })
        .collect()
}

fn summary(tensor: &[f32], seed: u32) -> [f64; 2] {
    let hash = values(seed, tensor.len());
    let norm = tensor.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    [norm, tensor.iter().zip(&hash).map(|(&v, h)| f64::from(v) * h).sum()]
}

/// Both numbers agree to `tolerance` of the expected norm, or of `floor` where that is larger.
#[track_caller]
fn check_summary(what: &str, got: [f64; 2], expected: &Value, tolerance: f64, floor: f64) {
    let norm = expected[0].as_f64().unwrap().max(floor);
    for (got, expected) in got.into_iter().zip(expected.as_array().unwrap()) {
        let difference = (got - expected.as_f64().unwrap()).abs();
        assert!(difference <= tolerance * norm, "{what}: got {got}, expected {expected}, off by {difference:.1e}");
    }
}

fn check_pass(network: &mut Network, case: &Value, mode: Mode, expected: &Value) {
    let n = case["n"].as_u64().unwrap() as usize;
    let size = network.config().size;
    let what = format!("{} {size:?} {mode:?}", network.config().architecture.name());
    let images: Vec<f32> = values(1000, n * size.0 * size.1 * 3).iter().map(|v| (2.0 * v) as f32).collect();
    let logits = network.forward(&images, n, mode).unwrap().to_vec();
    let expected_logits = expected["logits"].as_array().unwrap();
    assert_eq!(logits.len(), expected_logits.len());
    for (i, (got, expected)) in logits.iter().zip(expected_logits).enumerate() {
        let difference = (f64::from(*got) - expected.as_f64().unwrap()).abs();
        assert!(difference < 1e-4, "{what}: logit {i} is {got}, expected {expected}");
    }
    for (layer, expected) in expected["layers"].as_object().unwrap() {
        let (_, representation) = network.representation(layer).unwrap();
        check_summary(&format!("{what} {layer}"), summary(&representation, 3000), expected, 1e-5, 0.0);
    }
    let on_logits: Vec<f32> = values(1001, logits.len()).iter().map(|&v| v as f32).collect();
    network.backward(&on_logits).unwrap();
    let input_gradient = summary(network.input_grad().unwrap(), 4000);
    check_summary(&format!("{what} images"), input_gradient, &expected["input_gradient"], GRADIENTS, 0.0);
    // Gradients in PyTorch's layout: as the weights of a network that has them as parameters.
    let mut carrier = Network::new(network.config()).unwrap();
    carrier.params_mut().copy_from_slice(network.grads());
    carrier.buffers_mut().copy_from_slice(network.buffers());
    let tensors = carrier.weights();
    let expected = expected["gradients_and_statistics"].as_object().unwrap();
    assert_eq!(tensors.len(), expected.len());
    for (seed, (name, tensor)) in tensors.iter().enumerate() {
        let got = summary(&tensor.values, 2000 + seed as u32);
        let tolerance = if name.contains("running") { 1e-5 } else { GRADIENTS };
        // A bias before a batch normalisation has no gradient but rounding errors in training.
        check_summary(&format!("{what} {name}"), got, &expected[name], tolerance, 0.1);
    }
}

/// A ReLU whose input is within rounding of 0 switches a whole gradient path: f32 against f64 cannot be closer.
const GRADIENTS: f64 = 1e-3;

#[test]
fn networks_agree_with_pytorch() {
    let cases: Vec<Value> = serde_json::from_str(GOLDEN).unwrap();
    assert_eq!(cases.len(), 7);
    for case in &cases {
        let side = |i: usize| case["size"][i].as_u64().unwrap() as usize;
        let config = Config {
            architecture: Architecture::find(case["architecture"].as_str().unwrap()).unwrap(),
            n_classes: 10,
            size: (side(0), side(1)),
            sigma_xt: 0.0,
            sigma_ty: 0.0,
        };
        let mut network = Network::new(&config).unwrap();
        network.load(&hashed_weights(&network)).unwrap();
        network.want_input_grad(true);
        check_pass(&mut network, case, Mode::Eval, &case["eval"]);
        check_pass(&mut network, case, Mode::Train, &case["train"]);
    }
}
