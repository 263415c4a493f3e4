//! Whole-process time of commands on a warm cache: `cargo bench --bench warm`.
//!
//! Brings the quick profile of the main pipeline up to date first (in the project's cache, or RUNNER_CACHE), then times
//! each command as a process from start to end. Limit: 10 ms for a run that computes nothing.

use std::process::{Command, Stdio};
use std::time::Instant;

const ROUNDS: usize = 51;

fn main() {
    let pipeline = concat!(env!("CARGO_MANIFEST_DIR"), "/pipelines/cifar10_badnet.toml");
    let quick = ["--profile", "quick"];
    let command = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_runner"));
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let first = command(&["run", pipeline, quick[0], quick[1]]).status();
    assert!(first.is_ok_and(|status| status.success()), "the quick profile must run first");
    let rows: [(&str, Vec<&str>); 4] = [
        ("runner --version", vec!["--version"]),
        ("runner run (nothing to do)", vec!["run", pipeline, quick[0], quick[1]]),
        ("runner plan", vec!["plan", pipeline, quick[0], quick[1]]),
        ("runner status", vec!["status", pipeline, quick[0], quick[1]]),
    ];
    println!("{:<28}{:>10}{:>10}{:>10}  ms, {ROUNDS} processes", "", "min", "median", "max");
    for (name, args) in rows {
        let mut times: Vec<f64> = (0..ROUNDS)
            .map(|_| {
                let start = Instant::now();
                let ok = command(&args).status().is_ok_and(|status| status.success());
                assert!(ok, "{name} failed");
                start.elapsed().as_secs_f64() * 1e3
            })
            .collect();
        times.sort_by(f64::total_cmp);
        println!("{name:<28}{:>10.2}{:>10.2}{:>10.2}", times[0], times[ROUNDS / 2], times[ROUNDS - 1]);
    }
}
