//! Every kernel's gradient against central differences of that kernel's own forward pass (invariant 11): batches of two
//! and three, even and odd sizes, every window, stride and mode that a network uses, on every instruction set.
//!
//! | op | here | also |
//! | --- | --- | --- |
//! | convolution 1x1, 3x3, 5x5, 7x7, strides 1 and 2, bias | `convolution` | f64 reference in `src/kernels/conv/tests.rs` |
//! | batch normalisation, both modes, with residual and ReLU | `batch_normalisation` | f64 reference in `src/kernels/norm/tests.rs` |
//! | ReLU, sum | `rectifier_and_sum` | `src/kernels/elementwise.rs` |
//! | maxima over 2x2, average over positions | `pools` | f64 reference in `src/kernels/pool.rs` |
//! | linear layer | `linear_layer` | f64 reference in `src/kernels/linear.rs` |
//! | noise | `noise_has_the_gradient_of_the_identity` | whole networks in `src/nn/network/tests.rs` |
//! | softmax cross-entropy, smoothed too | `cross_entropy` | PyTorch's numbers in `src/nn/loss.rs` |
//! | whole networks, gradients that enter at layers | `src/nn/network/tests.rs` | PyTorch's numbers in `tests/it/nn.rs` |
//! | InfoNCE, critics | `src/information/infonce.rs`, `src/information/critic/mod.rs` | |

use runner::kernels::conv::{self, Filter, Geometry, Plan};
use runner::kernels::noise::{self, Key};
use runner::kernels::norm::{self, Backward, Dependence, Forward, Gradients, Saved, Scratch, Statistics};
use runner::kernels::pool::{self, Image};
use runner::kernels::{Activation, Isa, Write, elementwise, linear};
use runner::nn::loss;
use runner::rng::{Stream, Streams};

fn stream(name: &str) -> Stream {
    Streams::new(11, "test/gradients").stream(name)
}

fn normals(name: &str, n: usize) -> Vec<f32> {
    stream(name).normals(n, 1.0)
}

/// Distinct values that lie 0.1 apart and at least 0.05 from zero, in random order: no step of 0.02 crosses a kink.
fn spread(name: &str, n: usize) -> Vec<f32> {
    let ranks = stream(name).permutation(n);
    ranks.into_iter().map(|rank| (rank as f32 - (n / 2) as f32) * 0.1 + 0.05).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// Compares `gradient`, that of `sum(dy * f(x))` at `x`, with central differences along four random directions of
/// signs and along one coordinate, at the step `step`. `tolerance` is relative to the gradient's norm.
#[track_caller]
fn check(
    what: &str,
    (x, gradient, dy): (&[f32], &[f32], &[f32]),
    (step, tolerance): (f32, f64),
    mut f: impl FnMut(&[f32]) -> Vec<f32>,
) {
    assert_eq!(x.len(), gradient.len(), "{what}");
    let norm = dot(gradient, gradient).sqrt();
    assert!(norm > 1e-3 && norm.is_finite(), "{what}: a gradient of norm {norm}");
    let mut signs = stream("directions");
    let mut directions: Vec<Vec<f32>> =
        (0..4).map(|_| (0..x.len()).map(|_| if signs.chance(0.5) { 1.0 } else { -1.0 }).collect()).collect();
    directions.push((0..x.len()).map(|i| f32::from(u8::from(i == x.len() / 2))).collect());
    for direction in directions {
        let mut moved = |by: f32| dot(&f(&x.iter().zip(&direction).map(|(x, d)| x + by * d).collect::<Vec<f32>>()), dy);
        let slope = (moved(step) - moved(-step)) / (2.0 * f64::from(step));
        let expected = dot(gradient, &direction);
        assert!(
            (slope - expected).abs() < tolerance * norm,
            "{what}: central difference {slope}, gradient {expected}, norm {norm}"
        );
    }
}

/// For functions that are linear in what is varied: a large step has no error but rounding.
const LINEAR: (f32, f64) = (0.5, 1e-4);

fn check_conv(size: (usize, usize), channels: (usize, usize), kernel: usize, stride: usize, n: usize) {
    let g = Geometry {
        height: size.0,
        width: size.1,
        in_channels: channels.0,
        out_channels: channels.1,
        kernel,
        stride,
        padding: kernel / 2,
    };
    let (x, w) = (normals("x", n * size.0 * size.1 * channels.0), normals("w", g.n_weights()));
    let bias = normals("bias", channels.1);
    let dy = normals("dy", n * g.out_height() * g.out_width() * channels.1);
    for isa in Isa::available() {
        let what = |part: &str| format!("{part} of {kernel}x{kernel}/{stride} {size:?} {channels:?}, {}", isa.name());
        let plan = Plan::new(isa, g, n);
        let forward = |x: &[f32], w: &[f32], bias: &[f32]| {
            let (mut packed, mut y) = (Vec::new(), vec![f32::NAN; dy.len()]);
            conv::pack_forward(&plan, w, Some(bias), &mut packed);
            conv::forward(&plan, n, x, &Filter { weights: w, bias: Some(bias), packed: &packed }, &mut y);
            y
        };
        let mut packed = Vec::new();
        conv::pack_backward(&plan, &w, &mut packed);
        let (mut dx, mut dw, mut db) = (vec![f32::NAN; x.len()], vec![f32::NAN; w.len()], vec![f32::NAN; bias.len()]);
        let filter = Filter { weights: &w, bias: None, packed: &packed };
        conv::backward_input(&plan, n, &dy, &filter, Write::Replace, &mut dx);
        conv::backward_weights(&plan, n, &x, &dy, &mut dw);
        norm::bias_gradient(isa, &dy, &mut Scratch::default(), &mut db);
        check(&what("input"), (&x, &dx, &dy), LINEAR, |x| forward(x, &w, &bias));
        check(&what("weights"), (&w, &dw, &dy), LINEAR, |w| forward(&x, w, &bias));
        check(&what("bias"), (&bias, &db, &dy), LINEAR, |bias| forward(&x, &w, bias));
    }
}

#[test]
fn convolution() {
    for (size, n) in [((8, 8), 2), ((7, 5), 3)] {
        for channels in [(3, 16), (16, 32), (5, 3)] {
            for kernel in [1, 3, 5, 7] {
                for stride in [1, 2] {
                    check_conv(size, channels, kernel, stride, n);
                }
            }
        }
    }
    // As deep as networks are.
    check_conv((4, 4), (64, 64), 3, 1, 2);
    check_conv((5, 4), (48, 80), 3, 2, 3);
}

fn check_norm(rows: usize, n_channels: usize, has_residual: bool, activation: Activation, dependence: Dependence) {
    let n = rows * n_channels;
    let (x, dy) = (normals("x", n), normals("dy", n));
    let plus = |offset: f32, values: Vec<f32>| values.into_iter().map(|v| 0.3 * v + offset).collect::<Vec<f32>>();
    let (gamma, beta) = (plus(1.0, normals("gamma", n_channels)), normals("beta", n_channels));
    let (mean, variance) = (normals("mean", n_channels), plus(2.0, normals("variance", n_channels)));
    let residual = normals("residual", n);
    for isa in Isa::available() {
        let forward = |x: &[f32], gamma: &[f32], beta: &[f32], residual: &[f32]| {
            let (mut saved, mut scratch) = (Saved::new(n_channels), Scratch::default());
            let (mut moved_mean, mut moved_variance) = (mean.clone(), variance.clone());
            let statistics = match dependence {
                Dependence::Batch => Statistics::Batch { mean: &mut moved_mean, variance: &mut moved_variance },
                Dependence::Frozen => Statistics::Running { mean: &mean, variance: &variance },
            };
            let layer = Forward { x, residual: has_residual.then_some(residual), gamma, beta, activation };
            let mut y = vec![f32::NAN; n];
            norm::forward(isa, &layer, statistics, &mut saved, &mut scratch, &mut y);
            (y, saved)
        };
        let (y, saved) = forward(&x, &gamma, &beta, &residual);
        let (mut dx, mut d_residual) = (vec![f32::NAN; n], vec![f32::NAN; n]);
        let (mut d_gamma, mut d_beta) = (vec![f32::NAN; n_channels], vec![f32::NAN; n_channels]);
        let relu_output = (activation == Activation::Relu).then_some(&y[..]);
        let layer = Backward { x: &x, relu_output, dy: &dy, gamma: &gamma, dependence };
        let gradients = Gradients {
            dx: &mut dx,
            dx_write: Write::Replace,
            residual: has_residual.then_some((&mut d_residual[..], Write::Replace)),
            gamma: &mut d_gamma,
            beta: &mut d_beta,
        };
        norm::backward(isa, &layer, &saved, &mut Scratch::default(), gradients);
        let what = |part: &str| {
            format!(
                "{part}: {rows} x {n_channels}, residual {has_residual}, {activation:?}, {dependence:?}, {}",
                isa.name()
            )
        };
        // ReLUs that switch within the step, and rounding.
        let step = (1e-3, 0.02);
        check(&what("input"), (&x, &dx, &dy), step, |x| forward(x, &gamma, &beta, &residual).0);
        check(&what("scale"), (&gamma, &d_gamma, &dy), step, |gamma| forward(&x, gamma, &beta, &residual).0);
        check(&what("shift"), (&beta, &d_beta, &dy), step, |beta| forward(&x, &gamma, beta, &residual).0);
        if has_residual {
            check(&what("residual"), (&residual, &d_residual, &dy), step, |r| forward(&x, &gamma, &beta, r).0);
        }
    }
}

#[test]
fn batch_normalisation() {
    // Two images of 4x4, three of 5x3.
    for (rows, n_channels) in [(2 * 16, 16), (3 * 15, 5)] {
        for has_residual in [false, true] {
            for activation in [Activation::None, Activation::Relu] {
                for dependence in [Dependence::Batch, Dependence::Frozen] {
                    check_norm(rows, n_channels, has_residual, activation, dependence);
                }
            }
        }
    }
}

#[test]
fn rectifier_and_sum() {
    for n in [2 * 48, 3 * 35] {
        let (x, dy) = (spread("x", n), normals("dy", n));
        for isa in Isa::available() {
            let forward = |x: &[f32]| {
                let mut y = vec![f32::NAN; n];
                elementwise::relu_forward(isa, x, &mut y);
                y
            };
            let mut dx = vec![f32::NAN; n];
            elementwise::relu_backward(isa, &forward(&x), &dy, Write::Replace, &mut dx);
            check(&format!("relu {n} {}", isa.name()), (&x, &dx, &dy), (0.02, 1e-3), forward);
            let other = normals("other", n);
            elementwise::pass(isa, &dy, Write::Replace, &mut dx);
            check(&format!("sum {n} {}", isa.name()), (&x, &dx, &dy), LINEAR, |x| {
                let mut y = vec![f32::NAN; n];
                elementwise::add(isa, x, &other, &mut y);
                y
            });
        }
    }
}

#[test]
fn pools() {
    for (height, width, channels, n) in [(4, 6, 16, 2), (5, 7, 3, 3), (2, 3, 17, 2)] {
        let image = Image { height, width, channels };
        let x = spread("x", n * height * width * channels);
        for isa in Isa::available() {
            let what = |pool: &str| format!("{pool} {height}x{width}x{channels} {}", isa.name());
            let dy = normals("dy", n * (height / 2) * (width / 2) * channels);
            let mut dx = vec![f32::NAN; x.len()];
            pool::max_backward(isa, image, &x, &dy, Write::Replace, &mut dx);
            check(&what("maximum"), (&x, &dx, &dy), (0.02, 1e-3), |x| {
                let mut y = vec![f32::NAN; dy.len()];
                pool::max_forward(isa, image, x, &mut y);
                y
            });
            let dy = normals("dy", n * channels);
            pool::average_backward(isa, image, &dy, Write::Replace, &mut dx);
            check(&what("average"), (&x, &dx, &dy), LINEAR, |x| {
                let mut y = vec![f32::NAN; dy.len()];
                pool::average_forward(isa, image, x, &mut y);
                y
            });
        }
    }
}

#[test]
fn linear_layer() {
    for (n, n_in, n_out) in [(2, 64, 10), (3, 37, 5), (2, 512, 10)] {
        let (x, w) = (normals("x", n * n_in), normals("w", n_in * n_out));
        let (bias, dy) = (normals("bias", n_out), normals("dy", n * n_out));
        for isa in Isa::available() {
            let what = |part: &str| format!("{part} of linear {n} {n_in} {n_out} {}", isa.name());
            let forward = |x: &[f32], w: &[f32], bias: &[f32]| {
                let mut y = vec![f32::NAN; dy.len()];
                linear::forward(isa, x, w, bias, &mut y);
                y
            };
            let (mut dx, mut dw, mut db) = (vec![f32::NAN; x.len()], vec![f32::NAN; w.len()], vec![f32::NAN; n_out]);
            linear::backward_input(isa, &dy, &w, n_out, Write::Replace, &mut dx);
            linear::backward_weights(isa, &x, &dy, &mut dw, &mut db);
            check(&what("input"), (&x, &dx, &dy), LINEAR, |x| forward(x, &w, &bias));
            check(&what("weights"), (&w, &dw, &dy), LINEAR, |w| forward(&x, w, &bias));
            check(&what("bias"), (&bias, &db, &dy), LINEAR, |bias| forward(&x, &w, bias));
        }
    }
}

#[test]
fn noise_has_the_gradient_of_the_identity() {
    let draws = stream("noise");
    for (n, per_sample) in [(2, 64), (3, 35)] {
        let (x, dy) = (normals("x", n * per_sample), normals("dy", n * per_sample));
        for isa in Isa::available() {
            check(&format!("noise {n} {per_sample} {}", isa.name()), (&x, &dy, &dy), LINEAR, |x| {
                let mut y = vec![f32::NAN; dy.len()];
                noise::add(isa, &draws, Key { step: 3, layer: 1 }, 0.5, per_sample, x, &mut y);
                y
            });
        }
    }
}

#[test]
fn cross_entropy() {
    for (n, n_classes) in [(2, 10), (3, 5)] {
        for smoothing in [0.0, 0.1] {
            let logits = normals("logits", n * n_classes);
            let labels: Vec<i64> = (0..n as i64).map(|i| i * 2 % n_classes as i64).collect();
            let losses = |logits: &[f32], gradient: &mut [f32]| {
                loss::cross_entropy(logits, &labels, n_classes, smoothing, gradient).unwrap()
            };
            let mut gradient = vec![f32::NAN; logits.len()];
            losses(&logits, &mut gradient);
            // The mean over the batch.
            let share = vec![1.0 / n as f32; n];
            check(
                &format!("{n} x {n_classes}, smoothing {smoothing}"),
                (&logits, &gradient, &share),
                (0.01, 1e-3),
                |l| losses(l, &mut vec![0.0; l.len()]),
            );
        }
    }
}
