//! Trains ResNet-8 on images from files and measures the Hessian of its loss on them: our side of
//! `tests/peers/pyhessian_spectrum.py`.
//!
//! `hessian FOLDER SIDE EPOCHS PROBES STEP...` reads `images.f32` ([n, SIDE, SIDE, 3], as the network sees them) and
//! `labels.u8` in FOLDER, trains in batches of 50 (SGD with momentum 0.9, rate 0.05), writes `model.safetensors` there, and
//! prints, for each step of the central differences, one JSON object: eigenvalues by Lanczos' method and by power
//! iteration, trace with its standard error, and nodes and weights of the spectral density. 0 epochs measure the network
//! whose weights are in the folder.

use runner::artifact::model::{from_safetensors, to_safetensors};
use runner::error::{Error, IoExt, Result};
use runner::nn::batch_loss::BatchLoss;
use runner::nn::curvature::{density, hutchinson, power};
use runner::nn::hvp::HessianProduct;
use runner::nn::optim::{self, Optimiser};
use runner::nn::{Architecture, Config, Mode, Network, loss};
use runner::rng::Streams;
use serde_json::json;
use std::path::Path;

const CLASSES: usize = 10;
const BATCH: usize = 50;
const LANCZOS_STEPS: usize = 80;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, side, epochs, probes, steps @ ..] = arguments.as_slice() else {
        return Err(Error::user("expected FOLDER SIDE EPOCHS PROBES STEP..."));
    };
    let (folder, side) = (Path::new(folder), number::<usize>(side)?);
    let read = |name: &str| {
        let path = folder.join(name);
        std::fs::read(&path).at("read", &path)
    };
    let images: Vec<f32> =
        read("images.f32")?.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let labels: Vec<i64> = read("labels.u8")?.into_iter().map(i64::from).collect();
    let streams = Streams::new(0, "hessian");
    let architecture = Architecture::Resnet8;
    let config = Config { architecture, n_classes: CLASSES, size: (side, side), sigma_xt: 0.0, sigma_ty: 0.0 };
    let mut network = Network::new(&config)?;
    match number(epochs)? {
        0 => network.load(&from_safetensors(&read("model.safetensors")?)?)?,
        epochs => {
            network.init(&streams.stream("init"));
            train(&mut network, (&images, &labels), epochs)?;
            let path = folder.join("model.safetensors");
            std::fs::write(&path, to_safetensors(&network.weights())?).at("write", &path)?;
        }
    }
    let mut batch = BatchLoss::new(images, labels)?;
    let value = batch.gradient(&mut network)?;
    batch.hold(&mut network)?;
    let n = network.n_parameters();
    for step in steps {
        let step: f64 = number(step)?;
        let mut differences = HessianProduct::with_step(step);
        let mut product = |vector: &[f32], target: &mut [f32]| {
            differences.of_network(&mut network, vector, target, |network| batch.gradient(network).map(drop))
        };
        let runs = density::runs(&mut product, n, (1, LANCZOS_STEPS), &streams.stream("lanczos"))?;
        let settings = power::Settings { most_steps: 200, tolerance: 1e-5 };
        let pairs = power::largest(&mut product, n, 2, settings, &streams.stream("power"))?;
        let trace = hutchinson::trace(&mut product, n, number(probes)?, &streams.stream("trace"))?;
        let power: Vec<f64> = pairs.iter().map(|pair| pair.value).collect();
        let nodes: Vec<(f64, f64)> = runs[0].values().iter().copied().zip(runs[0].weights()).collect();
        let object = json!({
            "step": step, "loss": value.loss, "n_hits": value.n_hits, "lanczos": &runs[0].values()[..5],
            "residual": runs[0].residual(0), "power": power, "trace": trace.mean, "trace_error": trace.error,
            "nodes": nodes,
        });
        println!("{object}");
    }
    Ok(())
}

fn train(network: &mut Network, (images, labels): (&[f32], &[i64]), epochs: usize) -> Result<()> {
    let sgd = optim::Config { kind: optim::Kind::Sgd, momentum: 0.9, nesterov: false, weight_decay: 0.0 };
    let mut optimiser = Optimiser::new(sgd, network.n_parameters());
    let image = images.len() / labels.len();
    for _ in 0..epochs {
        for (images, labels) in images.chunks(BATCH * image).zip(labels.chunks(BATCH)) {
            let logits = network.forward(images, labels.len(), Mode::Train)?; // [n, K]
            let mut gradient = vec![0.0; logits.len()];
            loss::cross_entropy(logits, labels, CLASSES, 0.0, &mut gradient)?;
            network.backward(&gradient)?;
            let (parameters, gradients) = network.params_and_grads();
            optimiser.step(parameters, gradients, 0.05);
        }
    }
    Ok(())
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T> {
    text.parse().map_err(|_| Error::user(format!("expected a number, got `{text}`")))
}
