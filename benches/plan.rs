//! The time to read, check and plan a pipeline of 1,000 stages (about 155 KB), and the same with a matrix.
//!
//! `cargo bench --bench plan`

use runner::config::Options;
use runner::plan::plan_text;
use std::path::Path;
use std::time::{Duration, Instant};

fn main() {
    report("1,000 stages, a chain with side inputs", &chain(1000));
    report(
        "100 stages at 20 points of a matrix",
        &(chain(100).replace("value = 0\n", "value = \"${v}\"\n") + &axis(20)),
    );
}

/// A pipeline whose stages read the one before and one long before.
fn chain(n_stages: usize) -> String {
    let mut text = String::from("name = \"bench\"\n");
    for stage in 0..n_stages {
        let value = stage as f64;
        text.push_str(&format!(
            "\n# Stage number {stage} of the chain, as a person would write it.\n[stages.stage_{stage}]\nstage = \"test/echo\"\n"
        ));
        text.push_str(&format!("value = {value}\nend = \"well\"\nrange = {{ low = 0.0, high = 2.5 }}\n"));
        if stage > 0 {
            text.push_str(&format!(
                "from = {{ tables = [\"stage_{}\", \"stage_{}.output\"] }}\n",
                stage - 1,
                stage / 3
            ));
        }
    }
    text
}

fn axis(n_values: usize) -> String {
    let values: Vec<String> = (0..n_values).map(|value| value.to_string()).collect();
    format!("\n[matrix]\nv = [{}]\n", values.join(", "))
}

fn report(title: &str, text: &str) {
    let mut times: Vec<Duration> = (0..50)
        .map(|_| {
            let start = Instant::now();
            let plan = plan_text(Path::new("bench.toml"), text, &Options::default());
            let elapsed = start.elapsed();
            assert!(plan.is_ok_and(|plan| !plan.nodes.is_empty()), "the benchmark's pipeline is good");
            elapsed
        })
        .collect();
    times.sort_unstable();
    println!("{title}: {} bytes, best {:?}, median {:?}", text.len(), times[0], times[times.len() / 2]);
}
