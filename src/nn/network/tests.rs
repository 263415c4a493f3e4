//! The executor, on networks small enough for finite differences. Agreement with PyTorch is tests/it/nn.rs.

use super::*;
use crate::kernels::reference::values;
use crate::rng::Streams;

fn config(architecture: Architecture, size: (usize, usize)) -> Config {
    Config { architecture, n_classes: 5, size, sigma_xt: 0.0, sigma_ty: 0.0 }
}

fn stream() -> Stream {
    Streams::new(3, "test").stream("network")
}

fn network(architecture: Architecture, size: (usize, usize)) -> Network {
    made(&config(architecture, size))
}

fn made(config: &Config) -> Network {
    let mut network = Network::new(config).unwrap();
    network.init(&stream());
    network
}

fn images(n: usize, size: (usize, usize)) -> Vec<f32> {
    values(1, n * size.0 * size.1 * 3)
}

#[test]
fn parameter_counts_are_those_of_the_originals() {
    let check = |architecture, expected| {
        let config = Config { n_classes: 10, ..config(architecture, (32, 32)) };
        assert_eq!(Network::new(&config).unwrap().n_parameters(), expected, "{}", architecture.name());
    };
    check(Architecture::Resnet8, 78_042);
    check(Architecture::Resnet20, 272_474);
    check(Architecture::Resnet18, 11_173_962);
    check(Architecture::PreactResnet18, 11_171_146);
    check(Architecture::Vgg16Bn, 14_728_266);
}

#[test]
fn names_are_found_again() {
    for architecture in Architecture::ALL {
        assert_eq!(Architecture::find(architecture.name()).unwrap(), architecture);
        assert_eq!(serde_json::to_value(architecture).unwrap(), architecture.name());
    }
    let error = Architecture::find("resnet9").unwrap_err();
    assert_eq!(error.message(), "there is no architecture `resnet9`");
}

#[test]
fn layers_have_names() {
    let names = network(Architecture::Resnet8, (8, 8)).layer_names();
    assert_eq!(names, ["stem", "layer1.0", "layer1", "layer2.0", "layer2", "layer3.0", "layer3", "avgpool", "logits"]);
    let names = Network::new(&config(Architecture::Vgg16Bn, (32, 32))).unwrap().layer_names();
    assert_eq!(names, ["stem", "layer1", "layer2", "layer3", "layer4", "layer5", "avgpool", "logits"]);
}

/// Compares the gradient with the central difference of the loss along the gradient itself.
///
/// The step changes the loss by 0.04 in all: far above the rounding of a loss of some tens in f32, and small enough for
/// the curvature and the ReLUs that switch on the way to cost less than a percent.
#[track_caller]
fn check_slope(what: &str, gradient: &[f32], mut loss: impl FnMut(&[f32]) -> f64) {
    let norm = gradient.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
    assert!(norm > 1e-3, "{what}: no gradient");
    let step = (0.02 / norm).min(3e-3);
    let mut along = |t: f64| loss(&gradient.iter().map(|&g| (f64::from(g) / norm * t) as f32).collect::<Vec<f32>>());
    let slope = (along(step) - along(-step)) / (2.0 * step);
    assert!((slope / norm - 1.0).abs() < 0.01, "{what}: central difference {slope}, gradient {norm}");
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// Parameters' and images' gradients of `sum(w * logits) + sum(v * representation(layer))`.
fn check_network(config: &Config, mode: Mode, layer: Option<&str>) {
    const N: usize = 3;
    let what = format!("{} {:?} {mode:?} {layer:?}", config.architecture.name(), config.size);
    let mut network = made(config);
    network.want_input_grad(true);
    network.noise(Some(stream()));
    let images = images(N, config.size);
    // Running statistics that differ from the first ones.
    network.forward(&images, N, Mode::Train).unwrap();
    let statistics = network.buffers().to_vec();
    let on_logits = values(7, N * config.n_classes);
    let on_layer = values(8, N * 512);
    let loss = |network: &mut Network, images: &[f32]| {
        network.buffers_mut().copy_from_slice(&statistics);
        let logits = network.forward(images, N, mode).unwrap();
        let of_logits = dot(logits, &on_logits);
        let of_layer = layer.map_or(0.0, |layer| {
            let (_, representation) = network.representation(layer).unwrap();
            dot(&representation, &on_layer)
        });
        of_logits + of_layer
    };
    loss(&mut network, &images);
    match layer {
        None => network.backward(&on_logits).unwrap(),
        Some(layer) => {
            let (channels, _) = network.representation(layer).unwrap();
            let entry = (layer, LayerGradient::Pooled(&on_layer[..N * channels]));
            network.backward_from(&[entry], Some(&on_logits)).unwrap();
        }
    }
    let (gradient, input_gradient) = (network.grads().to_vec(), network.input_grad().unwrap().to_vec());
    let parameters = network.params().to_vec();
    check_slope(&format!("parameters of {what}"), &gradient, |step| {
        for ((p, &base), &d) in network.params_mut().iter_mut().zip(&parameters).zip(step) {
            *p = base + d;
        }
        loss(&mut network, &images)
    });
    network.params_mut().copy_from_slice(&parameters);
    check_slope(&format!("images of {what}"), &input_gradient, |step| {
        let moved: Vec<f32> = images.iter().zip(step).map(|(x, d)| x + d).collect();
        loss(&mut network, &moved)
    });
}

#[test]
fn gradients_agree_with_central_differences() {
    for mode in [Mode::Train, Mode::Batch, Mode::Eval] {
        check_network(&config(Architecture::Resnet8, (8, 8)), mode, None);
        check_network(&config(Architecture::Resnet8, (9, 7)), mode, Some("layer2"));
        check_network(&config(Architecture::Resnet20, (8, 8)), mode, Some("avgpool"));
        check_network(&config(Architecture::PreactResnet18, (8, 8)), mode, Some("layer3.0"));
        let noisy = Config { sigma_xt: 0.4, sigma_ty: 0.2, ..config(Architecture::Resnet8, (8, 8)) };
        check_network(&noisy, mode, Some("stem"));
    }
    check_network(&config(Architecture::Vgg16Bn, (32, 32)), Mode::Train, Some("layer4"));
}

#[test]
fn a_loss_on_a_layer_alone_leaves_later_parameters_alone() {
    let mut network = network(Architecture::Resnet8, (8, 8));
    let images = images(2, (8, 8));
    network.forward(&images, 2, Mode::Train).unwrap();
    network.backward(&values(2, 10)).unwrap();
    let on_layer = values(3, 2 * 16);
    network.backward_from(&[("layer1", LayerGradient::Pooled(&on_layer))], None).unwrap();
    let gradient_of = |name: &str| &network.grads()[network.parameter_range(name).unwrap()];
    assert!(gradient_of("layer1.0.conv1.weight").iter().any(|&g| g != 0.0));
    assert!(gradient_of("layer2.0.conv1.weight").iter().all(|&g| g == 0.0));
    assert!(gradient_of("fc.bias").iter().all(|&g| g == 0.0));
    // On the map: every position gets a share of the pooled gradient.
    let pooled = network.grads().to_vec();
    let map: Vec<f32> = on_layer.chunks(16).flat_map(|g| [g; 64].concat()).map(|g| g / 64.0).collect();
    network.backward_from(&[("layer1", LayerGradient::Map(&map))], None).unwrap();
    assert_eq!(pooled, network.grads());
}

/// All that a step changes.
fn step(network: &mut Network, n: usize) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let size = network.config().size;
    let logits = network.forward(&images(n, size), n, Mode::Train).unwrap().to_vec();
    network.backward(&values(2, logits.len())).unwrap();
    (logits, network.grads().to_vec(), network.buffers().to_vec())
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let noisy = Config { sigma_xt: 0.4, sigma_ty: 0.2, ..config(Architecture::Resnet8, (12, 10)) };
    let configs = [noisy, config(Architecture::PreactResnet18, (8, 8)), config(Architecture::Vgg16Bn, (32, 32))];
    for (i, config) in configs.iter().enumerate() {
        // All instruction sets on the smallest; the kernels' own tests cover the rest.
        let isas = if i == 0 { Isa::available() } else { vec![Isa::best()] };
        for isa in isas {
            let run = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| {
                    let mut network = Network::with_isa(config, isa).unwrap();
                    network.init(&stream());
                    network.noise(Some(stream()));
                    step(&mut network, 5)
                })
            };
            assert!(run(1) == run(2), "{} {}", config.architecture.name(), isa.name());
        }
    }
}

#[test]
fn a_smaller_batch_reuses_the_buffers() {
    let noisy = Config { sigma_xt: 0.4, sigma_ty: 0.2, ..config(Architecture::Resnet8, (8, 8)) };
    let made = || {
        let mut network = made(&noisy);
        network.noise(Some(stream()));
        network
    };
    let (mut used, mut fresh) = (made(), made());
    step(&mut used, 7);
    let first_statistics = fresh.buffers().to_vec();
    used.buffers_mut().copy_from_slice(&first_statistics);
    assert!(step(&mut used, 4) == step(&mut fresh, 4), "a smaller batch");
    let address = used.forward(&images(7, (8, 8)), 7, Mode::Eval).unwrap().as_ptr();
    assert_eq!(address, used.forward(&images(3, (8, 8)), 3, Mode::Eval).unwrap().as_ptr(), "same buffers");
    step(&mut fresh, 9);
    step(&mut used, 9);
    used.buffers_mut().copy_from_slice(&first_statistics);
    fresh.buffers_mut().copy_from_slice(&first_statistics);
    assert!(step(&mut used, 9) == step(&mut fresh, 9), "a larger batch");
}

#[test]
fn packed_weights_follow_the_parameters() {
    let mut changed = network(Architecture::Resnet8, (8, 8));
    step(&mut changed, 2);
    changed.params_mut().iter_mut().for_each(|p| *p *= 0.5);
    let mut loaded = network(Architecture::Resnet8, (8, 8));
    loaded.load(&changed.weights()).unwrap();
    assert!(step(&mut changed, 2) == step(&mut loaded, 2));
}

#[test]
fn batch_mode_is_training_without_a_trace() {
    let run = |mode: Mode| {
        let mut network = network(Architecture::Resnet8, (9, 7));
        network.want_input_grad(true);
        let before = network.buffers().to_vec();
        let logits = network.forward(&images(3, (9, 7)), 3, mode).unwrap().to_vec();
        network.backward(&values(2, logits.len())).unwrap();
        let gradients = (network.grads().to_vec(), network.input_grad().unwrap().to_vec());
        (logits, gradients, before == network.buffers())
    };
    let (logits, gradients, kept) = run(Mode::Train);
    assert!(!kept);
    assert!(run(Mode::Batch) == (logits.clone(), gradients.clone(), true));
    // The running statistics, still those of no data, give something else.
    let (frozen_logits, frozen_gradients, kept) = run(Mode::Eval);
    assert!(kept && frozen_logits != logits && frozen_gradients != gradients);
    let mut single = network(Architecture::Resnet8, (4, 4));
    let message = "batch statistics of one value: expected more than one image a batch, got 1";
    check_error(single.forward(&[0.0; 48], 1, Mode::Batch).map(<[f32]>::to_vec), message);
}

#[test]
fn noise_comes_after_the_stem_and_before_the_classifier() {
    let sigmas = Config { sigma_xt: 0.5, ..config(Architecture::Resnet8, (16, 16)) };
    let mut network = made(&sigmas);
    let images = images(4, (16, 16));
    let map = |network: &mut Network, noise: Option<Stream>, step: u64| {
        network.noise(noise);
        network.set_step(step);
        network.forward(&images, 4, Mode::Eval).unwrap();
        network.feature_map("stem").unwrap().1.to_vec()
    };
    let clean = map(&mut network, None, 0);
    assert!(clean.iter().all(|&v| v >= 0.0));
    let noisy = map(&mut network, Some(stream()), 0);
    let mean_square = clean.iter().zip(&noisy).map(|(c, n)| f64::from(n - c).powi(2)).sum::<f64>() / clean.len() as f64;
    assert!((mean_square - 0.25).abs() < 0.01, "{mean_square}");
    assert_eq!(noisy, map(&mut network, Some(stream()), 0));
    assert_ne!(noisy, map(&mut network, Some(stream()), 1));
    assert_eq!(clean, map(&mut network, None, 1));

    let sigmas = Config { sigma_ty: 0.5, ..config(Architecture::Resnet8, (16, 16)) };
    let mut network = made(&sigmas);
    let clean = network.forward(&images, 4, Mode::Eval).unwrap().to_vec();
    let pooled = network.representation("avgpool").unwrap();
    network.noise(Some(stream()));
    assert_ne!(clean, network.forward(&images, 4, Mode::Eval).unwrap());
    assert_eq!(pooled, network.representation("avgpool").unwrap(), "`avgpool` is taken before the noise");
}

/// Noise after the stem and every block (VGG: every stage), and before the classifier. A standard deviation of 0 is none:
/// the published code asks whether it is true, so that 0 becomes its default of 0.4.
#[test]
fn every_architecture_has_its_noises() {
    let n_noises = |architecture, sigma_xt: f64, sigma_ty: f64| {
        let config = Config { sigma_xt, sigma_ty, ..config(architecture, (32, 32)) };
        let nodes = crate::nn::models::build(&config).unwrap().nodes;
        let count = |wanted: f64| {
            nodes
                .iter()
                .filter(|node| matches!(node.op, crate::nn::graph::Op::Noise { sigma, .. } if sigma == wanted))
                .count()
        };
        (count(0.4), count(0.2), count(0.0))
    };
    for (architecture, n_xt) in [
        (Architecture::Resnet8, 4),
        (Architecture::Resnet20, 10),
        (Architecture::Resnet18, 9),
        (Architecture::PreactResnet18, 9),
        (Architecture::Vgg16Bn, 5),
    ] {
        assert_eq!(n_noises(architecture, 0.4, 0.2), (n_xt, 1, 0), "{}", architecture.name());
        assert_eq!(n_noises(architecture, 0.0, 0.2), (0, 1, 0), "{}", architecture.name());
        assert_eq!(n_noises(architecture, 0.0, 0.0), (0, 0, 0), "{}", architecture.name());
    }
}

#[test]
fn other_sizes_work() {
    for (architecture, size) in [
        (Architecture::Resnet8, (28, 28)),
        (Architecture::Resnet8, (64, 64)),
        (Architecture::Resnet20, (7, 5)),
        (Architecture::Vgg16Bn, (33, 64)),
    ] {
        let logits = network(architecture, size).forward(&images(2, size), 2, Mode::Train).unwrap().to_vec();
        assert!(logits.len() == 10 && logits.iter().all(|v| v.is_finite()), "{architecture:?} {size:?}");
    }
}

#[track_caller]
fn check_error<T>(result: Result<T>, expected: &str) {
    match result {
        Ok(_) => panic!("expected an error: {expected}"),
        Err(error) => assert_eq!(error.message(), expected),
    }
}

#[test]
fn impossible_networks() {
    let small = config(Architecture::Vgg16Bn, (28, 28));
    check_error(Network::new(&small), "expected images of at least 32x32 for `vgg16-bn`, got 28x28");
    let empty = config(Architecture::Resnet8, (0, 8));
    check_error(Network::new(&empty), "expected images of at least 1x1 for `resnet8`, got 0x8");
    let classless = Config { n_classes: 0, ..config(Architecture::Resnet8, (8, 8)) };
    check_error(Network::new(&classless), "expected at least one class for `resnet8`, got 0");
    let noisy = Config { sigma_ty: -1.0, ..config(Architecture::Resnet8, (8, 8)) };
    check_error(Network::new(&noisy), "`sigma_ty` must be a finite number of at least 0, got -1");
}

#[test]
fn impossible_calls() {
    let mut network = network(Architecture::Resnet8, (4, 4));
    check_error(network.backward(&[0.0; 5]), "a backward pass without a forward pass before it");
    check_error(network.representation("stem"), "the values of layer `stem` were asked for before a forward pass");
    check_error(
        network.forward(&[0.0; 47], 1, Mode::Eval).map(<[f32]>::to_vec),
        "expected 1 images of 4x4x3, that is 48 values and at least one image, got 47 values",
    );
    check_error(
        network.forward(&[0.0; 48], 1, Mode::Train).map(<[f32]>::to_vec),
        "batch statistics of one value: expected more than one image a batch, got 1",
    );
    network.forward(&[0.0; 48], 1, Mode::Eval).unwrap();
    check_error(network.backward(&[0.0; 4]), "expected a gradient of 5 values for 1 images, got 4");
    check_error(network.representation("layer9"), "there is no layer `layer9` in this network");
    check_error(
        network.input_grad(),
        "no gradient on the images: expected `want_input_grad` and a forward and a backward pass",
    );
}

#[test]
fn weights_round_trip_and_misfits_are_named() {
    let mut network = network(Architecture::Resnet8, (8, 8));
    step(&mut network, 4);
    let weights = network.weights();
    assert_eq!(weights["layer2.0.downsample.0.weight"].shape, [32, 16, 1, 1]);
    assert_eq!(weights["conv1.weight"].shape, [16, 3, 3, 3]);
    assert_eq!(weights["fc.weight"].shape, [5, 64]);
    let mut other = made(&config(Architecture::Resnet8, (8, 8)));
    other.load(&weights).unwrap();
    assert!(other.params() == network.params() && other.buffers() == network.buffers());

    let mut wrong = weights.clone();
    wrong.remove("bn1.running_var");
    let tensor = wrong.remove("fc.weight").unwrap();
    wrong.insert("linear.weight".into(), tensor);
    wrong.get_mut("fc.bias").unwrap().shape = vec![1, 5];
    let before = other.params().to_vec();
    check_error(
        other.load(&wrong),
        "the weights do not fit the network: `fc.weight` is missing; `fc.bias` has shape [1, 5], expected [5]; \
         `bn1.running_var` is missing; `linear.weight` is not part of the network",
    );
    assert_eq!(before, other.params(), "nothing was copied");
}

#[test]
fn first_values_have_the_right_spread() {
    let check = |architecture, name: &str, expected: f64| {
        let network = Network::new(&Config { n_classes: 100, ..config(architecture, (32, 32)) });
        let mut network = network.unwrap();
        network.init(&stream());
        let values = &network.params()[network.parameter_range(name).unwrap()];
        let std = (values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / values.len() as f64).sqrt();
        assert!((std / expected - 1.0).abs() < 0.05, "{name}: {std}, expected {expected}");
    };
    // sqrt(2 / (9 * 64)); a uniform value in (-b, b) has standard deviation b / sqrt(3).
    check(Architecture::Resnet8, "layer3.0.conv2.weight", (2.0f64 / 576.0).sqrt());
    check(Architecture::Resnet8, "fc.weight", (1.0f64 / 64.0 / 3.0).sqrt());
    check(Architecture::Vgg16Bn, "features.3.weight", (1.0f64 / 576.0 / 3.0).sqrt());
    check(Architecture::Resnet8, "bn1.weight", 1.0);
}
