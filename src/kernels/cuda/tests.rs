//! Every kernel against the CPU's, in both element types: emulated everywhere, and on the real GPU where there is one.

use super::conv::{Convolution, Shape};
use super::gpu::Plain;
use super::ops::{self, MAX_PARTIALS, Norm, Ops, Scratch};
use super::{Address, Buffer, Element, Gpu, devices};
use crate::kernels::conv::Geometry;
use crate::kernels::reference::{self, check, values, wide};
use crate::kernels::{Activation, Isa, Precision, Write, elementwise, linear, noise, norm, pool};
use crate::rng::Streams;
use std::sync::Arc;

/// The emulated GPU, and the real one if this machine has one: with a stream of its own, since tests run side by side.
pub(crate) fn gpus() -> Vec<Arc<Gpu>> {
    let mut gpus = vec![Gpu::emulated()];
    match devices() {
        Err(missing) => println!("NOT RUN on a GPU: {missing}"),
        // A GPU that is there and cannot be used is a failure.
        Ok(_) => gpus.push(Gpu::new(0).unwrap()),
    }
    gpus
}

/// One GPU and element type under test.
struct Bench {
    gpu: Arc<Gpu>,
    element: Element,
    tolerance: f64,
}

fn each(test: impl Fn(&Bench)) {
    for gpu in gpus() {
        for (element, tolerance) in [(Element::F32, 1e-5), (Element::Bf16, 1e-2)] {
            test(&Bench { gpu: gpu.clone(), element, tolerance });
        }
    }
}

impl Bench {
    fn ops(&self) -> Ops<'_> {
        Ops { gpu: &self.gpu, element: self.element }
    }

    /// Values that the element type holds exactly.
    fn values(&self, seed: u32, n: usize) -> Vec<f32> {
        let mut values = values(seed, n);
        if self.element == Element::Bf16 {
            values.iter_mut().for_each(|v| *v = f32::from_bits(v.to_bits() & 0xffff_0000));
        }
        values
    }

    fn raw<T: Plain>(&self, values: &[T]) -> Buffer {
        let buffer = Buffer::new(&self.gpu, size_of_val(values)).unwrap();
        self.gpu.upload(values, &buffer, 0).unwrap();
        buffer
    }

    fn put(&self, values: &[f32]) -> Buffer {
        match self.element {
            Element::F32 => self.raw(values),
            Element::Bf16 => {
                // Guards the buffer's end as well: bfloat16 leaves no room for more.
                let low: Vec<u16> = values.iter().map(|v| (v.to_bits() >> 16) as u16).collect();
                self.raw(&low)
            }
        }
    }

    fn get(&self, buffer: &Buffer) -> Vec<f32> {
        match self.element {
            Element::F32 => self.floats(buffer),
            Element::Bf16 => {
                let mut low = vec![0u16; buffer.bytes() / 2];
                self.gpu.download(buffer, 0, &mut low).unwrap();
                low.into_iter().map(|bits| f32::from_bits(u32::from(bits) << 16)).collect()
            }
        }
    }

    fn floats(&self, buffer: &Buffer) -> Vec<f32> {
        let mut values = vec![0.0; buffer.bytes() / 4];
        self.gpu.download(buffer, 0, &mut values).unwrap();
        values
    }

    #[track_caller]
    fn check(&self, what: &str, got: &Buffer, expected: &[f32]) {
        let what = format!("{what}, {:?} on {}", self.element, self.gpu.name());
        check(&what, &self.get(got), &wide(expected), self.tolerance);
    }

    #[track_caller]
    fn check_floats(&self, what: &str, got: &Buffer, expected: &[f32]) {
        let what = format!("{what}, {:?} on {}", self.element, self.gpu.name());
        check(&what, &self.floats(got), &wide(expected), self.tolerance);
    }
}

#[test]
fn cuda_sums_and_rectifiers() {
    // More than a block, and not a multiple of one.
    const N: usize = 8 * 333;
    each(|bench| {
        let (x, z, dy) = (bench.values(1, N), bench.values(2, N), bench.values(3, N));
        let (on_x, on_z, on_dy) = (bench.put(&x), bench.put(&z), bench.put(&dy));
        let isa = Isa::best();
        let mut expected = vec![0.0; N];
        elementwise::add(isa, &x, &z, &mut expected);
        let y = bench.put(&dy);
        bench.ops().add(N, on_x.address(), on_z.address(), y.address()).unwrap();
        bench.check("sum", &y, &expected);
        for write in [Write::Add, Write::Replace] {
            let (mut passed, mut gated) = (dy.clone(), dy.clone());
            elementwise::pass(isa, &x, write, &mut passed);
            elementwise::relu_backward(isa, &x, &z, write, &mut gated);
            let (y, dx) = (bench.put(&dy), bench.put(&dy));
            bench.ops().pass(N, on_x.address(), write, y.address()).unwrap();
            bench.check("pass", &y, &passed);
            bench.ops().relu_backward(N, on_x.address(), on_z.address(), write, dx.address()).unwrap();
            bench.check("gate", &dx, &gated);
        }
        elementwise::relu_forward(isa, &x, &mut expected);
        bench.ops().relu_forward(N, on_x.address(), y.address()).unwrap();
        bench.check("rectifier", &y, &expected);
        let bias = values(4, 24);
        let biased: Vec<f32> = dy.iter().enumerate().map(|(i, v)| v + bias[i % 24]).collect();
        bench.ops().add_bias(N / 24, 24, bench.raw(&bias).address(), on_dy.address()).unwrap();
        bench.check("bias", &on_dy, &biased);
    });
}

#[test]
fn cuda_nan_stays_visible() {
    each(|bench| {
        let x = bench.put(&[f32::NAN, -1.0, 0.0, 2.0, f32::NAN, -1.0, 0.0, 2.0]);
        let y = bench.put(&[0.0; 8]);
        bench.ops().relu_forward(8, x.address(), y.address()).unwrap();
        let y = bench.get(&y);
        assert!(y[0].is_nan() && y[1] == 0.0 && y[3] == 2.0, "{y:?}");
    });
}

/// A scratch large enough for every test.
fn scratch(bench: &Bench) -> (Buffer, Buffer) {
    let partials = Buffer::new(&bench.gpu, MAX_PARTIALS * 2 * 512 * 4).unwrap();
    (partials, Buffer::new(&bench.gpu, 3 * 512 * 4).unwrap())
}

fn check_norm(bench: &Bench, rows: usize, channels: usize, activation: Activation, of_batch: bool, residual: bool) {
    let what = |pass: &str| format!("{pass} of {rows} x {channels} {activation:?} {of_batch} {residual}");
    let n = rows * channels;
    let (x, added, dy) = (bench.values(1, n), bench.values(2, n), bench.values(3, n));
    let (gamma, beta) = (values(4, channels), values(5, channels));
    let (mean, variance) = (values(6, channels), values(7, channels).iter().map(|v| v.abs() + 0.5).collect::<Vec<_>>());
    let isa = Isa::best();

    let layer =
        norm::Forward { x: &x, residual: residual.then_some(&added[..]), gamma: &gamma, beta: &beta, activation };
    let (mut saved, mut cpu_scratch) = (norm::Saved::new(channels), norm::Scratch::default());
    let (mut new_mean, mut new_variance) = (mean.clone(), variance.clone());
    let mut y = vec![0.0; n];
    let statistics = match of_batch {
        true => norm::Statistics::Batch { mean: &mut new_mean, variance: &mut new_variance },
        false => norm::Statistics::Running { mean: &mean, variance: &variance },
    };
    norm::forward(isa, &layer, statistics, &mut saved, &mut cpu_scratch, &mut y);

    let [on_gamma, on_beta, on_mean, on_variance] = [&gamma, &beta, &mean, &variance].map(|values| bench.raw(values));
    let on_saved = Buffer::new(&bench.gpu, 16 * channels).unwrap();
    let numbers = Norm {
        gamma: on_gamma.address(),
        beta: on_beta.address(),
        mean: on_mean.address(),
        variance: on_variance.address(),
        saved: on_saved.address(),
    };
    let (partials, coefficients) = scratch(bench);
    let memory = Scratch { partials: partials.address(), coefficients: coefficients.address() };
    let (on_x, on_added, on_dy) = (bench.put(&x), bench.put(&added), bench.put(&dy));
    let on_y = bench.put(&dy);
    let second = residual.then_some(on_added.address());
    let size = (rows, channels);
    bench
        .ops()
        .norm_forward(size, of_batch, numbers, memory, on_x.address(), second, activation, on_y.address())
        .unwrap();
    bench.check(&what("output"), &on_y, &y);
    bench.check_floats(&what("running mean"), &on_mean, &new_mean);
    bench.check_floats(&what("running variance"), &on_variance, &new_variance);

    // Both backward passes look at the same outputs.
    let y = bench.get(&on_y);
    let relu_output = (activation == Activation::Relu).then_some(&y[..]);
    for (dx_write, residual_write) in [(Write::Replace, Write::Add), (Write::Add, Write::Replace)] {
        let dependence = if of_batch { norm::Dependence::Batch } else { norm::Dependence::Frozen };
        let layer = norm::Backward { x: &x, relu_output, dy: &dy, gamma: &gamma, dependence };
        let (mut dx, mut d_residual) = (added.clone(), added.clone());
        let (mut d_gamma, mut d_beta) = (vec![0.0; channels], vec![0.0; channels]);
        let gradients = norm::Gradients {
            dx: &mut dx,
            dx_write,
            residual: residual.then_some((&mut d_residual[..], residual_write)),
            gamma: &mut d_gamma,
            beta: &mut d_beta,
        };
        norm::backward(isa, &layer, &saved, &mut cpu_scratch, gradients);

        let (on_dx, on_residual) = (bench.put(&added), bench.put(&added));
        let (on_d_gamma, on_d_beta) = (bench.raw(&gamma), bench.raw(&gamma));
        bench
            .ops()
            .norm_backward(
                size,
                of_batch,
                numbers,
                memory,
                (on_x.address(), relu_output.map(|_| on_y.address()), on_dy.address()),
                (on_d_gamma.address(), on_d_beta.address()),
                (on_dx.address(), dx_write),
                residual.then_some((on_residual.address(), residual_write)),
            )
            .unwrap();
        bench.check(&what("input gradient"), &on_dx, &dx);
        bench.check(&what("residual gradient"), &on_residual, &d_residual);
        bench.check_floats(&what("scale gradient"), &on_d_gamma, &d_gamma);
        bench.check_floats(&what("shift gradient"), &on_d_beta, &d_beta);
    }
}

#[test]
fn cuda_norms_agree_with_the_cpu() {
    each(|bench| {
        // Few rows; several ranges of rows; vectors of channels that are no power of two, and more than a block's.
        for (rows, channels) in [(3, 16), (1_100, 24), (70, 128), (2_500, 8)] {
            check_norm(bench, rows, channels, Activation::Relu, true, true);
            check_norm(bench, rows, channels, Activation::None, true, false);
            check_norm(bench, rows, channels, Activation::Relu, false, false);
        }
    });
}

#[test]
fn cuda_bias_gradients_are_sums() {
    each(|bench| {
        let (rows, channels) = (777, 24);
        let dy = bench.values(1, rows * channels);
        let mut expected = vec![0.0; channels];
        norm::bias_gradient(Isa::best(), &dy, &mut norm::Scratch::default(), &mut expected);
        let (partials, coefficients) = scratch(bench);
        let memory = Scratch { partials: partials.address(), coefficients: coefficients.address() };
        let d_bias = bench.raw(&vec![9.0f32; channels]);
        bench.ops().bias_gradient((rows, channels), bench.put(&dy).address(), memory, d_bias.address()).unwrap();
        bench.check_floats("bias gradient", &d_bias, &expected);
    });
}

#[test]
fn cuda_pools_agree_with_the_cpu() {
    each(|bench| {
        for (height, width, channels) in [(4, 4, 16), (5, 7, 8), (2, 3, 24)] {
            let n = 3;
            let image = pool::Image { height, width, channels };
            let len = n * height * width * channels;
            let pooled = n * (height / 2) * (width / 2) * channels;
            let (x, dy) = (bench.values(1, len), bench.values(2, pooled.max(n * channels)));
            let (on_x, on_dy) = (bench.put(&x), bench.put(&dy));
            let size = (height, width, channels);
            let positions = (height * width, channels);
            let isa = Isa::best();
            let (mut y, mut mean) = (vec![0.0; pooled], vec![0.0; n * channels]);
            pool::max_forward(isa, image, &x, &mut y);
            pool::average_forward(isa, image, &x, &mut mean);
            let (on_y, on_mean) = (bench.put(&y), bench.put(&mean));
            bench.ops().max_forward(n, size, on_x.address(), on_x.address(), on_y.address()).unwrap();
            bench.check("maxima", &on_y, &y);
            bench.ops().average_forward(n, positions, on_x.address(), on_mean.address()).unwrap();
            bench.check("averages", &on_mean, &mean);
            for write in [Write::Replace, Write::Add] {
                let (mut of_max, mut of_mean) = (x.clone(), x.clone());
                pool::max_backward(isa, image, &x, &dy[..pooled], write, &mut of_max);
                pool::average_backward(isa, image, &dy[..n * channels], write, &mut of_mean);
                let (on_max, on_mean) = (bench.put(&x), bench.put(&x));
                let pair = (on_x.address(), on_dy.address());
                bench.ops().max_backward(n, size, pair, write, on_max.address()).unwrap();
                bench.check("gradient of maxima", &on_max, &of_max);
                bench.ops().average_backward(n, positions, on_dy.address(), write, on_mean.address()).unwrap();
                bench.check("gradient of averages", &on_mean, &of_mean);
            }
        }
        // All equal: the first takes the gradient.
        let (ones, on_dx) = (bench.put(&[1.0; 32]), bench.put(&[0.0; 32]));
        let pair = (ones.address(), ones.address());
        bench.ops().max_backward(1, (2, 2, 8), pair, Write::Replace, on_dx.address()).unwrap();
        let dx = bench.get(&on_dx);
        assert!(dx[..8].iter().all(|&d| d == 1.0) && dx[8..].iter().all(|&d| d == 0.0), "{dx:?}");
    });
}

#[test]
fn cuda_linear_layers_agree_with_the_cpu() {
    each(|bench| {
        for (rows, n_in, n_out) in [(5, 64, 10), (19, 40, 3)] {
            let (x, w, b) = (bench.values(1, rows * n_in), values(2, n_in * n_out), values(3, n_out));
            let dy = values(4, rows * n_out);
            let isa = Isa::best();
            let (mut y, mut dx) = (vec![0.0; rows * n_out], x.clone());
            let (mut dw, mut db) = (vec![0.0; w.len()], vec![0.0; n_out]);
            linear::forward(isa, &x, &w, &b, &mut y);
            linear::backward_input(isa, &dy, &w, n_out, Write::Add, &mut dx);
            linear::backward_weights(isa, &x, &dy, &mut dw, &mut db);
            let (on_x, on_w, on_b, on_dy) = (bench.put(&x), bench.raw(&w), bench.raw(&b), bench.raw(&dy));
            let (on_y, on_dx, on_dw, on_db) = (bench.raw(&dy), bench.put(&x), bench.raw(&w), bench.raw(&b));
            let (ops, size) = (bench.ops(), (rows, n_in, n_out));
            ops.linear_forward(size, on_x.address(), (on_w.address(), on_b.address()), on_y.address()).unwrap();
            bench.check_floats("logits", &on_y, &y);
            ops.linear_backward_input(size, (on_dy.address(), on_w.address()), Write::Add, on_dx.address()).unwrap();
            bench.check("input gradient", &on_dx, &dx);
            let targets = (on_dw.address(), on_db.address());
            ops.linear_backward_weights(size, (on_x.address(), on_dy.address()), targets).unwrap();
            bench.check_floats("weight gradient", &on_dw, &dw);
            bench.check_floats("bias gradient", &on_db, &db);
        }
    });
}

#[test]
fn cuda_noise_has_the_bits_of_the_cpu() {
    each(|bench| {
        // More than a chunk of 512, and not a multiple of one.
        let (samples, per_sample) = (3, 1_304);
        let stream = Streams::new(1, "test").stream("noise");
        let x = bench.values(1, samples * per_sample);
        let mut expected = x.clone();
        let key = noise::Key { step: 70_000, layer: 3 };
        noise::add(Isa::best(), &stream, key, 0.4, per_sample, &x, &mut expected);
        let words: Vec<u32> = stream.key().as_chunks().0.iter().map(|&b| u32::from_le_bytes(b)).collect();
        // The step's number has two parts.
        let step = bench.raw(&ops::encode_step(5, 3, 69_997));
        let (on_x, on_y, on_key) = (bench.put(&x), bench.put(&x), bench.raw(&words));
        bench
            .ops()
            .noise((samples, per_sample), 0.4, on_key.address(), 3, step.address(), on_x.address(), on_y.address())
            .unwrap();
        match bench.element {
            Element::F32 => assert_eq!(bench.get(&on_y), expected, "on {}", bench.gpu.name()),
            Element::Bf16 => bench.check("noise", &on_y, &expected),
        }
    });
}

fn check_conv(gpu: &Arc<Gpu>, precision: Precision, geometry: Geometry) {
    const N: usize = 3;
    let element = if precision == Precision::Bf16 { Element::Bf16 } else { Element::F32 };
    let tolerance = match precision {
        Precision::F32 => 1e-5,
        Precision::Tf32 => 5e-3,
        Precision::Bf16 => 1e-2,
    };
    let bench = Bench { gpu: gpu.clone(), element, tolerance };
    let g = geometry;
    let n_in = N * g.height * g.width * g.in_channels;
    let n_out = N * g.out_height() * g.out_width() * g.out_channels;
    let (x, w, dy) = (bench.values(1, n_in), bench.values(2, g.n_weights()), bench.values(3, n_out));
    // [tap][in][out] to [out][tap][in].
    let place = |i: usize| {
        let (tap, ci, co) =
            (i / g.out_channels / g.in_channels, i / g.out_channels % g.in_channels, i % g.out_channels);
        (co * g.n_taps() + tap) * g.in_channels + ci
    };
    let mut on_device = vec![0.0; w.len()];
    (0..w.len()).for_each(|i| on_device[place(i)] = w[i]);
    let y = reference::conv(&g, N, &wide(&x), &wide(&w), &vec![0.0; g.out_channels]);
    let (dx, dw) = reference::conv_gradients(&g, N, &wide(&x), &wide(&w), &wide(&dy));
    let mut dw_device = vec![0.0; dw.len()];
    (0..dw.len()).for_each(|i| dw_device[place(i)] = dw[i]);

    let [on_x, on_w, on_dy] = [&x, &on_device, &dy].map(|values| bench.put(values));
    let [on_y, on_dx, on_dw] = [&dy, &x, &w].map(|values| bench.put(values));
    let mut convolution = Convolution::new(gpu, Shape { geometry, n: N }, precision).unwrap();
    let what = |pass: &str| format!("{pass} {g:?} {precision:?} on {}", gpu.name());
    convolution.forward(gpu, on_x.address(), on_w.address(), on_y.address()).unwrap();
    check(&what("forward"), &bench.get(&on_y), &y, tolerance);
    convolution.backward_weights(gpu, on_x.address(), on_dy.address(), on_dw.address()).unwrap();
    check(&what("weight gradient"), &bench.get(&on_dw), &dw_device, tolerance);
    let mut pass = |write: Write, target: &Buffer| {
        let target: Address = target.address();
        convolution.backward_input(gpu, on_w.address(), on_dy.address(), write, target).unwrap();
    };
    pass(Write::Replace, &on_dx);
    check(&what("input gradient"), &bench.get(&on_dx), &dx, tolerance);
    pass(Write::Add, &on_dx);
    let doubled: Vec<f64> = dx.iter().map(|d| 2.0 * d).collect();
    check(&what("added input gradient"), &bench.get(&on_dx), &doubled, tolerance);
}

#[test]
fn cuda_convolutions_agree_with_the_reference() {
    for gpu in gpus() {
        for precision in [Precision::F32, Precision::Tf32, Precision::Bf16] {
            for (size, channels) in [((8, 8), (8, 16)), ((7, 5), (16, 32)), ((4, 4), (64, 64))] {
                for (kernel, stride) in [(3, 1), (3, 2), (1, 2), (1, 1)] {
                    let (height, width) = size;
                    let (in_channels, out_channels) = channels;
                    let padding = kernel / 2;
                    check_conv(
                        &gpu,
                        precision,
                        Geometry { height, width, in_channels, out_channels, kernel, stride, padding },
                    );
                }
            }
        }
    }
}

#[test]
fn cuda_buffers_keep_their_bounds() {
    for gpu in gpus() {
        let buffer = Buffer::new(&gpu, 16).unwrap();
        assert!(gpu.upload(&[1.0f32; 5], &buffer, 0).is_err());
        assert!(gpu.upload(&[1.0f32; 2], &buffer, 12).is_err());
        assert!(gpu.download(&buffer, usize::MAX, &mut [0u8; 2]).is_err());
        gpu.upload(&[1.0f32; 2], &buffer, 8).unwrap();
        let mut values = [9.0f32; 4];
        gpu.download(&buffer, 0, &mut values).unwrap();
        assert_eq!(values, [0.0, 0.0, 1.0, 1.0], "zero at first");
    }
}

#[test]
fn cuda_sequences_can_be_recorded() {
    for gpu in gpus() {
        let step = Buffer::new(&gpu, ops::STEP_BYTES).unwrap();
        let recording = gpu.record(|| ops::advance(&gpu, 7, step.address())).unwrap();
        let emulated = gpu.name() == "emulated";
        assert_eq!(recording.is_none(), emulated, "only a real GPU records");
        let mut seen = [0u32; 4];
        gpu.download(&step, 0, &mut seen).unwrap();
        assert_eq!(seen, [0; 4], "recording runs nothing");
        if let Some(recording) = recording {
            recording.replay().unwrap();
            recording.replay().unwrap();
            gpu.download(&step, 0, &mut seen).unwrap();
            assert_eq!(seen, [14, 2, 0, 0]);
        }
    }
}
