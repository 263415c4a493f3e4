//! Rounds that alternate between us and a peer, so that a slow moment of the machine hits both; and what is printed.

use super::median;
use super::peak::Peak;
use super::side::{Side, Times};
use runner::error::Result;
use runner::kernels::Isa;
use serde_json::{Value, json};

/// What is compared.
pub struct Case {
    /// What tables call it.
    pub name: String,
    /// What `samples` counts, in the plural: `images`.
    pub unit: &'static str,
    /// Of a training step.
    pub batch: usize,
    /// Samples that one call of the step takes in: the batch, or a multiple where a call is many training steps.
    pub samples: usize,
    /// Training steps of one call.
    pub steps: usize,
    /// Threads of either side.
    pub threads: usize,
    /// Where we compute.
    pub device: String,
    /// What the sides are told besides.
    pub settings: Value,
    /// Ways in which the peer can run it; the fastest counts.
    pub variants: Vec<String>,
    /// Floating-point operations of a call, a multiply-add counting as two; none if nobody counted.
    pub flops: Option<f64>,
}

/// One side's part of an outcome: medians over the rounds.
pub struct Part {
    /// Of a step.
    pub times: Times,
    /// Largest resident memory of its process, in MiB.
    pub peak_memory_mib: Option<f64>,
}

/// What a peer did, beside us.
pub struct PeerPart {
    /// The side.
    pub part: Part,
    /// The variant that was fastest.
    pub variant: String,
    /// Our speed over the peer's: the median over paired rounds, by the clock and by CPU time.
    pub ratio: f64,
    /// By CPU time, which other programs on the machine disturb less.
    pub cpu_ratio: Option<f64>,
}

/// What came out.
pub struct Outcome {
    /// Our side.
    pub ours: Part,
    /// The peer's, if there is one.
    pub peer: Option<PeerPart>,
    /// Rounds measured.
    pub rounds: usize,
}

/// A round takes at least this long, so that a timer's tick does not matter.
const SHORTEST_ROUND: f64 = 0.25;

/// Runs `case` for about `seconds` on both sides, at least three rounds.
///
/// # Errors
/// What either side says.
pub fn run(case: &Case, peer: Option<&mut Side>, seconds: f64) -> Result<Outcome> {
    let told = |variant: Option<&str>| {
        let mut told = case.settings.clone();
        told["name"] = json!(case.name);
        told["batch"] = json!(case.batch);
        told["threads"] = json!(case.threads);
        told["device"] = json!(case.device);
        told["variant"] = json!(variant);
        told
    };
    let mut ours = Side::ourselves()?;
    ours.set_up(0, &told(None))?;
    // Buffers, tables and caches are made by the first step.
    ours.step(0, 1)?;
    let mut one_step = ours.step(0, 1)?.wall;
    let mut rival: Option<(&mut Side, u64, String)> = None;
    if let Some(peer) = peer {
        let mut best: Option<(f64, u64, &String)> = None;
        for (id, variant) in (1..).zip(&case.variants) {
            peer.set_up(id, &told(Some(variant)))?;
            peer.step(id, 1)?;
            let wall = peer.step(id, 1)?.wall.min(peer.step(id, 1)?.wall);
            match best {
                Some((fastest, ..)) if fastest <= wall => drop(peer.end(id)?),
                _ => {
                    if let Some((_, slower, _)) = best.replace((wall, id, variant)) {
                        peer.end(slower)?;
                    }
                }
            }
        }
        if let Some((wall, id, variant)) = best {
            one_step = one_step.max(wall);
            rival = Some((peer, id, variant.clone()));
        }
    }
    let steps = ((SHORTEST_ROUND / one_step).ceil() as usize).clamp(1, 10_000);
    let sides = if rival.is_some() { 2.0 } else { 1.0 };
    let rounds = ((seconds / (one_step * steps as f64 * sides)) as usize).clamp(3, 21);
    let (mut mine, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        // Who comes first changes from round to round.
        if round % 2 == 0 {
            mine.push(ours.step(0, steps)?);
        }
        if let Some((peer, id, _)) = &mut rival {
            theirs.push(peer.step(*id, steps)?);
        }
        if round % 2 == 1 {
            mine.push(ours.step(0, steps)?);
        }
    }
    let peer = match rival {
        None => None,
        Some((peer, id, variant)) => {
            let ratios = |of: fn(&Times) -> Option<f64>| -> Option<f64> {
                let pairs = mine.iter().zip(&theirs);
                let ratios: Option<Vec<f64>> = pairs.map(|(mine, theirs)| Some(of(theirs)? / of(mine)?)).collect();
                median(ratios?).ok()
            };
            Some(PeerPart {
                variant,
                ratio: ratios(|times| Some(times.wall)).unwrap_or(f64::NAN),
                cpu_ratio: ratios(|times| times.cpu),
                part: Part { times: medians(&theirs)?, peak_memory_mib: peer.end(id)? },
            })
        }
    };
    let ours = Part { times: medians(&mine)?, peak_memory_mib: ours.end(0)? };
    Ok(Outcome { ours, peer, rounds })
}

fn medians(times: &[Times]) -> Result<Times> {
    let cpu: Option<Vec<f64>> = times.iter().map(|times| times.cpu).collect();
    Ok(Times {
        wall: median(times.iter().map(|times| times.wall).collect())?,
        cpu: cpu.and_then(|cpu| median(cpu).ok()),
    })
}

/// What stands above everything.
pub fn title(isa: Isa, peer: Option<&Side>) -> String {
    let ours = format!("runner {} ({})", env!("CARGO_PKG_VERSION"), isa.name());
    let Some(peer) = peer else { return ours };
    let before = peer.memory_mib.map_or(String::new(), |mib| format!(", of which {mib:.0} MiB before it computes"));
    format!("{ours} beside {}; memory is the peak of a process, the peer's{before}", peer.name())
}

/// The head of the table for people.
pub fn head(unit: &str, threads: usize, peak: &Peak) -> String {
    let unit = format!("{unit}/s");
    let roof = format!(
        "{threads} {}: roof of gemm {:.1} GFLOP/s, of multiply-adds on registers {:.1} GFLOP/s",
        if threads == 1 { "thread" } else { "threads" },
        peak.gemm,
        peak.multiply_adds
    );
    let first = format!(
        "{:<22}{:>6}{:>5}{:>11}{:>9}{:>9}{:>9}{:>9}   {:<15}{:>10}{:>9}{:>8}{:>7}",
        "", "", "", "", "", "", "share of", "memory", "peer's", "", "memory", "ratio", "ratio"
    );
    let second = format!(
        "{:<22}{:>6}{:>5}{:>11}{:>9}{:>9}{:>9}{:>9}   {:<15}{:>10}{:>9}{:>8}{:>7}",
        "model", "batch", "thr", unit, "ms CPU", "GFLOP/s", "gemm", "MiB", "best way", unit, "MiB", "clock", "CPU"
    );
    format!("\n{roof}\n{first}\n{second}")
}

/// A line of the table for people.
pub fn line(case: &Case, outcome: &Outcome, peak: &Peak) -> String {
    let or_dash = |value: Option<f64>, digits: usize| value.map_or("-".to_string(), |v| format!("{v:.digits$}"));
    let Outcome { ours, peer, .. } = outcome;
    let rate = |part: &Part| case.samples as f64 / part.times.wall;
    let gflops = case.flops.map(|flops| flops * 1e-9 / ours.times.wall);
    let mut line = format!(
        "{:<22}{:>6}{:>5}{:>11.1}{:>9}{:>9}{:>9}{:>9}",
        case.name,
        case.batch,
        case.threads,
        rate(ours),
        or_dash(ours.times.cpu.map(|cpu| cpu * 1e3 / case.steps as f64), 1),
        or_dash(gflops, 1),
        gflops.map_or("-".to_string(), |gflops| format!("{:.0} %", 100.0 * gflops / peak.gemm)),
        or_dash(ours.peak_memory_mib, 0),
    );
    if let Some(peer) = peer {
        line.push_str(&format!(
            "   {:<15}{:>10.1}{:>9}{:>8.2}{:>7}",
            peer.variant,
            rate(&peer.part),
            or_dash(peer.part.peak_memory_mib, 0),
            peer.ratio,
            or_dash(peer.cpu_ratio, 2)
        ));
    }
    line
}

/// The same for programs. Fields of the peer are null without one.
pub fn object(case: &Case, outcome: &Outcome, peak: &Peak, isa: Isa, peer: Option<&Side>) -> Value {
    let Outcome { ours, peer: theirs, rounds } = outcome;
    let rate = |part: &Part| case.samples as f64 / part.times.wall;
    let theirs = theirs.as_ref();
    let steps = case.steps as f64;
    let mut object = json!({
        "model": case.name, "batch": case.batch, "threads": case.threads, "device": case.device, "precision": "f32",
        "instructions": isa.name(), "rounds": rounds,
        "step_seconds": ours.times.wall / steps, "step_cpu_seconds": ours.times.cpu.map(|cpu| cpu / steps),
        "peak_memory_mib": ours.peak_memory_mib,
        "gflops": case.flops.map(|flops| flops * 1e-9 / ours.times.wall),
        "gemm_gflops": peak.gemm, "multiply_add_gflops": peak.multiply_adds,
        "peer": theirs.and(peer).map(Side::name), "peer_variant": theirs.map(|peer| &peer.variant),
        "peer_step_cpu_seconds": theirs.and_then(|peer| peer.part.times.cpu).map(|cpu| cpu / steps),
        "peer_peak_memory_mib": theirs.map(|peer| peer.part.peak_memory_mib),
        "ratio": theirs.map(|peer| peer.ratio), "cpu_ratio": theirs.map(|peer| peer.cpu_ratio),
    });
    object[format!("{}_per_s", case.unit)] = json!(rate(ours));
    object[format!("peer_{}_per_s", case.unit)] = json!(theirs.map(|peer| rate(&peer.part)));
    object
}
