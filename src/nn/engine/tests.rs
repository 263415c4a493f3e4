//! Networks and trainings on a GPU against the CPU: emulated everywhere, and real where there is one.

use super::buffers::check_memory;
use super::*;
use crate::artifact::Split;
use crate::kernels::Isa;
use crate::kernels::cuda::tests::gpus;
use crate::kernels::reference::values;
use crate::nn::augment::{self, Augment, Normalise};
use crate::nn::graph::{Builder, Conv, ConvInit, Sigma};
use crate::nn::optim::{self, Kind, Optimiser};
use crate::nn::{Architecture, Config, Network, loss, predict};
use crate::rng::Streams;

fn stream(name: &str) -> Stream {
    Streams::new(3, "test").stream(name)
}

fn network(config: &Config) -> Network {
    let mut network = Network::new(config).unwrap();
    network.init(&stream("init"));
    network
}

/// A small network with the operations that ResNets lack: biases, a pool over odd sizes, a bare sum and a bare ReLU.
fn assorted(config: &Config) -> Network {
    let mut net = Builder::new(config.size, config.sigma_xt, config.sigma_ty, ConvInit::TorchDefault);
    let conv = Conv { channels: 16, kernel: 3, stride: 1 };
    let x = net.conv_with_bias(net.input(), "a", conv);
    let x = net.norm_relu(x, "b");
    let x = net.max_pool(x);
    let x = net.noise(x, Sigma::Xt);
    let active = net.norm_relu(x, "c");
    let inner = net.conv_with_bias(active, "d", conv);
    let x = net.add(inner, x);
    net.layer("sum", x);
    let x = net.relu(x);
    let doubled = net.add(x, x);
    net.layer("doubled", doubled);
    let graph = net.classifier(doubled, "e", config.n_classes);
    let mut network = Network::of_graph(config, graph, Isa::best());
    network.init(&stream("init"));
    network
}

/// ||a - b|| / ||b||.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(a - b)));
    difference / norm(&mut b.iter().map(|&b| f64::from(b))).max(1e-12)
}

#[track_caller]
fn check(what: &str, got: &[f32], expected: &[f32], tolerance: f64) {
    let distance = distance(got, expected);
    assert!(distance < tolerance, "{what}: relative distance {distance:.2e}, allowed {tolerance:.0e}");
}

/// One forward and backward pass with losses on the logits and on a layer, noise on.
fn check_network(
    gpu: &Arc<Gpu>,
    config: &Config,
    make: fn(&Config) -> Network,
    (mode, layer): (Mode, &str),
    precision: Precision,
) {
    const N: usize = 3;
    let tolerance = match precision {
        Precision::F32 => 1e-4,
        Precision::Tf32 => 3e-2,
        Precision::Bf16 => 1e-1,
    };
    let what = |of: &str| format!("{of} at {layer} {:?} {mode:?} {} on {}", config.size, precision.name(), gpu.name());
    let (mut cpu, mut device) = (make(config), make(config));
    device.move_to(gpu, precision).unwrap();
    let images = values(1, N * config.size.0 * config.size.1 * 3);
    let (on_logits, on_layer) = (values(7, N * config.n_classes), values(8, N * 512));
    let mut logits = Vec::new();
    for network in [&mut cpu, &mut device] {
        network.want_input_grad(true);
        network.noise(Some(stream("noise")));
        network.set_step(5);
        logits.push(network.forward(&images, N, mode).unwrap().to_vec());
        let (channels, _) = network.representation(layer).unwrap();
        let entry = (layer, LayerGradient::Pooled(&on_layer[..N * channels]));
        network.backward_from(&[entry], Some(&on_logits)).unwrap();
    }
    check(&what("logits"), &logits[1], &logits[0], tolerance);
    check(&what("statistics"), device.buffers(), cpu.buffers(), tolerance);
    check(
        &what("representation"),
        &device.representation(layer).unwrap().1,
        &cpu.representation(layer).unwrap().1,
        tolerance,
    );
    check(&what("feature map"), device.feature_map(layer).unwrap().1, cpu.feature_map(layer).unwrap().1, tolerance);
    check(&what("gradient"), device.grads(), cpu.grads(), 2.0 * tolerance);
    check(&what("images' gradient"), device.input_grad().unwrap(), cpu.input_grad().unwrap(), 2.0 * tolerance);
}

/// Values and gradients far from the point whose gates are held.
#[test]
fn cuda_networks_hold_their_gates() {
    const N: usize = 3;
    for gpu in gpus() {
        for make in [network as fn(&Config) -> Network, assorted] {
            let config = config(Architecture::Resnet8, (9, 7), 0.0);
            let (images, on_logits) = (values(1, N * 9 * 7 * 3), values(7, N * config.n_classes));
            let results = [false, true].map(|on_gpu| {
                let mut network = make(&config);
                if on_gpu {
                    network.move_to(&gpu, Precision::F32).unwrap();
                }
                network.forward(&images, N, Mode::Eval).unwrap();
                network
                    .holding_gates(|network| {
                        let length = network.n_parameters();
                        network.params_mut().iter_mut().zip(values(5, length)).for_each(|(w, v)| *w += 0.2 * v);
                        let logits = network.forward(&images, N, Mode::Eval)?.to_vec();
                        network.backward(&on_logits)?;
                        Ok((logits, network.grads().to_vec()))
                    })
                    .unwrap()
            });
            let [(logits, gradient), (on_device, gradient_there)] = results;
            check("logits with held gates", &on_device, &logits, 1e-3);
            check("gradient with held gates", &gradient_there, &gradient, 1e-3);
        }
    }
}

fn config(architecture: Architecture, size: (usize, usize), sigma: f64) -> Config {
    Config { architecture, n_classes: 5, size, sigma_xt: sigma, sigma_ty: sigma / 2.0 }
}

#[test]
fn cuda_networks_agree_with_the_cpu() {
    for gpu in gpus() {
        for precision in [Precision::F32, Precision::Tf32, Precision::Bf16] {
            let check = |size, make: fn(&Config) -> Network, what| {
                check_network(&gpu, &config(Architecture::Resnet8, size, 0.3), make, what, precision);
            };
            for mode in [Mode::Train, Mode::Eval] {
                check((8, 8), network, (mode, "layer2"));
                check((9, 7), assorted, (mode, "doubled"));
            }
            check((9, 7), network, (Mode::Train, "stem"));
            check((6, 6), assorted, (Mode::Train, "sum"));
        }
    }
}

#[test]
fn cuda_networks_follow_their_parameters_and_batches() {
    for gpu in gpus() {
        let config = config(Architecture::Resnet8, (8, 8), 0.0);
        let (mut cpu, mut device) = (network(&config), network(&config));
        device.move_to(&gpu, Precision::F32).unwrap();
        for (n, factor) in [(2, 1.0), (5, 0.5), (3, 2.0)] {
            let images = values(n as u32, n * 192);
            let both = [&mut cpu, &mut device].map(|network| {
                network.params_mut().iter_mut().for_each(|p| *p *= factor);
                network.forward(&images, n, Mode::Eval).unwrap().to_vec()
            });
            check(&format!("logits of {n}"), &both[1], &both[0], 1e-4);
        }
        // A loss on a layer alone leaves later parameters alone.
        let on_layer = values(3, 3 * 16);
        for network in [&mut cpu, &mut device] {
            network.backward(&values(2, 15)).unwrap();
            network.backward_from(&[("layer1", LayerGradient::Pooled(&on_layer))], None).unwrap();
        }
        check("gradient", device.grads(), cpu.grads(), 1e-4);
        let later = device.parameter_range("layer2.0.conv1.weight").unwrap();
        assert!(device.grads()[later].iter().all(|&g| g == 0.0));
    }
}

const BATCH: usize = 8;
const N: usize = 22;
const EPOCHS: usize = 2;
const SMOOTHING: f64 = 0.1;

/// A small training: what it needs, and what comes out.
struct Training {
    config: Config,
    optimiser: optim::Config,
    split: Split,
    normalise: Normalise,
    augment: Augment,
}

#[derive(PartialEq)]
struct Trained {
    outcomes: Vec<Outcome>,
    params: Vec<f32>,
    buffers: Vec<f32>,
    moments: Vec<f32>,
}

impl Training {
    fn new(kind: Kind, momentum: f64, nesterov: bool) -> Training {
        let mut bytes = Streams::new(0, "test").stream("pixels");
        let pixels = (0..N * 192).map(|_| bytes.below(256) as u8).collect();
        Training {
            config: config(Architecture::Resnet8, (8, 8), 0.2),
            optimiser: optim::Config { kind, momentum, nesterov, weight_decay: 1e-3 },
            split: Split::clean((8, 8), pixels, (0..N as i64).map(|i| i % 5).collect()).unwrap(),
            normalise: Normalise::new([0.49, 0.48, 0.45], [0.25, 0.24, 0.26]).unwrap(),
            augment: Augment { crop: 2, flip: true, cutout: 0 },
        }
    }

    fn n_steps() -> usize {
        N.div_ceil(BATCH)
    }

    fn rate(step: usize) -> f64 {
        0.02 / (1.0 + step as f64)
    }

    fn order(epoch: usize) -> Vec<usize> {
        stream("order").at(epoch as u64).permutation(N)
    }

    /// Step by step through the network's calls.
    fn on_cpu(&self) -> Trained {
        let mut network = network(&self.config);
        let mut optimiser = Optimiser::new(self.optimiser, network.n_parameters());
        network.noise(Some(stream("noise")));
        let mut outcomes = Vec::new();
        for epoch in 0..EPOCHS {
            for (step, batch) in Self::order(epoch).chunks(BATCH).enumerate() {
                let mut images = vec![0.0; batch.len() * 192];
                let draws = (self.augment, &stream("augment"), epoch);
                augment::augmented(&self.split, batch, &self.normalise, draws, &mut images).unwrap();
                network.set_step((epoch * Self::n_steps() + step) as u64);
                let logits = network.forward(&images, batch.len(), Mode::Train).unwrap().to_vec();
                let labels: Vec<i64> = batch.iter().map(|&row| self.split.label[row]).collect();
                let mut grad = vec![0.0; logits.len()];
                let losses = loss::cross_entropy(&logits, &labels, 5, SMOOTHING, &mut grad).unwrap();
                let predicted = predict::classes(&logits, 5);
                outcomes.extend(losses.into_iter().zip(predicted).map(|(loss, predicted)| Outcome { loss, predicted }));
                network.backward(&grad).unwrap();
                let (params, grads) = network.params_and_grads();
                optimiser.step(params, grads, Self::rate(step));
            }
        }
        Trained::new(outcomes, &network, &optimiser)
    }

    /// By the trainer; after `stop` steps of the first epoch everything goes through the host into a new one.
    fn on_device(&self, gpu: &Arc<Gpu>, precision: Precision, stop: usize) -> Trained {
        let mut network = network(&self.config);
        network.move_to(gpu, precision).unwrap();
        let mut optimiser = Optimiser::new(self.optimiser, network.n_parameters());
        let mut trainer = self.trainer(&mut network, &optimiser);
        let mut outcomes = Vec::new();
        let rates: Vec<f64> = (0..Self::n_steps()).map(Self::rate).collect();
        for epoch in 0..EPOCHS {
            let order = Self::order(epoch);
            let draws = augment::draws(N, self.split.size, &order, (self.augment, &stream("augment"), epoch));
            let noise = stream("noise");
            let part = |done| Epoch {
                order: &order,
                draws: &draws,
                rates: &rates,
                done,
                noise: Some((&noise, (epoch * Self::n_steps()) as u64)),
            };
            trainer.begin(&mut network, &part(0)).unwrap();
            for step in 0..Self::n_steps() {
                if epoch == 0 && step == stop {
                    outcomes.extend(trainer.collect().unwrap());
                    trainer.finish(&mut network, &mut optimiser).unwrap();
                    // As a checkpoint does: another network, from the host's values.
                    let mut other = self::network(&self.config);
                    other.params_mut().copy_from_slice(network.params());
                    other.buffers_mut().copy_from_slice(network.buffers());
                    other.move_to(gpu, precision).unwrap();
                    network = other;
                    trainer = self.trainer(&mut network, &optimiser);
                    trainer.begin(&mut network, &part(step)).unwrap();
                }
                trainer.step(&mut network).unwrap();
            }
            assert!(trainer.is_done());
            outcomes.extend(trainer.collect().unwrap());
            trainer.finish(&mut network, &mut optimiser).unwrap();
        }
        Trained::new(outcomes, &network, &optimiser)
    }

    fn trainer(&self, network: &mut Network, optimiser: &Optimiser) -> Trainer {
        let batches = (BATCH, SMOOTHING);
        Trainer::new(network, &self.split, N, &self.normalise, batches, (self.optimiser, optimiser)).unwrap()
    }
}

impl Trained {
    fn new(outcomes: Vec<Outcome>, network: &Network, optimiser: &Optimiser) -> Trained {
        let (steps, first, second) = optimiser.state();
        assert_eq!(steps, (EPOCHS * Training::n_steps()) as u64);
        let moments = [first, second].concat();
        Trained { outcomes, params: network.params().to_vec(), buffers: network.buffers().to_vec(), moments }
    }

    fn losses(&self) -> Vec<f32> {
        self.outcomes.iter().map(|outcome| outcome.loss).collect()
    }
}

#[test]
fn cuda_trainings_agree_with_the_cpu() {
    for gpu in gpus() {
        for (kind, momentum, nesterov) in
            [(Kind::Sgd, 0.0, false), (Kind::Sgd, 0.9, false), (Kind::Sgd, 0.9, true), (Kind::Adamw, 0.9, false)]
        {
            let training = Training::new(kind, momentum, nesterov);
            let expected = training.on_cpu();
            let what = |of: &str, p: Precision| format!("{of} of {} {momentum} {nesterov} {}", kind.name(), p.name());
            // AdamW's first steps have the size of the rate whatever the gradient: rounding grows there.
            let loose = if kind == Kind::Adamw { 50.0 } else { 1.0 };
            for (precision, tolerance) in [(Precision::F32, 1e-3), (Precision::Tf32, 5e-2), (Precision::Bf16, 1e-1)] {
                if precision == Precision::Tf32 && gpu.name() == "emulated" {
                    // There it is f32.
                    continue;
                }
                let got = training.on_device(&gpu, precision, usize::MAX);
                check(&what("first losses", precision), &got.losses()[..BATCH], &expected.losses()[..BATCH], tolerance);
                if precision == Precision::F32 {
                    check(&what("losses", precision), &got.losses(), &expected.losses(), tolerance * loose);
                    check(&what("parameters", precision), &got.params, &expected.params, tolerance * loose);
                    check(&what("statistics", precision), &got.buffers, &expected.buffers, tolerance * loose);
                    if kind == Kind::Sgd && momentum > 0.0 {
                        check(&what("momenta", precision), &got.moments, &expected.moments, 10.0 * tolerance);
                    }
                    let same = got.outcomes.iter().zip(&expected.outcomes).filter(|(a, b)| a.predicted == b.predicted);
                    assert!(same.count() >= EPOCHS * N - 1, "{}", what("predictions", precision));
                } else {
                    check(&what("parameters", precision), &got.params, &expected.params, 0.2);
                }
            }
        }
    }
}

/// Invariant 3, and what a checkpoint needs.
#[test]
fn cuda_trainings_repeat_and_resume_to_the_last_bit() {
    for gpu in gpus() {
        for (kind, precision, stop) in [(Kind::Adamw, Precision::F32, 1), (Kind::Sgd, Precision::Bf16, 2)] {
            let training = Training::new(kind, 0.9, false);
            let whole = training.on_device(&gpu, precision, usize::MAX);
            assert!(training.on_device(&gpu, precision, usize::MAX) == whole, "{} again", kind.name());
            let resumed = training.on_device(&gpu, precision, stop);
            assert!(resumed == whole, "{} {} stopped after {stop}", kind.name(), precision.name());
        }
    }
}

#[test]
fn cuda_memory_that_does_not_suffice_is_named() {
    let gpu = Gpu::emulated();
    // The emulation has 1 GiB, of which 256 MiB are set aside.
    let error = check_memory(&gpu, 100, 10 << 20).unwrap_err();
    assert_eq!(error.message(), "a batch of 100 images needs 1000 MiB of the GPU's memory, and 1024 MiB are free");
    assert_eq!(
        error.hint_text(),
        Some("a batch of 76 would fit: lower `batch_size`, or end what else runs on the GPU")
    );
    assert!(check_memory(&gpu, 76, 10 << 20).is_ok());
}

#[test]
fn bfloat16_rounds_to_nearest_even() {
    for (value, bits) in [(1.0, 0x3f80), (1.003_906_3, 0x3f80), (1.004, 0x3f81), (1.011_718_8, 0x3f82), (-0.0, 0x8000)]
    {
        assert_eq!(to_bf16(value), bits, "{value}");
    }
    assert!(from_bf16(to_bf16(f32::NAN)).is_nan());
    assert_eq!(from_bf16(to_bf16(f32::INFINITY)), f32::INFINITY);
}
