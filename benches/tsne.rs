//! t-SNE of 5,000 points of 64 dimensions on two threads, beside openTSNE in the same run:
//! `cargo bench --bench tsne [-- METHOD ...]`, METHOD out of `fft` and `bh` (both if none is named).
//!
//! Ten Gaussian groups, perplexity 30, 1,000 iterations of which 250 exaggerated, both from principal components.
//! Neighbours kept: share of the 10 nearest of 64 dimensions among the 10 nearest in the plane, by one function for all.
//! PYTHON names the interpreter that has openTSNE; without it only our own times are printed, for 1,000 to 10,000 points.

use runner::embedding::neighbours::preserved;
use runner::embedding::tsne::{Settings, lay_out, start_from_components};
use runner::rng::Streams;
use std::process::Command;
use std::time::Instant;

const WIDTH: usize = 64;

fn main() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("a thread pool");
    pool.install(|| {
        let methods: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
        println!("{:<22} {:>7} {:>9} {:>16} {:>8}", "method", "points", "seconds", "neighbours kept", "KL");
        match std::env::var("PYTHON") {
            Ok(python) => beside_open_tsne(&python, &methods),
            Err(_) => [1_000, 2_000, 5_000, 10_000].map(|n| ours(&points(n))).into_iter().for_each(drop),
        }
    });
}

/// Ten groups with centres of standard deviation 4.
fn points(n: usize) -> Vec<f32> {
    let stream = Streams::new(0, "bench").stream("tsne");
    let centres = stream.child("centres").normals(10 * WIDTH, 4.0);
    let mut points = stream.child("points").normals(n * WIDTH, 1.0);
    for (i, point) in points.chunks_exact_mut(WIDTH).enumerate() {
        let centre = &centres[i % 10 * WIDTH..];
        point.iter_mut().zip(centre).for_each(|(value, centre)| *value += centre);
    }
    points
}

/// Seconds.
fn ours(points: &[f32]) -> f64 {
    let begin = Instant::now();
    let start = start_from_components(points, WIDTH, Streams::new(0, "bench").stream("start")).expect("a start");
    let layout = lay_out(points, WIDTH, &start, &Settings::default(), &|_| Ok(())).expect("a layout");
    let seconds = begin.elapsed().as_secs_f64();
    report("ours, exact", points, &layout.positions, seconds, &format!("{:.3}", layout.divergence));
    seconds
}

fn report(name: &str, points: &[f32], positions: &[[f32; 2]], seconds: f64, divergence: &str) {
    let kept = preserved(points, WIDTH, positions, 10);
    println!("{name:<22} {:>7} {seconds:>9.2} {kept:>16.4} {divergence:>8}", positions.len());
}

fn beside_open_tsne(python: &str, methods: &[String]) {
    let points = points(5_000);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (input, output) = (dir.path().join("points.f32"), dir.path().join("positions.f32"));
    let bytes: Vec<u8> = points.iter().flat_map(|value| value.to_le_bytes()).collect();
    std::fs::write(&input, bytes).expect("a file of points");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/opentsne.py");
    let first = ours(&points);
    let mut fastest = f64::INFINITY;
    for method in ["fft", "bh"].into_iter().filter(|method| methods.is_empty() || methods.iter().any(|m| m == method)) {
        let command =
            Command::new(python).arg(script).args([&input, &output]).args([&WIDTH.to_string(), method]).output();
        let answer = command.expect("the interpreter that PYTHON names");
        let text = String::from_utf8_lossy(&answer.stdout).into_owned();
        let mut words = text.split_whitespace();
        let (Some(Ok(seconds)), Some(divergence)) = (words.next().map(str::parse::<f64>), words.next()) else {
            println!("openTSNE failed: {}", String::from_utf8_lossy(&answer.stderr));
            return;
        };
        let bytes = std::fs::read(&output).expect("positions");
        let values: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let positions: Vec<[f32; 2]> = values.chunks_exact(2).map(|at| [at[0], at[1]]).collect();
        report(&format!("openTSNE, {method}"), &points, &positions, seconds, divergence);
        fastest = fastest.min(seconds);
    }
    let last = ours(&points);
    println!("openTSNE takes {:.1} times as long (ours: the slower of two rounds)", fastest / first.max(last));
}
