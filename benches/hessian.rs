//! What a product with the Hessian costs, in gradients of the same batch measured in the same run:
//! `cargo bench --bench hessian [-- MODEL ...]`.
//!
//! A gradient is a forward and a backward pass in evaluation mode; a product is two of them with the gates of the
//! rectifiers held, and a few passes over the weights. Rounds alternate, and a ratio is the median over the pairs. Beside
//! it, what a step of Lanczos' method adds for keeping a vector orthogonal to fifty others.

#[path = "measure/mod.rs"]
mod measure;

use measure::{conclude, median};
use runner::error::Result;
use runner::kernels::{Isa, basis};
use runner::nn::batch_loss::BatchLoss;
use runner::nn::hvp::HessianProduct;
use runner::nn::{Architecture, Config, Network};
use runner::rng::Streams;
use std::process::ExitCode;
use std::time::Instant;

/// The allocator of the program that is measured.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CLASSES: usize = 10;
/// Model, images, pairs of rounds.
const CASES: [(Architecture, usize, usize); 3] =
    [(Architecture::Resnet8, 200, 21), (Architecture::Resnet20, 200, 11), (Architecture::PreactResnet18, 32, 7)];
/// Vectors that one is made orthogonal to.
const BASIS: usize = 50;

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    println!(
        "{:<18}{:>7}{:>14}{:>14}{:>8}{:>16}",
        "model", "images", "gradient, ms", "product, ms", "ratio", "50 vectors, ms"
    );
    let cases = CASES.into_iter().filter(|case| wanted.is_empty() || wanted.iter().any(|name| name == case.0.name()));
    conclude(cases.into_iter().try_for_each(measure_one))
}

fn measure_one((architecture, n, rounds): (Architecture, usize, usize)) -> Result<()> {
    let config = Config { architecture, n_classes: CLASSES, size: (32, 32), sigma_xt: 0.0, sigma_ty: 0.0 };
    let mut network = Network::new(&config)?;
    let streams = Streams::new(0, "bench");
    network.init(&streams.stream("init"));
    let images = streams.stream("images").normals(n * 32 * 32 * 3, 1.0); // [n, H, W, 3]
    let mut batch = BatchLoss::new(images, (0..n).map(|i| (i % CLASSES) as i64).collect())?;
    let mut held = batch.clone();
    held.hold(&mut network)?;
    let n_parameters = network.n_parameters();
    let vector = streams.stream("vector").normals(n_parameters, 1.0);
    let mut product = vec![0.0; n_parameters];
    let mut differences = HessianProduct::new();
    let vectors: Vec<Vec<f32>> =
        (0..BASIS).map(|i| streams.stream("basis").at(i as u64).normals(n_parameters, 1e-4)).collect();
    // Buffers are made by the first product.
    differences.of_network(&mut network, &vector, &mut product, |network| held.gradient(network).map(drop))?;
    let (mut gradients, mut products, mut ratios, mut projections) = (vec![], vec![], vec![], vec![]);
    for _ in 0..rounds {
        let begin = Instant::now();
        batch.gradient(&mut network)?;
        batch.gradient(&mut network)?;
        let gradient = begin.elapsed().as_secs_f64() / 2.0;
        let begin = Instant::now();
        differences.of_network(&mut network, &vector, &mut product, |network| held.gradient(network).map(drop))?;
        let of_product = begin.elapsed().as_secs_f64();
        let begin = Instant::now();
        for _ in 0..2 {
            let factors = basis::coefficients(Isa::best(), &vectors, &product);
            basis::subtract(Isa::best(), &vectors, &factors, &mut product);
        }
        projections.push(begin.elapsed().as_secs_f64());
        ratios.push(of_product / gradient);
        gradients.push(gradient);
        products.push(of_product);
    }
    println!(
        "{:<18}{n:>7}{:>14.1}{:>14.1}{:>8.2}{:>16.2}",
        architecture.name(),
        1e3 * median(gradients)?,
        1e3 * median(products)?,
        median(ratios)?,
        1e3 * median(projections)?
    );
    Ok(())
}
