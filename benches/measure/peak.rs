//! The machine's roof, measured in the same run as what is compared with it.

use runner::error::{Error, Result};
use runner::kernels::product::{Matrix, Target, product};
use runner::kernels::{Isa, peak};
use std::time::Instant;

/// What the machine can do on some number of threads, in GFLOP/s; a multiply-add counts as two operations.
#[derive(Clone, Copy, Debug)]
pub struct Peak {
    /// Products of large matrices, through the path that our own products take.
    pub gemm: f64,
    /// Multiply-adds on registers.
    pub multiply_adds: f64,
}

/// Sides of the matrices: 4 MiB each, far beyond L2, as large as the products of a training step.
const SIDE: usize = 1024;

/// Measures both, each thread on its own matrices; the best of several rounds, for a roof is the best there is.
///
/// # Errors
/// Threads that cannot be started.
pub fn measure(isa: Isa, threads: usize) -> Result<Peak> {
    const ROUNDS: usize = 8;
    const LOOPS: usize = 4_000_000;
    let pool = pool(threads)?;
    let mut peak = Peak { gemm: 0.0, multiply_adds: 0.0 };
    let mut work: Vec<[Vec<f32>; 3]> = (0..threads)
        .map(|thread| {
            let values = |seed: usize| (0..SIDE * SIDE).map(|i| ((i * seed + thread) % 17) as f32 - 8.0).collect();
            [values(3), values(5), vec![0.0; SIDE * SIDE]]
        })
        .collect();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        pool.scope(|scope| {
            for [a, b, c] in &mut work {
                let (a, b) = (Matrix::new(a, SIDE, SIDE), Matrix::new(b, SIDE, SIDE));
                scope.spawn(move |_| product(c, Target::Fresh, a, b));
            }
        });
        let flops = 2.0 * (SIDE * SIDE * SIDE * threads) as f64;
        peak.gemm = peak.gemm.max(flops * 1e-9 / start.elapsed().as_secs_f64());
        let start = Instant::now();
        let flops: f64 = pool.broadcast(|_| peak::multiply_adds(isa, LOOPS).0).iter().sum();
        peak.multiply_adds = peak.multiply_adds.max(flops * 1e-9 / start.elapsed().as_secs_f64());
    }
    Ok(peak)
}

/// Threads of the kernels.
///
/// # Errors
/// Threads that cannot be started.
pub fn pool(threads: usize) -> Result<rayon::ThreadPool> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|error| Error::machine(format!("cannot start {threads} threads: {error}")))
}
