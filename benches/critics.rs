//! The price of a critic's step in a stack of four, on one and on two threads: `cargo bench --bench critics`.
//!
//! `benches/peers/torch_infonce.py` measures the same in PyTorch; run both in turn on a machine that does nothing else.

use runner::information::estimator::{Chosen, Constants};
use runner::information::fit::{Form, Schedule, Settings, Task, stack};
use runner::information::pairs::{Pairs, Variable};
use runner::rng::Streams;
use std::time::Instant;

const N: usize = 2048;
const PIXELS: usize = 3072;
const CRITICS: usize = 4;

fn main() {
    let stream = Streams::new(0, "bench").stream("samples");
    let mut draws = stream.child("pixels");
    let bytes: Vec<u8> = (0..PIXELS * N).map(|_| draws.below(256) as u8).collect();
    let rows: Vec<&[u8]> = bytes.chunks_exact(PIXELS).collect();
    for (form, hidden, batch, width, steps) in [
        (Form::Concat, 128, 128, 512, 40),
        (Form::Concat, 64, 64, 64, 400),
        (Form::Separable, 128, 128, 512, 200),
        (Form::Separable, 64, 64, 64, 1000),
    ] {
        let representation = stream.child("representation").normals(N * width, 1.0);
        let pairs =
            Pairs { a: Variable::Bytes { rows: rows.clone() }, b: Variable::Reals { values: &representation, width } };
        let settings = Settings {
            estimator: Chosen::default(),
            constants: Constants::default(),
            form,
            hidden,
            embedding: 16,
            standardize: false,
            batch,
            steps,
            learning_rate: 3e-4,
            schedule: Schedule::Cosine,
            weight_decay: 1e-4,
            clip: 5.0,
            readouts: 1,
            held_out: 0.1,
            patience: None,
        };
        let tasks: Vec<Task<'_>> = (0..CRITICS)
            .map(|k| Task { pairs: &pairs, settings: &settings, stream: stream.child(&k.to_string()) })
            .collect();
        for threads in [1, 2] {
            let Ok(pool) = rayon::ThreadPoolBuilder::new().num_threads(threads).build() else { continue };
            let start = Instant::now();
            if let Err(error) = pool.install(|| stack(&tasks, &|| false, &|| ())) {
                println!("{error}");
                return;
            }
            let milliseconds = start.elapsed().as_secs_f64() * 1e3 / (CRITICS * steps) as f64;
            println!("{form:?} h {hidden} B {batch} T {width}: {threads} threads, {milliseconds:.3} ms a step");
        }
    }
}
