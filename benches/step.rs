//! Time of a training step (forward, backward, SGD with momentum), by model and number of threads.
//!
//! `cargo bench --bench step [-- MODEL ...]`: medians of wall time and of the process's CPU time over alternating rounds.
//! With `--cuda` behind the `--` and a build with `--features cuda`: seconds of whole epochs of 50,000 images on GPU 0, by
//! batch and precision; the peer is peers/torch_gpu.py.

use runner::nn::{Architecture, Config, Mode, Network};
use runner::rng::Streams;
use std::time::Instant;

fn main() {
    if std::env::args().any(|argument| argument == "--cuda") {
        return on_gpu();
    }
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let cases = [
        (Architecture::Resnet8, 64),
        (Architecture::Resnet20, 128),
        (Architecture::Resnet18, 32),
        (Architecture::PreactResnet18, 32),
        (Architecture::Vgg16Bn, 32),
    ];
    println!(
        "{:<16} {:>5} {:>7} {:>9} {:>9} {:>10} {:>8}",
        "model", "batch", "threads", "wall ms", "cpu ms", "images/s", "isa"
    );
    for (architecture, batch) in cases {
        if wanted.is_empty() || wanted.iter().any(|name| name == architecture.name()) {
            for threads in [1, 2] {
                bench(architecture, batch, threads);
            }
        }
    }
}

#[cfg(not(feature = "cuda"))]
fn on_gpu() {
    panic!("this build computes on the CPU only: say `--features cuda`");
}

/// Epochs of ResNet-18, or of the models named.
#[cfg(feature = "cuda")]
fn on_gpu() {
    use runner::kernels::{Precision, cuda::Gpu};
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let gpu = Gpu::new(0).expect("a GPU");
    println!("{}", gpu.name());
    println!("{:<16} {:>5} {:>9} {:>9} {:>10} {:>9}", "model", "batch", "precision", "s/epoch", "images/s", "loss");
    for architecture in Architecture::ALL {
        let is_default = wanted.is_empty() && architecture == Architecture::Resnet18;
        if is_default || wanted.iter().any(|name| name == architecture.name()) {
            for batch in [128, 512, 1024] {
                for precision in [Precision::F32, Precision::Tf32, Precision::Bf16] {
                    bench_gpu(&gpu, architecture, batch, precision);
                }
            }
        }
    }
}

/// The clock covers whole epochs: order, draws, all steps, losses and parameters back on the host. The first is not counted.
#[cfg(feature = "cuda")]
fn bench_gpu(
    gpu: &std::sync::Arc<runner::kernels::cuda::Gpu>,
    architecture: Architecture,
    batch: usize,
    precision: runner::kernels::Precision,
) {
    use runner::artifact::Split;
    use runner::nn::augment::{self, Augment, Normalise};
    use runner::nn::engine::{Epoch, Trainer};
    use runner::nn::optim::{Config as Sgd, Kind, Optimiser};
    const N: usize = 50_000;
    const EPOCHS: usize = 3;
    let streams = Streams::new(0, "bench");
    let config = Config { architecture, n_classes: 10, size: (32, 32), sigma_xt: 0.0, sigma_ty: 0.0 };
    let mut network = Network::new(&config).expect("a network");
    network.init(&streams.stream("init"));
    network.move_to(gpu, precision).expect("a network on the GPU");
    let mut bytes = streams.stream("pixels");
    let pixels = (0..N * 3072 / 8).flat_map(|_| bytes.next_u64().to_le_bytes()).collect();
    let split = Split::clean((32, 32), pixels, (0..N as i64).map(|i| i % 10).collect()).expect("a split");
    let sgd = Sgd { kind: Kind::Sgd, momentum: 0.9, nesterov: false, weight_decay: 5e-4 };
    let mut optimiser = Optimiser::new(sgd, network.n_parameters());
    let normalise = Normalise::new([0.5; 3], [0.5; 3]).expect("a normalisation");
    let mut trainer =
        Trainer::new(&mut network, &split, N, &normalise, (batch, 0.0), (sgd, &optimiser)).expect("a trainer");
    let rates = vec![0.01; N.div_ceil(batch)];
    let (mut seconds, mut loss) = (Vec::new(), 0.0);
    for epoch in 0..=EPOCHS {
        let start = Instant::now();
        let order = streams.stream("order").at(epoch as u64).permutation(N);
        let draws = augment::draws(N, &order, (Augment { crop: 4, flip: true }, &streams.stream("augment"), epoch));
        let epoch = Epoch { order: &order, draws: &draws, rates: &rates, done: 0, noise: None };
        trainer.begin(&mut network, &epoch).expect("an epoch");
        while !trainer.is_done() {
            trainer.step(&mut network).expect("a step");
        }
        let outcomes = trainer.collect().expect("losses");
        loss = outcomes.iter().map(|outcome| f64::from(outcome.loss)).sum::<f64>() / N as f64;
        trainer.finish(&mut network, &mut optimiser).expect("parameters");
        seconds.push(start.elapsed().as_secs_f64());
    }
    let epoch = median(seconds.split_off(1));
    let (name, precision) = (architecture.name(), precision.name());
    println!("{name:<16} {batch:>5} {precision:>9} {epoch:>9.3} {:>10.0} {loss:>9.3}", N as f64 / epoch);
}

fn bench(architecture: Architecture, batch: usize, threads: usize) {
    const ROUNDS: usize = 7;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
    let config = Config { architecture, n_classes: 10, size: (32, 32), sigma_xt: 0.0, sigma_ty: 0.0 };
    let mut network = Network::new(&config).expect("a network");
    network.init(&Streams::new(0, "bench").stream("init"));
    let images = Streams::new(0, "bench").stream("images").normals(batch * 32 * 32 * 3, 1.0);
    let mut momentum = vec![0.0; network.n_parameters()];
    let (mut wall, mut cpu) = (Vec::new(), Vec::new());
    pool.install(|| {
        for round in 0..ROUNDS + 2 {
            let (start, cpu_start) = (Instant::now(), cpu_seconds());
            step(&mut network, &images, batch, &mut momentum);
            // Two rounds to warm up: buffers, tables, caches.
            if round >= 2 {
                wall.push(start.elapsed().as_secs_f64());
                cpu.push(cpu_seconds() - cpu_start);
            }
        }
    });
    let (wall, cpu) = (median(wall), median(cpu));
    println!(
        "{:<16} {batch:>5} {threads:>7} {:>9.1} {:>9.1} {:>10.0} {:>8}",
        architecture.name(),
        wall * 1e3,
        cpu * 1e3,
        batch as f64 / wall,
        network.isa().name()
    );
}

fn step(network: &mut Network, images: &[f32], batch: usize, momentum: &mut [f32]) {
    let logits = network.forward(images, batch, Mode::Train).expect("a forward pass");
    let mut gradient = logits.to_vec();
    for (i, row) in gradient.chunks_exact_mut(10).enumerate() {
        let largest = row.iter().copied().fold(f32::MIN, f32::max);
        let sum: f32 = row.iter().map(|v| (v - largest).exp()).sum();
        for (k, v) in row.iter_mut().enumerate() {
            *v = ((*v - largest).exp() / sum - f32::from(u8::from(k == i % 10))) / batch as f32;
        }
    }
    network.backward(&gradient).expect("a backward pass");
    let (parameters, gradients) = network.params_and_grads();
    for ((p, m), g) in parameters.iter_mut().zip(momentum).zip(gradients) {
        *m = 0.9 * *m + g + 5e-4 * *p;
        *p -= 0.05 * *m;
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// CPU time of the process, all threads.
fn cpu_seconds() -> f64 {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let stat = read("/proc/self/schedstat");
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let of = |text: String| text.split_whitespace().next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(0.0);
    let all: f64 = tasks.map(|task| of(read(&task.path().join("schedstat").to_string_lossy()))).sum();
    if all > 0.0 { all * 1e-9 } else { of(stat) * 1e-9 }
}
