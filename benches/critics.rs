//! The critics of one observed epoch, and the values that estimators find: `cargo bench --bench critics`.
//!
//! - *Price.* 8 subsets x 2 planes, I(X;T) and I(T;Y): 16 critics, trained side by side on two threads; medians of
//!   several runs, initial weights, data and one readout included.
//! - *Values.* Every estimator on the Gaussian pair of 2.919 nats, three critic seeds.
//!
//! `-- --json` prints a JSON line per result; `-- --export DIR` writes the samples of the pair as raw f32, so that
//! `benches/peers/torch_estimators.py` reads the same data. Run both in turn on a machine that does nothing else.

use runner::information::estimator::{Chosen, Constants, ESTIMATORS};
use runner::information::fit::{Fit, Form, Schedule, Settings, Task, stack};
use runner::information::gaussian::Gaussian;
use runner::information::interval;
use runner::information::pairs::{Pairs, Variable};
use runner::rng::{Stream, Streams};
use serde_json::json;
use std::path::Path;
use std::time::Instant;

const PIXELS: usize = 3072;
const SUBSETS: usize = 8;
const LOGITS: usize = 10;
/// Samples of a subset: a class of the embedded images, poisoned at a tenth.
const N: usize = 450;
const THREADS: usize = 2;
const RUNS: usize = 5;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let is_json = arguments.iter().any(|argument| argument == "--json");
    let export = arguments.iter().position(|argument| argument == "--export").and_then(|at| arguments.get(at + 1));
    let stream = Streams::new(0, "bench").stream("samples");
    let Ok(pool) = rayon::ThreadPoolBuilder::new().num_threads(THREADS).build() else { return };
    pool.install(|| {
        for (name, form, hidden, batch, width, steps) in [
            ("quick", Form::Concat, 64, 64, 64, 50),
            ("paper", Form::Concat, 128, 128, 512, 10),
            ("separable", Form::Separable, 64, 64, 64, 50),
        ] {
            let settings = Settings { form, hidden, batch, steps, ..settings() };
            price(name, &settings, width, &stream, is_json);
        }
        values(export.map(Path::new), &stream, is_json);
    });
}

fn settings() -> Settings {
    Settings {
        estimator: Chosen::default(),
        constants: Constants::default(),
        form: Form::Concat,
        hidden: 32,
        embedding: 16,
        standardize: false,
        batch: 128,
        steps: 400,
        learning_rate: 4e-3,
        schedule: Schedule::Cosine,
        weight_decay: 1e-4,
        clip: 5.0,
        readouts: 1,
        held_out: 0.25,
        patience: None,
    }
}

/// Trains; a bench that cannot is a bug of ours.
fn train(tasks: &[Task<'_>]) -> Vec<Fit> {
    stack(tasks, &|| false, &|| ()).unwrap_or_else(|error| panic!("{error}"))
}

/// One observed epoch.
fn price(name: &str, settings: &Settings, width: usize, stream: &Stream, is_json: bool) {
    let mut draws = stream.child("pixels");
    let bytes: Vec<u8> = (0..PIXELS * N * SUBSETS).map(|_| draws.below(256) as u8).collect();
    let representations = stream.child("representation").normals(N * SUBSETS * width, 1.0);
    let logits = stream.child("logits").normals(N * SUBSETS * LOGITS, 1.0);
    let pairs: Vec<Pairs<'_>> = (0..SUBSETS)
        .flat_map(|k| {
            let images = bytes[k * N * PIXELS..(k + 1) * N * PIXELS].chunks_exact(PIXELS).collect();
            let of = |values, width| Variable::Reals { values, width };
            let t = of(&representations[k * N * width..(k + 1) * N * width], width);
            let y = of(&logits[k * N * LOGITS..(k + 1) * N * LOGITS], LOGITS);
            [Pairs { a: Variable::Bytes { rows: images }, b: t.clone() }, Pairs { a: t, b: y }]
        })
        .collect();
    let task = |(k, pairs)| Task { pairs, settings, stream: stream.child(&format!("{k}")) };
    let tasks: Vec<Task<'_>> = pairs.iter().enumerate().map(task).collect();
    let mut seconds: Vec<f64> = (0..RUNS)
        .map(|_| {
            let start = Instant::now();
            train(&tasks);
            start.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    let milliseconds = seconds[RUNS / 2] * 1e3 / (tasks.len() * settings.steps) as f64;
    let Settings { form, hidden, batch, steps, .. } = settings;
    if is_json {
        println!(
            "{}",
            json!({
                "bench": "critics", "case": name, "critics": tasks.len(), "steps": steps, "hidden": hidden,
                "batch": batch, "width": width, "threads": THREADS, "median_s": seconds[RUNS / 2],
                "ms_per_step": milliseconds, "runs": RUNS,
            })
        );
    } else {
        println!(
            "{name}: {} critics, {form:?} h {hidden} B {batch} T {width}, {steps} steps, {THREADS} threads: {:.3} s, \
             {milliseconds:.3} ms a step",
            tasks.len(),
            seconds[RUNS / 2]
        );
    }
}

/// The Gaussian pair by every estimator.
fn values(export: Option<&Path>, stream: &Stream, is_json: bool) {
    let n = 8000;
    let (a, b) = Gaussian::PAIR.sample(n, &stream.child("pair"));
    if let Some(dir) = export {
        let write = |name: &str, values: &[f32]| {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            std::fs::write(dir.join(name), bytes).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        };
        write("pair_a.f32", &a);
        write("pair_b.f32", &b);
    }
    let (width_a, width_b) = Gaussian::PAIR.widths;
    let pairs =
        Pairs { a: Variable::Reals { values: &a, width: width_a }, b: Variable::Reals { values: &b, width: width_b } };
    for estimator in ESTIMATORS {
        let settings = Settings { estimator: Chosen(estimator), standardize: true, readouts: 20, ..settings() };
        let seed = |k: usize| Task { pairs: &pairs, settings: &settings, stream: stream.child(&format!("value/{k}")) };
        let fits = train(&(0..3).map(seed).collect::<Vec<_>>());
        let Some(found) = interval::join(&fits.iter().collect::<Vec<_>>(), stream) else { continue };
        let (name, truth) = (estimator.name, Gaussian::PAIR.information());
        if is_json {
            println!(
                "{}",
                json!({
                    "bench": "critics", "case": "gaussian_pair", "estimator": name, "true_nats": truth,
                    "estimate_nats": found.estimate, "interval": [found.low, found.high],
                })
            );
        } else {
            println!("{name}: {:.3} [{:.3}, {:.3}] of {truth:.3} nats", found.estimate, found.low, found.high);
        }
    }
}
