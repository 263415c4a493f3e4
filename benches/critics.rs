//! Training a stack of four critics beside PyTorch: `cargo bench --bench critics [-- --threads N] [--json]`.
//!
//! The estimator of `evaluate/information`: InfoNCE between 2,048 images and representations. PyTorch
//! (`benches/peers/torch_infonce.py`) trains the same four critics one after another; for the concatenated critic the
//! faster counts of two ways to write it. Rounds of both sides alternate; a ratio is our speed over theirs.

mod measure;

use clap::Parser;
use measure::contest::{self, Case};
use measure::side::{self, Side};
use measure::{conclude, peak};
use runner::error::{Error, Result};
use runner::information::fit::{Form, Schedule, Settings, Task, stack};
use runner::information::pairs::{Pairs, Variable};
use runner::kernels::Isa;
use runner::rng::Streams;
use serde_json::{Value, json};
use std::process::ExitCode;

/// The allocator of the program that is measured.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const N: usize = 2048;
const PIXELS: usize = 3072;
const CRITICS: usize = 4;

/// Form, hidden units, batch, width of the representation, and training steps of each critic in one call.
const CASES: [(Form, usize, usize, usize, usize); 4] = [
    (Form::Concat, 128, 128, 512, 10),
    (Form::Concat, 64, 64, 64, 100),
    (Form::Separable, 128, 128, 512, 50),
    (Form::Separable, 64, 64, 64, 250),
];

/// Critics beside PyTorch.
#[derive(Parser)]
#[command(name = "critics")]
struct Arguments {
    /// Threads of either side; may be repeated [default: 1 and 2].
    #[arg(long)]
    threads: Vec<usize>,
    /// Seconds a case, at least three rounds.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
    /// Leave PyTorch out.
    #[arg(long)]
    no_peer: bool,
    #[arg(long, hide = true)]
    serve: bool,
    /// What cargo tells every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    conclude(if arguments.serve { side::serve(set_up) } else { compare(&arguments) })
}

fn compare(arguments: &Arguments) -> Result<()> {
    let threads = if arguments.threads.is_empty() { &[1, 2][..] } else { &arguments.threads };
    let mut peer = if arguments.no_peer { None } else { Side::peer_or_note("torch_infonce.py", threads) };
    let isa = Isa::best();
    if !arguments.json {
        println!("{}", contest::title(isa, peer.as_ref()));
    }
    for &n_threads in threads {
        let roof = peak::measure(isa, n_threads)?;
        if !arguments.json {
            println!("{}", contest::head("pairs", n_threads, &roof));
        }
        for (form, hidden, batch, width, steps) in CASES {
            let (name, variants) = match form {
                Form::Concat => ("concat", vec!["broadcast".to_string(), "concat".to_string()]),
                Form::Separable => ("separable", vec!["separable".to_string()]),
            };
            let case = Case {
                name: format!("{name} h{hidden} T{width}"),
                unit: "pairs",
                batch,
                samples: CRITICS * steps * batch,
                steps: CRITICS * steps,
                threads: n_threads,
                device: "cpu".to_string(),
                settings: json!({
                    "form": name, "hidden": hidden, "width": width, "steps": steps, "critics": CRITICS, "n": N,
                    "pixels": PIXELS, "embedding": 16,
                }),
                variants,
                flops: None,
            };
            let outcome = contest::run(&case, peer.as_mut(), arguments.seconds)?;
            if arguments.json {
                println!("{}", contest::object(&case, &outcome, &roof, isa, peer.as_ref()));
            } else {
                println!("{}", contest::line(&case, &outcome, &roof));
            }
        }
    }
    Ok(())
}

/// Makes the step of a case: a stack trained from its first values.
fn set_up(case: &Value) -> Result<side::Step> {
    let number = |name: &str| case[name].as_u64().unwrap_or_default() as usize;
    let width = number("width");
    let form = match case["form"].as_str() {
        Some("concat") => Form::Concat,
        Some("separable") => Form::Separable,
        other => return Err(Error::machine(format!("no form of critic: {other:?}"))),
    };
    let settings = Settings {
        form,
        hidden: number("hidden"),
        embedding: number("embedding"),
        standardize: false,
        batch: number("batch"),
        steps: number("steps"),
        learning_rate: 3e-4,
        schedule: Schedule::Cosine,
        weight_decay: 1e-4,
        clip: 5.0,
        readouts: 1,
        held_out: 0.1,
        patience: None,
    };
    let stream = Streams::new(0, "bench").stream("samples");
    let mut draws = stream.child("pixels");
    let bytes: Vec<u8> = (0..PIXELS * N).map(|_| draws.below(256) as u8).collect();
    let representation = stream.child("representation").normals(N * width, 1.0);
    Ok(Box::new(move || {
        let rows: Vec<&[u8]> = bytes.chunks_exact(PIXELS).collect();
        let pairs = Pairs { a: Variable::Bytes { rows }, b: Variable::Reals { values: &representation, width } };
        let tasks: Vec<Task<'_>> = (0..CRITICS)
            .map(|k| Task { pairs: &pairs, settings: &settings, stream: stream.child(&k.to_string()) })
            .collect();
        stack(&tasks, &|| false, &|| ()).map(drop)
    }))
}
