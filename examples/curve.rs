//! Trains ResNet-20 on images from files and writes all that another library needs to do the same, and what came out:
//! our side of `tests/peers/torch_curve.py`.
//!
//! `curve FOLDER EPOCHS BATCH RATE START` reads `train.u8` and `test.u8` ([n, 32, 32, 3]), `train_labels.u8` and
//! `test_labels.u8` in FOLDER, and writes there `initial.safetensors`, `order.u32` (the rows of each epoch,
//! [epochs, n]), `losses.f64` (the mean loss of every step) and `accuracies.f64` (on the test images, in percent, after
//! every epoch). SGD with momentum 0.9 and weight decay 5e-4; no augmentation; the rate stays as it is.
//! `before_K.safetensors` has the weights before step K, for the first 20 steps and the one after them.
//!
//! Start 0 has the weights of seed 0; in the starts 1, 2, ... each of them is moved up or down by one part in 2^23, at
//! random: what rounding alone does to a training is seen in how these differ.

use runner::artifact::Split;
use runner::artifact::model::to_safetensors;
use runner::error::{Error, IoExt, Result};
use runner::nn::augment::{self, Normalise};
use runner::nn::optim::{self, Optimiser};
use runner::nn::{Architecture, Config, Mode, Network, loss, predict};
use runner::rng::Streams;
use std::path::Path;

const CLASSES: usize = 10;

/// Steps that are compared one by one.
const FIRST: usize = 20;

/// Mean and standard deviation of CIFAR-10's channels, as recipes quote them; `torch_curve.py` has the same.
const MEAN: [f64; 3] = [0.4914, 0.4822, 0.4465];
const STD: [f64; 3] = [0.2470, 0.2435, 0.2616];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, epochs, batch, rate, start] = arguments.as_slice() else {
        return Err(Error::user("expected FOLDER EPOCHS BATCH RATE START"));
    };
    let (folder, epochs, batch, rate) = (Path::new(folder), number(epochs)?, number(batch)?, number(rate)?);
    let start: u64 = number(start)?;
    let (train, test) = (split(folder, "train")?, split(folder, "test")?);
    let normalise = Normalise::new(MEAN, STD)?;
    let streams = Streams::new(0, "curve");
    let architecture = Architecture::Resnet20;
    let config = Config { architecture, n_classes: CLASSES, size: (32, 32), sigma_xt: 0.0, sigma_ty: 0.0 };
    let mut network = Network::new(&config)?;
    network.init(&streams.stream("init"));
    if start > 0 {
        let mut signs = streams.stream("start").at(start);
        for weight in network.params_and_grads().0 {
            *weight *= if signs.chance(0.5) { 1.0 + f32::EPSILON } else { 1.0 - f32::EPSILON };
        }
    }
    write(folder, "initial.safetensors", to_safetensors(&network.weights())?)?;
    let order = streams.stream("order");
    let orders: Vec<Vec<usize>> = (0..epochs).map(|epoch| order.at(epoch as u64).permutation(train.len())).collect();
    write(folder, "order.u32", orders.iter().flatten().flat_map(|&row| (row as u32).to_le_bytes()).collect())?;

    let sgd = optim::Config { kind: optim::Kind::Sgd, momentum: 0.9, nesterov: false, weight_decay: 5e-4 };
    let mut optimiser = Optimiser::new(sgd, network.n_parameters());
    let (mut losses, mut accuracies) = (Vec::new(), Vec::new());
    let mut images = vec![0.0; batch * train.image_bytes()];
    for order in &orders {
        for rows in order.chunks(batch) {
            if losses.len() <= FIRST {
                let weights = to_safetensors(&network.weights())?;
                write(folder, &format!("before_{}.safetensors", losses.len()), weights)?;
            }
            let images = &mut images[..rows.len() * train.image_bytes()]; // [n, H, W, 3]
            augment::plain(&train, rows, &normalise, images)?;
            let labels: Vec<i64> = rows.iter().map(|&row| train.label[row]).collect();
            let logits = network.forward(images, rows.len(), Mode::Train)?; // [n, K]
            let mut gradient = vec![0.0; logits.len()];
            let each = loss::cross_entropy(logits, &labels, CLASSES, 0.0, &mut gradient)?; // [n]
            losses.push(each.iter().map(|&loss| f64::from(loss)).sum::<f64>() / each.len() as f64);
            network.backward(&gradient)?;
            let (parameters, gradients) = network.params_and_grads();
            optimiser.step(parameters, gradients, rate);
        }
        let predicted = predict::classes(&predict::logits(&mut network, &test, &normalise)?, CLASSES);
        let right = predicted.iter().zip(&test.label).filter(|(predicted, label)| predicted == label).count();
        accuracies.push(100.0 * right as f64 / test.len() as f64);
    }
    let bytes = |values: &[f64]| values.iter().flat_map(|value| value.to_le_bytes()).collect();
    write(folder, "losses.f64", bytes(&losses))?;
    write(folder, "accuracies.f64", bytes(&accuracies))
}

fn split(folder: &Path, name: &str) -> Result<Split> {
    let read = |file: String| {
        let path = folder.join(file);
        std::fs::read(&path).at("read", &path)
    };
    let labels = read(format!("{name}_labels.u8"))?.into_iter().map(i64::from).collect();
    Split::clean((32, 32), read(format!("{name}.u8"))?, labels)
}

fn write(folder: &Path, name: &str, bytes: Vec<u8>) -> Result<()> {
    let path = folder.join(name);
    std::fs::write(&path, bytes).at("write", &path)
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T> {
    text.parse().map_err(|_| Error::user(format!("expected a number, got `{text}`")))
}
