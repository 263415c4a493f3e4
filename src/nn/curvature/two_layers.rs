//! A network of two layers whose Hessian is made explicitly, in f64: what products, eigenvalues and traces are held
//! against.
//!
//! A convolution, its mean over positions, a classifier: smooth in the weights, so that the Hessian exists everywhere.

use super::{Product, density, hutchinson, lanczos, power};
use crate::embedding::eigen;
use crate::kernels::reference::{check, values, wide};
use crate::kernels::{Isa, basis};
use crate::nn::batch_loss::BatchLoss;
use crate::nn::graph::{Builder, Conv, ConvInit};
use crate::nn::hvp::HessianProduct;
use crate::nn::{Architecture, Config, Network};
use crate::rng::Streams;

const SIDE: usize = 4;
const N: usize = 6;
const LABELS: [i64; N] = [0, 1, 2, 2, 1, 0];
const CHANNELS: usize = 5;
const CLASSES: usize = 3;

struct TwoLayers {
    network: Network,
    batch: BatchLoss,
    /// [n_parameters, n_parameters].
    hessian: Vec<f64>,
}

/// Flat positions of the parameters.
struct Layout {
    conv: usize,
    conv_bias: usize,
    fc: usize,
    fc_bias: usize,
}

/// The gradient of the mean cross-entropy, written out.
fn gradient(layout: &Layout, images: &[f64], w: &[f64]) -> Vec<f64> {
    let mut gradient = vec![0.0; w.len()];
    for (image, &label) in images.chunks(SIDE * SIDE * 3).zip(&LABELS) {
        // What each tap and channel sees on average; zero beyond the borders.
        let mut seen = [0.0; 27];
        for (row, column) in (0..SIDE).flat_map(|row| (0..SIDE).map(move |column| (row, column))) {
            for tap in 0..9 {
                let (y, x) = (row + tap / 3, column + tap % 3);
                if (1..=SIDE).contains(&y) && (1..=SIDE).contains(&x) {
                    let at = ((y - 1) * SIDE + x - 1) * 3;
                    (0..3).for_each(|c| seen[tap * 3 + c] += image[at + c] / (SIDE * SIDE) as f64);
                }
            }
        }
        let hidden: Vec<f64> = (0..CHANNELS)
            .map(|o| {
                w[layout.conv_bias + o] + (0..27).map(|i| seen[i] * w[layout.conv + i * CHANNELS + o]).sum::<f64>()
            })
            .collect();
        let weight = |k: usize, o: usize| layout.fc + k * CHANNELS + o;
        let logits: Vec<f64> = (0..CLASSES)
            .map(|k| w[layout.fc_bias + k] + (0..CHANNELS).map(|o| hidden[o] * w[weight(k, o)]).sum::<f64>())
            .collect();
        let total: f64 = logits.iter().map(|l| l.exp()).sum();
        for k in 0..CLASSES {
            let slope = (logits[k].exp() / total - f64::from(u8::from(k as i64 == label))) / N as f64;
            gradient[layout.fc_bias + k] += slope;
            for o in 0..CHANNELS {
                gradient[weight(k, o)] += slope * hidden[o];
                let on_hidden = slope * w[weight(k, o)];
                gradient[layout.conv_bias + o] += on_hidden;
                (0..27).for_each(|i| gradient[layout.conv + i * CHANNELS + o] += on_hidden * seen[i]);
            }
        }
    }
    gradient
}

fn two_layers() -> TwoLayers {
    let config = Config {
        architecture: Architecture::Resnet8,
        n_classes: CLASSES,
        size: (SIDE, SIDE),
        sigma_xt: 0.0,
        sigma_ty: 0.0,
    };
    let mut net = Builder::new(config.size, 0.0, 0.0, ConvInit::TorchDefault);
    let x = net.conv_with_bias(net.input(), "conv", Conv { channels: CHANNELS, kernel: 3, stride: 1 });
    let mut network = Network::of_graph(&config, net.classifier(x, "fc", CLASSES), Isa::best());
    let n = network.n_parameters();
    network.params_mut().copy_from_slice(&values(1, n));
    let images: Vec<f32> = values(2, N * SIDE * SIDE * 3).iter().map(|v| 4.0 * v).collect();
    let start = |name: &str| network.parameter_range(name).unwrap().start;
    let layout = Layout {
        conv: start("conv.weight"),
        conv_bias: start("conv.bias"),
        fc: start("fc.weight"),
        fc_bias: start("fc.bias"),
    };
    let (own, images64) = (wide(network.params()), wide(&images));
    let mut batch = BatchLoss::new(images, LABELS.to_vec()).unwrap();
    batch.gradient(&mut network).unwrap();
    check("gradient", network.grads(), &gradient(&layout, &images64, &own), 1e-5);

    const STEP: f64 = 1e-5;
    let mut hessian = Vec::with_capacity(n * n);
    for i in 0..n {
        let at = |step: f64| {
            let mut moved = own.clone();
            moved[i] += step;
            gradient(&layout, &images64, &moved)
        };
        hessian.extend(at(STEP).iter().zip(at(-STEP)).map(|(above, below)| (above - below) / (2.0 * STEP)));
    }
    TwoLayers { network, batch, hessian }
}

impl TwoLayers {
    fn n(&self) -> usize {
        self.network.n_parameters()
    }

    /// Descending.
    fn eigenvalues(&self) -> Vec<f64> {
        let n = self.n();
        let even = (0..n * n).map(|at| 0.5 * (self.hessian[at] + self.hessian[at % n * n + at / n]));
        eigen::symmetric(even.collect(), n).unwrap().values
    }

    fn trace(&self) -> f64 {
        (0..self.n()).map(|i| self.hessian[i * self.n() + i]).sum()
    }

    fn with<T>(&mut self, relative_step: f64, what: impl FnOnce(&mut Product) -> T) -> T {
        let TwoLayers { network, batch, .. } = self;
        let mut differences = HessianProduct::with_step(relative_step);
        what(&mut |vector, target| {
            differences.of_network(network, vector, target, |network| batch.gradient(network).map(drop))
        })
    }
}

/// The error of central differences in f32, over four decades of steps.
#[test]
fn products_are_those_of_the_explicit_hessian() {
    let mut net = two_layers();
    let n = net.n();
    let vector = values(5, n);
    let expected: Vec<f64> =
        net.hessian.chunks(n).map(|row| row.iter().zip(&vector).map(|(h, &v)| h * f64::from(v)).sum()).collect();
    for (step, tolerance) in [(1e-2, 5e-3), (1e-3, 1e-3), (1e-4, 5e-3), (1e-5, 5e-2)] {
        let mut product = vec![0.0; n];
        net.with(step, |multiply| multiply(&vector, &mut product)).unwrap();
        check(&format!("step {step}"), &product, &expected, tolerance);
    }
}

#[test]
fn eigenvalues_are_those_of_the_explicit_hessian() {
    let mut net = two_layers();
    let (n, expected) = (net.n(), net.eigenvalues());
    let size = expected[0];
    assert!(expected[n - 1] < -0.01 * size, "the spectrum has both signs");
    let streams = Streams::new(0, "curvature");
    let krylov = net.with(1e-3, |product| lanczos::run(product, &values(3, n), 60)).unwrap();
    for i in [0, 1, 2] {
        let found = krylov.values()[i];
        assert!((found - expected[i]).abs() < 2e-3 * size, "Lanczos, {i}: {found} instead of {}", expected[i]);
    }
    let least = krylov.values()[krylov.values().len() - 1];
    assert!((least - expected[n - 1]).abs() < 2e-3 * size, "{least} instead of {}", expected[n - 1]);
    let settings = power::Settings { most_steps: 300, tolerance: 1e-6 };
    let pairs = net.with(1e-3, |product| power::largest(product, n, 2, settings, &streams.stream("power"))).unwrap();
    let mut by_size = expected.clone();
    by_size.sort_by(|a, b| b.abs().total_cmp(&a.abs()));
    for (pair, expected) in pairs.iter().zip(by_size) {
        assert!((pair.value - expected).abs() < 5e-3 * size, "power: {} instead of {expected}", pair.value);
    }
}

#[test]
fn traces_and_densities_are_those_of_the_explicit_hessian() {
    let mut net = two_layers();
    let (n, expected, eigenvalues) = (net.n(), net.trace(), net.eigenvalues());
    let stream = Streams::new(0, "curvature").stream("trace");
    let found = net.with(1e-3, |product| hutchinson::trace(product, n, 400, &stream)).unwrap();
    let error = found.error.unwrap();
    assert!(error < 0.05 * expected && (found.mean - expected).abs() < 3.0 * error, "{found:?}, exactly {expected}");
    // One probe alone is v'Hv of the explicit matrix.
    let probe = super::signs(stream.at(0), n);
    let one = net.with(1e-3, |product| hutchinson::trace(product, n, 1, &stream)).unwrap().mean;
    let product: Vec<f32> = net
        .hessian
        .chunks(n)
        .map(|row| row.iter().zip(&probe).map(|(h, &v)| h * f64::from(v)).sum::<f64>() as f32)
        .collect();
    let exact = basis::dot(Isa::best(), &probe, &product);
    assert!((one - exact).abs() < 2e-3 * exact.abs().max(expected), "{one} instead of {exact}");

    let stream = Streams::new(0, "curvature").stream("density");
    let runs = net.with(1e-3, |product| density::runs(product, n, (30, 25), &stream)).unwrap();
    let share = |at: f64| -> f64 {
        let above = |run: &lanczos::Krylov| -> f64 {
            run.values().iter().zip(run.weights()).filter(|(value, _)| **value > at).map(|(_, weight)| weight).sum()
        };
        runs.iter().map(above).sum::<f64>() / runs.len() as f64
    };
    // Between eigenvalues that stand apart, the share above is known.
    for i in [0, 1, 3] {
        let at = 0.5 * (eigenvalues[i] + eigenvalues[i + 1]);
        let expected = (i + 1) as f64 / n as f64;
        assert!((share(at) - expected).abs() < 0.4 * expected, "{} above {at}, exactly {expected}", share(at));
    }
}
