//! Whole training steps beside PyTorch: `cargo bench --bench step [-- MODEL ...] [--batch N] [--threads N] [--json]`.
//!
//! A step is forward, cross-entropy, backward and SGD with momentum on random images, through the library's own loss
//! and optimiser; reading and augmenting images is not part of it (`cargo bench --bench loader`). PyTorch runs the same
//! networks (`tests/peers/torch_models.py`) in eager mode, in both memory formats, the faster of which counts. Rounds
//! of both sides alternate; a ratio is our speed over theirs, the median over the pairs.
//!
//! `--layers MODEL` measures the convolutions of a model one by one instead.

#[path = "../measure/mod.rs"]
mod measure;

mod layers;

use clap::Parser;
use measure::contest::{self, Case};
use measure::side::{self, Side};
use measure::{conclude, peak};
use runner::error::{Error, Result};
use runner::exec::device::Choice;
use runner::kernels::Isa;
use runner::nn::graph::{Graph, Op};
use runner::nn::optim::{self, Optimiser};
use runner::nn::{Architecture, Config, Mode, Network, loss};
use runner::rng::Streams;
use serde_json::{Value, json};
use std::process::ExitCode;

/// The allocator of the program that is measured.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Classes of CIFAR-10.
const CLASSES: usize = 10;

/// What is measured unless something else is asked for: model and batch.
const CASES: [(Architecture, usize); 7] = [
    (Architecture::Resnet18, 32),
    (Architecture::Resnet18, 128),
    (Architecture::Resnet18, 256),
    (Architecture::PreactResnet18, 128),
    (Architecture::Vgg16Bn, 128),
    (Architecture::Resnet20, 128),
    (Architecture::Resnet8, 128),
];

/// Training steps beside PyTorch.
#[derive(Parser)]
#[command(name = "step")]
struct Arguments {
    /// Models to measure; all if there is none.
    models: Vec<String>,
    /// Only this batch size; may be one that is not measured otherwise.
    #[arg(long)]
    batch: Option<usize>,
    /// Threads of either side; may be repeated [default: 1 and 2].
    #[arg(long)]
    threads: Vec<usize>,
    /// Where we compute: `cpu`, `cuda:N`.
    #[arg(long, default_value = "cpu")]
    device: Choice,
    /// Seconds a case, at least three rounds.
    #[arg(long, default_value_t = 20.0)]
    seconds: f64,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
    /// Leave PyTorch out.
    #[arg(long)]
    no_peer: bool,
    /// Measure every convolution of this model by itself.
    #[arg(long, value_name = "MODEL")]
    layers: Option<String>,
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
    on_the_cpu(arguments.device)?;
    let threads = if arguments.threads.is_empty() { &[1, 2][..] } else { &arguments.threads };
    if let Some(model) = &arguments.layers {
        let architecture = Architecture::find(model)?;
        return threads.iter().try_for_each(|&n| layers::measure(architecture, arguments.batch.unwrap_or(128), n));
    }
    let wanted = arguments.models.iter().map(|name| Architecture::find(name)).collect::<Result<Vec<_>>>()?;
    let mut cases: Vec<(Architecture, usize)> =
        CASES.into_iter().filter(|(model, _)| wanted.is_empty() || wanted.contains(model)).collect();
    if let Some(batch) = arguments.batch {
        cases = cases.into_iter().map(|(model, _)| (model, batch)).collect();
        cases.dedup();
    }
    let mut peer = if arguments.no_peer { None } else { Side::peer_or_note("torch_step.py", threads) };
    let isa = Isa::best();
    if !arguments.json {
        println!("{}", contest::title(isa, peer.as_ref()));
    }
    for &n_threads in threads {
        let roof = peak::measure(isa, n_threads)?;
        if !arguments.json {
            println!("{}", contest::head("images", n_threads, &roof));
        }
        for &(architecture, batch) in &cases {
            let case = Case {
                name: architecture.name().to_string(),
                unit: "images",
                batch,
                samples: batch,
                steps: 1,
                threads: n_threads,
                device: arguments.device.to_string(),
                settings: json!({}),
                variants: vec!["contiguous".to_string(), "channels-last".to_string()],
                flops: Some(batch as f64 * flops_per_image(Network::new(&config(architecture))?.graph())),
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

fn config(architecture: Architecture) -> Config {
    Config { architecture, n_classes: CLASSES, size: (32, 32), sigma_xt: 0.0, sigma_ty: 0.0 }
}

/// Floating-point operations of a training step in convolutions and linear layers: the forward pass, as many for the
/// weights' gradient and, but for the layer that reads the images, as many for the input's.
fn flops_per_image(graph: &Graph) -> f64 {
    let of_node = |node: &runner::nn::graph::Node| {
        let forward = match &node.op {
            Op::Conv { geometry, .. } => geometry.flops(),
            Op::Linear { weight, .. } => 2.0 * weight.len() as f64,
            _ => return 0.0,
        };
        forward * if node.inputs == [0] { 2.0 } else { 3.0 }
    };
    graph.nodes.iter().map(of_node).sum()
}

/// Steps here are the CPU's.
fn on_the_cpu(device: Choice) -> Result<()> {
    match device {
        Choice::Auto | Choice::Cpu => Ok(()),
        Choice::Cuda(_) => Err(Error::user(format!("`--device {device}`: this bench measures the CPU"))
            .hint("GPUs are measured by `cargo bench --features cuda --bench gpu`")),
    }
}

/// Makes the step of a case, as training does it.
fn set_up(case: &Value) -> Result<side::Step> {
    let text = |name: &str| case[name].as_str().unwrap_or_default();
    let batch = case["batch"].as_u64().unwrap_or(0) as usize;
    on_the_cpu(text("device").parse().map_err(Error::user)?)?;
    let mut network = Network::new(&config(Architecture::find(text("name"))?))?;
    let streams = Streams::new(0, "bench");
    network.init(&streams.stream("init"));
    let images = streams.stream("images").normals(batch * 32 * 32 * 3, 1.0); // [n, H, W, 3]
    let labels: Vec<i64> = (0..batch).map(|i| (i % CLASSES) as i64).collect();
    let sgd = optim::Config { kind: optim::Kind::Sgd, momentum: 0.9, nesterov: false, weight_decay: 5e-4 };
    let mut optimiser = Optimiser::new(sgd, network.n_parameters());
    Ok(Box::new(move || {
        let logits = network.forward(&images, batch, Mode::Train)?; // [n, K]
        let mut gradient = vec![0.0; logits.len()];
        loss::cross_entropy(logits, &labels, CLASSES, 0.0, &mut gradient)?;
        network.backward(&gradient)?;
        let (parameters, gradients) = network.params_and_grads();
        optimiser.step(parameters, gradients, 0.05);
        Ok(())
    }))
}
