//! What a person sees while a run goes on: a finished line per node, and on a terminal a live line per running stage.

use super::style::Style;
use super::{bytes, count, duration, note};
use crate::events::Event;
use crate::exec::{Observer, Outcome, RunEvent, Summary};
use crate::plan::Plan;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How much to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Failures only.
    Quiet,
    /// A line per node that ran, one line for all that were cached.
    Normal,
    /// A line per node.
    Verbose,
}

/// Without a terminal, a running stage says how far it is this often.
const PLAIN_EVERY: Duration = Duration::from_secs(15);

/// Writes to standard error.
pub struct Terminal<'a> {
    plan: &'a Plan,
    style: Style,
    verbosity: Verbosity,
    /// Live lines; `None` when standard error is no terminal.
    live: Option<MultiProgress>,
    running: BTreeMap<usize, Running>,
    width: usize,
    start: Instant,
}

struct Running {
    bar: Option<ProgressBar>,
    since: Instant,
    /// When progress of this stage's computation was first seen, and how much was done then.
    first: Option<(Instant, u64)>,
    said: Instant,
}

impl<'a> Terminal<'a> {
    /// A reporter for a run of `plan`.
    pub fn new(plan: &'a Plan, style: Style, verbosity: Verbosity) -> Terminal<'a> {
        let is_live = std::io::stderr().is_terminal() && verbosity > Verbosity::Quiet;
        let live = is_live.then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(8)));
        let width = plan.nodes.iter().map(|node| node.label.chars().count()).max().unwrap_or(0).min(40);
        Terminal { plan, style, verbosity, live, running: BTreeMap::new(), width, start: Instant::now() }
    }

    fn say(&self, text: &str) {
        match &self.live {
            Some(live) => live.suspend(|| note(text)),
            None => note(text),
        }
    }

    fn line(&self, word: &str, node: usize, rest: &str) {
        let node = &self.plan.nodes[node];
        let text = format!(
            "{word} {label:width$}  {stage:<22} {rest}",
            label = node.label,
            width = self.width,
            stage = self.style.dim(&format!("{:<22}", node.entry.name)),
        );
        self.say(text.trim_end());
    }

    fn started(&mut self, node: usize, threads: usize) {
        let bar = self.live.as_ref().map(|live| {
            let bar = live.add(ProgressBar::no_length());
            bar.set_style(spinner());
            bar.set_prefix(format!("{:<width$}", self.plan.nodes[node].label, width = self.width));
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        });
        if self.verbosity == Verbosity::Verbose || self.live.is_none() && self.verbosity == Verbosity::Normal {
            let word = self.style.cyan("     Running");
            self.line(&word, node, &if threads > 1 { format!("{threads} threads") } else { String::new() });
        }
        let now = Instant::now();
        self.running.insert(node, Running { bar, since: now, first: None, said: now });
    }

    fn progress(&mut self, node: usize, done: u64, total: u64, unit: &str, headline: &str) {
        let Some(running) = self.running.get_mut(&node) else { return };
        let now = Instant::now();
        let (first, done_at_first) = *running.first.get_or_insert((now, done));
        let rate = (done - done_at_first.min(done)) as f64 / (now - first).as_secs_f64();
        let left = if rate > 0.0 { duration((total - done.min(total)) as f64 / rate) } else { "?".to_string() };
        let text = format!("{done}/{total} {unit}  {}  {left} left  {headline}", rate_text(rate, unit));
        match &running.bar {
            Some(bar) => {
                if bar.length() != Some(total) {
                    bar.set_style(progress_bar());
                    bar.set_length(total);
                }
                bar.set_position(done);
                bar.set_message(text);
            }
            None if self.verbosity >= Verbosity::Normal && now - running.said >= PLAIN_EVERY => {
                running.said = now;
                let word = self.style.cyan("            ");
                self.line(&word, node, &text);
            }
            None => {}
        }
    }

    fn ended(&mut self, node: usize) -> f64 {
        match self.running.remove(&node) {
            Some(running) => {
                if let Some(bar) = running.bar {
                    bar.finish_and_clear();
                }
                running.since.elapsed().as_secs_f64()
            }
            None => 0.0,
        }
    }

    /// The last line: what was done, and how long it took.
    pub fn finish(&mut self, summary: &Summary) {
        if self.verbosity == Verbosity::Quiet {
            return;
        }
        let cached = summary.count(&Outcome::Cached);
        let ran = summary.count(&Outcome::Stored);
        let failed = summary.count(&Outcome::Failed);
        let skipped = summary.count(&Outcome::Skipped);
        let mut parts = vec![format!("{ran} ran"), format!("{cached} cached")];
        if failed > 0 {
            parts.push(format!("{failed} failed"));
        }
        if skipped > 0 {
            parts.push(format!("{skipped} skipped"));
        }
        let word = if summary.interrupted {
            self.style.yellow(" Interrupted")
        } else if failed > 0 {
            self.style.red("      Failed")
        } else {
            self.style.green("    Finished")
        };
        let n = cached + ran + failed + skipped;
        let took = duration(self.start.elapsed().as_secs_f64());
        self.say(&format!("{word} {}: {} in {took}", count(n, "stage"), parts.join(", ")));
        if summary.interrupted {
            self.say("             what was finished is kept; run again to go on");
        }
    }
}

impl Observer for Terminal<'_> {
    fn notice(&mut self, message: &str) {
        self.say(&format!("{} {message}", self.style.yellow("     Warning")));
    }

    fn event(&mut self, node: usize, event: &RunEvent) {
        match event {
            RunEvent::Cached { key, hit } => {
                if self.verbosity == Verbosity::Verbose {
                    let word = self.style.green("      Cached");
                    let text = format!("{}  {}", key.short(), hit.headline.as_deref().unwrap_or_default());
                    self.line(&word, node, &text);
                }
            }
            RunEvent::Started { threads, .. } => self.started(node, *threads),
            RunEvent::Worker(Event::Progress { done, total, unit, headline }) => {
                self.progress(node, *done, *total, unit, headline);
            }
            RunEvent::Worker(Event::Waiting) => {
                let word = self.style.yellow("     Waiting");
                self.line(&word, node, "another run computes it; waiting for its result");
            }
            RunEvent::Worker(Event::Started { resumed: true }) => {
                let word = self.style.cyan("    Resuming");
                self.line(&word, node, "from its last checkpoint");
            }
            RunEvent::Worker(Event::Warning { message }) => {
                let word = self.style.yellow("     Warning");
                self.line(&word, node, message);
            }
            RunEvent::Worker(_) => {}
            RunEvent::Stored { key, hit, seconds, by_other } => {
                self.ended(node);
                if self.verbosity > Verbosity::Quiet {
                    let word = self.style.green(if *by_other { "      Cached" } else { "      Stored" });
                    let headline = hit.headline.as_deref().unwrap_or_default();
                    let memory = hit.peak_memory_mib.map_or(String::new(), |mib| bytes(mib << 20));
                    let took = duration(*seconds);
                    self.line(&word, node, &format!("{}  {took:>8}  {memory:>9}  {headline}", key.short()));
                }
            }
            RunEvent::Failed { message, hint, log } => {
                self.ended(node);
                let word = self.style.red("      Failed");
                self.line(&word, node, "");
                self.say(&format!("             {message}"));
                if let Some(hint) = hint {
                    self.say(&format!("             {} {hint}", self.style.cyan("hint:")));
                }
                if let Some(log) = log {
                    self.log_tail(log);
                }
            }
            RunEvent::Damaged { message } => {
                self.ended(node);
                let word = self.style.yellow("     Damaged");
                self.line(&word, node, &format!("{message}; computing it again"));
            }
            RunEvent::Skipped { because } => {
                let word = self.style.yellow("     Skipped");
                self.line(&word, node, &format!("because `{because}` failed"));
            }
            RunEvent::Interrupted => {
                self.ended(node);
                let word = self.style.yellow("     Stopped");
                self.line(&word, node, "");
            }
        }
    }
}

impl Terminal<'_> {
    /// The last lines of a failed worker's log, if it wrote any.
    fn log_tail(&self, log: &std::path::Path) {
        const LINES: usize = 20;
        let Ok(text) = std::fs::read_to_string(log) else { return };
        let lines: Vec<&str> = text.lines().collect();
        if lines.is_empty() {
            return;
        }
        self.say(&format!("             its log, {}:", log.display()));
        for line in &lines[lines.len().saturating_sub(LINES)..] {
            self.say(&format!("             | {line}"));
        }
    }
}

fn rate_text(rate: f64, unit: &str) -> String {
    let unit = unit.trim_end_matches('s');
    if !rate.is_finite() || rate <= 0.0 {
        String::new()
    } else if rate >= 1.0 {
        format!("{rate:.1} {unit}s/s")
    } else {
        format!("{} a {unit}", duration(1.0 / rate))
    }
}

fn spinner() -> ProgressStyle {
    ProgressStyle::with_template("     {spinner:.cyan} {elapsed:>5} {prefix} {wide_msg}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn progress_bar() -> ProgressStyle {
    ProgressStyle::with_template("     {spinner:.cyan} {elapsed:>5} {prefix} [{bar:20}] {wide_msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}
