//! Seconds of whole training epochs of 50,000 images on GPU 0, by batch and precision.
//!
//! `cargo bench --features cuda --bench gpu [-- MODEL ...]`; the peer is `benches/peers/torch_gpu.py`, on the same machine.

use runner::artifact::Split;
use runner::kernels::Precision;
use runner::kernels::cuda::Gpu;
use runner::nn::augment::{self, Augment, Normalise};
use runner::nn::engine::{Epoch, Trainer};
use runner::nn::optim::{Config as Sgd, Kind, Optimiser};
use runner::nn::{Architecture, Config, Network};
use runner::rng::Streams;
use std::sync::Arc;
use std::time::Instant;

/// Epochs of ResNet-18, or of the models named.
fn main() {
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
fn bench_gpu(gpu: &Arc<Gpu>, architecture: Architecture, batch: usize, precision: Precision) {
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
    let augment = Augment { crop: 4, flip: true, cutout: 0 };
    let rates = vec![0.01; N.div_ceil(batch)];
    let (mut seconds, mut loss) = (Vec::new(), 0.0);
    for epoch in 0..=EPOCHS {
        let start = Instant::now();
        let order = streams.stream("order").at(epoch as u64).permutation(N);
        let draws = augment::draws(N, (32, 32), &order, (augment, &streams.stream("augment"), epoch));
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

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
