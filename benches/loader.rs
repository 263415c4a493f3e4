//! From a mapped `.beton` file to augmented, normalised batches: `cargo bench --bench loader [-- --json]`.
//!
//! 50,000 random 32x32 images in a file of our writer; batches of 512 in random order; flip, translation by up to 4,
//! cutout of 8, normalisation to f32 and the labels; on one and on two threads. FFCV's loader (the same file) and
//! torchvision's (the same pixels, and five batches of them a round) do the same work in the same run, as processes of
//! `benches/peers/loader.py` under `PYTHON` or `python3`, in turn with ours. Images a second are medians over the
//! rounds, of whole epochs: the order is drawn within the clock, compilation and the first epoch lie outside. A ratio
//! is our speed over theirs, the median over the rounds; by the clock, and by the CPU time of all threads and
//! processes, which other programs on the machine disturb less.
//!
//! Then what the loader costs a training: ResNet-8, batch 64, loaded and trained on in turn, against the next batch
//! being loaded while a step runs.

#[path = "measure/process.rs"]
mod process;

use runner::artifact::beton::{format::PAGE_SIZE, open_split, write_split};
use runner::artifact::{Files, Split};
use runner::nn::augment::{Augment, Normalise, augmented};
use runner::nn::{Architecture, Config, Mode, Network, loss, optim};
use runner::rng::{Stream, Streams};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

const IMAGES: usize = 50_000;
const BATCH: usize = 512;
const THREADS: [usize; 2] = [1, 2];
const ROUNDS: usize = 5;
/// Epochs of ours in a round, which then takes a good part of the time that FFCV needs for one.
const EPOCHS: usize = 4;
const AUGMENT: Augment = Augment { crop: 4, flip: true, cutout: 8 };

fn main() {
    let as_json = std::env::args().any(|argument| argument == "--json");
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (beton, pixels) = (dir.path().join("images.beton"), dir.path().join("images.u8"));
    write_files(&beton, &pixels);
    let files = Files::new([("images.beton".to_string(), beton.clone())]);
    let split = open_split(&files, "images.beton").expect("the file just written");
    let normalise = Normalise::new([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.201]).expect("deviations above zero");

    let mut peers: Vec<Peer> = ["ffcv", "torchvision"].map(|name| Peer::start(name, &beton, &pixels)).into();
    let mut ours = THREADS.map(|threads| Ours::new(&split, &normalise, threads));
    for round in 0..=ROUNDS {
        for (i, threads) in THREADS.into_iter().enumerate() {
            let rate = ours[i].epochs(round * EPOCHS..(round + 1) * EPOCHS);
            // The first round is there to warm up.
            if round > 0 {
                ours[i].rates.push(rate);
                peers.iter_mut().for_each(|peer| peer.epoch(i, threads));
            }
        }
    }
    report(&ours, &peers, as_json);
    for threads in THREADS {
        train(&split, &normalise, threads, as_json);
    }
}

fn write_files(beton: &Path, pixels: &Path) {
    let mut stream = Streams::new(0, "bench").stream("pixels");
    let bytes: Vec<u8> = (0..IMAGES * 32 * 32 * 3 / 8).flat_map(|_| stream.next_u64().to_le_bytes()).collect();
    std::fs::write(pixels, &bytes).expect("room for the pixels");
    let split = Split::clean((32, 32), bytes, (0..IMAGES as i64).map(|i| i % 10).collect()).expect("a split");
    let mut file = std::io::BufWriter::new(std::fs::File::create(beton).expect("a file"));
    write_split(&split, PAGE_SIZE, &mut file).and_then(|()| Ok(file.flush()?)).expect("room for the file");
}

/// Images a second, by the clock and by the CPU time of all threads; the latter is NaN where the system does not tell.
#[derive(Clone, Copy)]
struct Rate {
    clock: f64,
    cpu: f64,
}

/// Our loader, as training uses it.
struct Ours<'a> {
    split: &'a Split,
    normalise: &'a Normalise,
    pool: rayon::ThreadPool,
    streams: (Stream, Stream),
    order: Vec<usize>,
    images: Vec<f32>,
    labels: Vec<i64>,
    rates: Vec<Rate>,
}

impl<'a> Ours<'a> {
    fn new(split: &'a Split, normalise: &'a Normalise, threads: usize) -> Ours<'a> {
        let streams = Streams::new(0, "bench");
        Ours {
            split,
            normalise,
            pool: pool(threads),
            streams: (streams.stream("order"), streams.stream("augment")),
            order: (0..IMAGES).collect(),
            images: vec![0.0; BATCH * split.image_bytes()],
            labels: Vec::with_capacity(BATCH),
            rates: Vec::new(),
        }
    }

    /// Loads every image once an epoch.
    fn epochs(&mut self, epochs: std::ops::Range<usize>) -> Rate {
        let Ours { split, normalise, pool, streams: (order_stream, stream), order, images, labels, .. } = self;
        let (start, cpu) = (Instant::now(), process::cpu_seconds());
        let n = (epochs.len() * IMAGES) as f64;
        pool.install(|| {
            for epoch in epochs {
                order_stream.at(epoch as u64).shuffle(order);
                for rows in order.chunks(BATCH) {
                    let images = &mut images[..rows.len() * split.image_bytes()];
                    augmented(split, rows, normalise, (AUGMENT, stream, epoch), images).expect("rows of the split");
                    labels.clear();
                    labels.extend(rows.iter().map(|&row| split.label[row]));
                    std::hint::black_box((&images, &labels));
                }
            }
        });
        let clock = start.elapsed().as_secs_f64();
        let cpu = process::cpu_seconds().zip(cpu).map_or(f64::NAN, |(now, before)| now - before);
        Rate { clock: n / clock, cpu: n / cpu }
    }
}

/// Another loader, in a process of its own that waits for its turns; or none, if it is not installed.
struct Peer {
    name: &'static str,
    process: Option<(Child, ChildStdin, BufReader<ChildStdout>)>,
    version: String,
    /// By number of threads.
    rates: [Vec<Rate>; THREADS.len()],
}

impl Peer {
    fn start(name: &'static str, beton: &Path, pixels: &Path) -> Peer {
        let python = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
        let mut command = Command::new(python);
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/loader.py")).arg(name).arg(beton).arg(pixels);
        command.args([IMAGES, BATCH].iter().chain(&THREADS).map(usize::to_string));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut peer = Peer { name, process: None, version: String::new(), rates: Default::default() };
        if let Ok(mut child) = command.spawn()
            && let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take())
        {
            peer.process = Some((child, stdin, BufReader::new(stdout)));
            peer.version =
                peer.answer().and_then(|said| Some(said["version"].as_str()?.to_string())).unwrap_or_default();
        }
        if peer.process.is_none() {
            eprintln!(
                "no {name}: install it (`pip install ffcv pillow torchvision`; FFCV needs the development packages of \
                 OpenCV and libturbojpeg), and name its Python in PYTHON"
            );
        }
        peer
    }

    /// Its next line; a process that has ended is forgotten.
    fn answer(&mut self) -> Option<Value> {
        let (_, _, stdout) = self.process.as_mut()?;
        let mut line = String::new();
        let said = stdout.read_line(&mut line).ok().and_then(|_| serde_json::from_str(&line).ok());
        if said.is_none() {
            self.stop();
        }
        said
    }

    fn epoch(&mut self, i: usize, threads: usize) {
        let images = if self.name == "torchvision" { 5 * BATCH } else { IMAGES };
        if let Some((_, stdin, _)) = &mut self.process
            && writeln!(stdin, "{threads} {images}").is_ok()
            && let Some(said) = self.answer()
            && let (Some(images), Some(seconds)) = (said["images"].as_f64(), said["seconds"].as_f64())
        {
            let cpu = said["cpu_seconds"].as_f64().unwrap_or(f64::NAN);
            self.rates[i].push(Rate { clock: images / seconds, cpu: images / cpu });
        }
    }

    fn stop(&mut self) {
        if let Some((mut child, stdin, _)) = self.process.take() {
            drop(stdin);
            // A loader that does not notice the end of its input is not waited for.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn report(ours: &[Ours; THREADS.len()], peers: &[Peer], as_json: bool) {
    if !as_json {
        println!("{IMAGES} images of 32x32, batch {BATCH}: flip, translate 4, cutout 8, normalise to f32");
        println!(
            "{:<30} {:>7} {:>10} {:>20} {:>12} {:>7} {:>9}",
            "loader", "threads", "images/s", "range", "a CPU second", "ratio", "CPU ratio"
        );
    }
    for (i, threads) in THREADS.into_iter().enumerate() {
        let ours = &ours[i].rates;
        if !as_json {
            row("runner", threads, ours, "");
        }
        for peer in peers {
            let theirs = &peer.rates[i];
            let is_there = theirs.len() == ROUNDS;
            let ratio = |pick: fn(&Rate) -> f64| {
                let rounds = ours.iter().zip(theirs).map(|(ours, theirs)| pick(ours) / pick(theirs));
                median(&rounds.collect::<Vec<_>>())
            };
            let (ratio, cpu_ratio) = (ratio(|rate| rate.clock), ratio(|rate| rate.cpu));
            if as_json {
                let if_there = |value: f64| (is_there && value.is_finite()).then_some(value);
                let line = json!({
                    "loader": "runner", "batch": BATCH, "threads": threads,
                    "images_per_s": middle(ours, |rate| rate.clock).round(),
                    "images_per_cpu_s": middle(ours, |rate| rate.cpu).round(),
                    "peer": peer.name, "peer_version": is_there.then_some(&peer.version),
                    "peer_images_per_s": if_there(middle(theirs, |rate| rate.clock).round()),
                    "peer_images_per_cpu_s": if_there(middle(theirs, |rate| rate.cpu).round()),
                    "ratio": if_there(ratio), "cpu_ratio": if_there(cpu_ratio),
                });
                println!("{line}");
            } else if is_there {
                row(
                    &format!("{} {}", peer.name, peer.version),
                    threads,
                    theirs,
                    &format!("{ratio:>7.1} {cpu_ratio:>9.1}"),
                );
            }
        }
    }
}

fn row(name: &str, threads: usize, rates: &[Rate], ratios: &str) {
    let of_all = |pick: fn(f64, f64) -> f64| rates.iter().map(|rate| rate.clock).reduce(pick).unwrap_or_default();
    let range = format!("{:.0} .. {:.0}", of_all(f64::min), of_all(f64::max));
    let (clock, cpu) = (middle(rates, |rate| rate.clock), middle(rates, |rate| rate.cpu));
    println!("{name:<30} {threads:>7} {clock:>10.0} {range:>20} {cpu:>12.0} {ratios}");
}

fn middle(rates: &[Rate], pick: fn(&Rate) -> f64) -> f64 {
    median(&rates.iter().map(pick).collect::<Vec<_>>())
}

/// Steps of ResNet-8 on batches of 64, each loaded before the step or during the one before.
fn train(split: &Split, normalise: &Normalise, threads: usize, as_json: bool) {
    const BATCH: usize = 64;
    const STEPS: usize = 10;
    let config =
        Config { architecture: Architecture::Resnet8, n_classes: 10, size: (32, 32), sigma_xt: 0.0, sigma_ty: 0.0 };
    let mut network = Network::new(&config).expect("a network");
    network.init(&Streams::new(0, "bench").stream("init"));
    let sgd = optim::Config { kind: optim::Kind::Sgd, momentum: 0.9, nesterov: false, weight_decay: 5e-4 };
    let mut optimiser = optim::Optimiser::new(sgd, network.n_parameters());
    let stream = Streams::new(0, "bench").stream("augment");
    let order = Streams::new(0, "bench").stream("order").permutation(IMAGES);
    let load = |i: usize, images: &mut [f32]| {
        let rows = order.chunks_exact(BATCH).nth(i).expect("as many batches");
        augmented(split, rows, normalise, (AUGMENT, &stream, 0), images).expect("rows of the split");
    };
    let labels: Vec<i64> = (0..BATCH as i64).map(|i| i % 10).collect();
    let mut losses = [0.0; BATCH];
    let mut grad = [0.0; BATCH * 10];
    let mut step = |images: &[f32]| {
        let logits = network.forward(images, BATCH, Mode::Train).expect("a forward pass");
        loss::cross_entropy_into(logits, &labels, 10, 0.0, (&mut losses, &mut grad)).expect("a loss");
        network.backward(&grad).expect("a backward pass");
        let (parameters, gradients) = network.params_and_grads();
        optimiser.step(parameters, gradients, 0.01);
    };
    let mut now = vec![0.0; BATCH * split.image_bytes()];
    let mut next = now.clone();
    // Milliseconds a step: loading and training in turn, and both at once.
    let (mut loads, mut steps, mut in_turn, mut at_once) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    pool(threads).install(|| {
        for round in 0..=ROUNDS {
            let (start, mut loading) = (Instant::now(), 0.0);
            for i in 0..STEPS {
                let start = Instant::now();
                load(round * STEPS + i, &mut now);
                loading += start.elapsed().as_secs_f64();
                step(&now);
            }
            let both = start.elapsed().as_secs_f64();
            let start = Instant::now();
            for i in 0..STEPS {
                rayon::join(|| step(&now), || load(round * STEPS + i + 1, &mut next));
                std::mem::swap(&mut now, &mut next);
            }
            if round > 0 {
                let milliseconds = |seconds: f64| seconds * 1e3 / STEPS as f64;
                loads.push(milliseconds(loading));
                steps.push(milliseconds(both - loading));
                in_turn.push(milliseconds(both));
                at_once.push(milliseconds(start.elapsed().as_secs_f64()));
            }
        }
    });
    let [load, step, in_turn, at_once] = [loads, steps, in_turn, at_once].map(|values| median(&values));
    let share = 100.0 * load / in_turn;
    if as_json {
        let line = json!({
            "model": "resnet8", "batch": BATCH, "threads": threads, "load_ms": load, "step_ms": step,
            "load_share_percent": share, "in_turn_ms": in_turn, "prefetched_ms": at_once,
        });
        println!("{line}");
    } else {
        println!(
            "resnet8, batch {BATCH}, {threads} threads: loading {load:.3} ms and a step {step:.2} ms ({share:.2} % is \
             loading), in turn {in_turn:.2} ms, prefetched {at_once:.2} ms"
        );
    }
}

fn pool(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool")
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
