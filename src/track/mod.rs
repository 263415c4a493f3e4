//! Tracking: a run told to TensorBoard, to Weights & Biases and as JSON lines, while it goes on.
//!
//! ```toml
//! [tracking]
//! tensorboard = "../tracking/tensorboard"
//! wandb       = "../tracking"
//! jsonl       = "../tracking/runs.jsonl"
//! ```
//!
//! or `runner run PIPELINE --track tensorboard=DIR --track wandb=DIR --track jsonl=FILE`, which goes before the pipeline
//! format by format; `--no-track` tells nobody. Nothing of this is in a key: it changes what is told, never what is
//! computed, and a run in which everything is cached is told in full.
//!
//! # What is told
//!
//! - *Numbers.* A worker's [`Event::Metrics`] is written within the tenth of a second in which it arrives: trainings tell
//!   every epoch as `model/history/loss` and the means within it as `model/train/loss` by steps. Tables follow when
//!   their stage is done ([`scalars`]): `scores/clean_accuracy/purified`. What was told live is not told again, so the
//!   curves of a cached training are those of one that ran.
//! - *Tables and figures*, whole. Those that came from the cache say so.
//! - *Parameters* of every stage, completed, and *who it is*: pipeline, profile, `--set`, combination of the matrix,
//!   seed, device, version, host; the key of each stage once it is known.
//!
//! Every combination of the matrix is a run of its own ([`runs`]).
//!
//! # What goes wrong
//!
//! A target that cannot be written is an error before anything runs. One that fails later (a full disk) is warned of
//! once and left alone; the run goes on, and says so again at the end. Records are written whole and nothing is
//! buffered: a run that is killed leaves files that open.
//!
//! This room reads tables and figures from the store and writes nothing to it. It prints nothing: warnings go to the
//! reporter (invariant 12).

mod append;
mod crc32c;
mod jsonl;
mod protobuf;
pub mod runs;
pub mod scalars;
mod target;
mod tensorboard;
mod wandb;

pub use runs::Runs;
pub use target::{Format, Target, choose};

use crate::artifact::{Figure, Kind, Open as _, Table};
use crate::error::{Error, Result};
use crate::events::Event;
use crate::exec::{Observer, Outcome, RunEvent, Summary};
use crate::plan::Node;
use crate::store::Store;
use crate::store::digest::Digest;
use crate::store::records::{Hit, OutputRecord};
use scalars::{Scalar, Scalars};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::time::{SystemTime, UNIX_EPOCH};

/// Something that happened to a node, for those who follow.
struct Fact<'a> {
    /// When: seconds since 1970.
    time: f64,
    /// The node.
    node: &'a Node,
    what: What<'a>,
}

enum What<'a> {
    /// It started, ended, or will not be reached.
    State(&'a State),
    Progress {
        done: u64,
        total: u64,
        unit: &'a str,
        headline: &'a str,
    },
    Warning(&'a str),
    Scalars {
        scalars: &'a Scalars,
        is_cached: bool,
    },
    Table {
        name: &'a str,
        table: &'a Table,
        is_cached: bool,
    },
    Figure {
        name: &'a str,
        figure: &'a Picture,
        is_cached: bool,
    },
}

/// How a node stands.
#[derive(Clone, Debug, Default, PartialEq)]
struct State {
    /// `started`, `cached`, `stored`, `failed`, `skipped`, `interrupted`.
    state: &'static str,
    key: Option<Digest>,
    /// What computing it took, now or when it was cached.
    seconds: Option<f64>,
    peak_memory_mib: Option<u64>,
    headline: Option<String>,
    /// What computed it: device, instruction set, threads, build.
    origin: Option<String>,
    /// What went wrong, or what took it along.
    message: Option<String>,
}

impl State {
    fn of_hit(state: &'static str, key: &Digest, hit: &Hit, store: &Store) -> State {
        let record = store.record(key).ok().flatten();
        State {
            state,
            key: Some(*key),
            seconds: Some(hit.seconds),
            peak_memory_mib: hit.peak_memory_mib,
            headline: hit.headline.clone(),
            origin: record.map(|record| crate::report::explain::origin(&record)),
            message: None,
        }
    }

    /// As JSON; what is not known is left out.
    fn json(&self) -> Value {
        let pairs = [
            ("state", json!(self.state)),
            ("key", json!(self.key)),
            ("seconds", json!(self.seconds)),
            ("peak_memory_mib", json!(self.peak_memory_mib)),
            ("headline", json!(self.headline)),
            ("origin", json!(self.origin)),
            ("message", json!(self.message)),
        ];
        pairs.into_iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.to_string(), value)).collect()
    }
}

/// A figure's PNG and its size in pixels.
struct Picture {
    png: Vec<u8>,
    width: u32,
    height: u32,
}

impl Picture {
    fn new(figure: Figure) -> Result<Picture> {
        // Signature, length and name of the first chunk; then the size.
        let number = |at: usize| -> Option<u32> {
            let bytes = figure.png.get(at..at + 4)?;
            Some(u32::from_be_bytes(bytes.try_into().ok()?))
        };
        match (figure.png.starts_with(b"\x89PNG\r\n\x1a\n"), number(16), number(20)) {
            (true, Some(width), Some(height)) => Ok(Picture { width, height, png: figure.png }),
            _ => Err(Error::machine("`figure.png` is no PNG file")),
        }
    }
}

/// How the whole run ended.
struct End {
    time: f64,
    summary: Value,
    exit_code: u8,
}

/// One format, opened.
trait Sink {
    /// Writes a fact that concerns `runs`.
    fn tell(&mut self, runs: &[usize], fact: &Fact) -> Result<()>;

    /// Writes what comes last.
    fn end(&mut self, end: &End) -> Result<()>;

    /// A command that shows what was written, or where it lies.
    fn look(&self) -> String;
}

struct Open<'a> {
    target: Target,
    sink: Box<dyn Sink + 'a>,
    /// Why it was left alone.
    failure: Option<String>,
}

/// The targets of a run, opened.
pub struct Sinks<'a> {
    runs: &'a Runs<'a>,
    open: Vec<Open<'a>>,
}

/// Opens the targets and writes what is known before anything runs.
///
/// # Errors
/// A target that cannot be written.
pub fn open<'a>(targets: Vec<Target>, runs: &'a Runs<'a>) -> Result<Sinks<'a>> {
    let mut sinks = Sinks { runs, open: Vec::new() };
    for target in targets {
        let sink: Result<Box<dyn Sink>> = match target.format {
            Format::Tensorboard => tensorboard::TensorBoard::open(&target.path, runs).map(|sink| Box::new(sink) as _),
            Format::Wandb => wandb::Wandb::open(&target.path, runs).map(|sink| Box::new(sink) as _),
            Format::Jsonl => jsonl::Jsonl::open(&target.path, runs).map(|sink| Box::new(sink) as _),
        };
        // Not `Error::io`'s hint, which speaks of the cache.
        let sink = sink.map_err(|error| {
            Error::user(format!("cannot track to `{target}`: {error}"))
                .hint("name a place that can be written with `--track`, or leave it out with `--no-track`")
        })?;
        sinks.open.push(Open { target, sink, failure: None });
    }
    Ok(sinks)
}

/// Now, in seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// What is left to say once a run is over.
#[derive(Default)]
pub struct Told {
    /// What was not written to the end, and why.
    pub failures: Vec<String>,
    /// Commands that show what was written.
    pub looks: Vec<String>,
}

/// Hands every event on to another observer, and tells it to the sinks.
pub struct Tracker<'a> {
    sinks: Sinks<'a>,
    store: &'a Store,
    inner: &'a mut dyn Observer,
    /// Numbers that were told live: node, what they belong to, where.
    live: HashSet<(usize, String, i64)>,
    /// Nodes whose results were told; a repair may compute one twice.
    told: HashSet<usize>,
}

impl<'a> Tracker<'a> {
    /// Between the scheduler and `inner`.
    pub fn new(sinks: Sinks<'a>, store: &'a Store, inner: &'a mut dyn Observer) -> Tracker<'a> {
        Tracker { sinks, store, inner, live: HashSet::new(), told: HashSet::new() }
    }

    /// Writes the end of the run.
    pub fn finish(mut self, summary: &Summary) -> Told {
        let end = End {
            time: now(),
            exit_code: summary.exit_code(),
            summary: json!({
                "ran": summary.count(&Outcome::Stored),
                "cached": summary.count(&Outcome::Cached),
                "failed": summary.count(&Outcome::Failed),
                "skipped": summary.count(&Outcome::Skipped),
                "interrupted": summary.interrupted,
            }),
        };
        self.each(|sink| sink.end(&end));
        let failures = self.sinks.open.iter().filter_map(|open| {
            let reason = open.failure.as_ref()?;
            Some(format!("tracking to `{}` is incomplete: {reason}", open.target))
        });
        let looks = self.sinks.open.iter().filter(|open| open.failure.is_none()).map(|open| open.sink.look());
        Told { failures: failures.collect(), looks: looks.collect() }
    }

    /// Does something with every sink that is well; one that fails is left alone from then on.
    fn each(&mut self, mut act: impl FnMut(&mut dyn Sink) -> Result<()>) {
        for open in self.sinks.open.iter_mut().filter(|open| open.failure.is_none()) {
            if let Err(error) = act(&mut *open.sink) {
                self.inner.notice(&format!("no more tracking to `{}`, the run goes on: {error}", open.target));
                open.failure = Some(error.to_string());
            }
        }
    }

    fn tell(&mut self, node: usize, what: What) {
        let runs = self.sinks.runs;
        let fact = Fact { time: now(), node: &runs.plan.nodes[node], what };
        self.each(|sink| sink.tell(&runs.of_node[node], &fact));
    }

    fn state(&mut self, node: usize, state: State) {
        self.tell(node, What::State(&state));
    }

    fn scalars(&mut self, node: usize, scalars: &Scalars, is_cached: bool) {
        self.tell(node, What::Scalars { scalars, is_cached });
    }

    /// A node has its result: its tables and figures.
    fn result(&mut self, node: usize, hit: &Hit, is_cached: bool) {
        if !self.told.insert(node) {
            return;
        }
        for (position, output) in hit.outputs.iter().enumerate() {
            let stage = &self.sinks.runs.plan.nodes[node].stage;
            let name = if position == 0 { stage.clone() } else { format!("{stage}/{}", output.port) };
            if let Err(error) = self.output(node, &name, output, is_cached) {
                // The damage is mended when a stage needs the artifact.
                self.inner.notice(&format!("`{name}` is not tracked: {error}"));
            }
        }
    }

    fn output(&mut self, node: usize, name: &str, output: &OutputRecord, is_cached: bool) -> Result<()> {
        let files = self.store.files(output);
        match output.kind {
            Kind::Table => {
                let table = &Table::open(&files)?;
                for scalars in scalars::of_table(name, table) {
                    let axis = scalars.axis.as_deref().unwrap_or_default();
                    if !self.live.contains(&(node, format!("{name} {axis}"), scalars.at)) {
                        self.scalars(node, &scalars, is_cached);
                    }
                }
                self.tell(node, What::Table { name, table, is_cached });
            }
            Kind::Figure => {
                let figure = &Picture::new(Figure::open(&files)?)?;
                self.tell(node, What::Figure { name, figure, is_cached });
            }
            _ => {}
        }
        Ok(())
    }

    fn track(&mut self, node: usize, event: &RunEvent) {
        match event {
            RunEvent::Cached { key, hit } => {
                self.state(node, State::of_hit("cached", key, hit, self.store));
                self.result(node, hit, true);
            }
            RunEvent::Started { key, .. } => {
                self.state(node, State { state: "started", key: Some(*key), ..State::default() });
            }
            RunEvent::Worker(Event::Progress { done, total, unit, headline }) => {
                self.tell(node, What::Progress { done: *done, total: *total, unit, headline });
            }
            RunEvent::Worker(Event::Metrics { series, axis, at, values }) => {
                let prefix = format!("{}/{series}", self.sinks.runs.plan.nodes[node].stage);
                let at = i64::try_from(*at).unwrap_or(i64::MAX);
                self.live.insert((node, format!("{prefix} {axis}"), at));
                let scalar =
                    |(name, value): (&String, &f64)| Scalar { name: name.clone(), value: *value, about: String::new() };
                let values = values.iter().map(scalar).collect();
                self.scalars(node, &Scalars { prefix, axis: Some(axis.clone()), at, values }, false);
            }
            RunEvent::Worker(Event::Warning { message }) | RunEvent::Damaged { message } => {
                self.tell(node, What::Warning(message));
            }
            RunEvent::Worker(_) => {}
            RunEvent::Stored { key, hit, by_other, .. } => {
                let state = if *by_other { "cached" } else { "stored" };
                self.state(node, State::of_hit(state, key, hit, self.store));
                self.result(node, hit, *by_other);
            }
            RunEvent::Failed { message, .. } => {
                self.state(node, State { state: "failed", message: Some(message.clone()), ..State::default() });
            }
            RunEvent::Skipped { because } => {
                let message = Some(format!("because `{because}` failed"));
                self.state(node, State { state: "skipped", message, ..State::default() });
            }
            RunEvent::Interrupted => self.state(node, State { state: "interrupted", ..State::default() }),
        }
    }
}

impl Observer for Tracker<'_> {
    fn event(&mut self, node: usize, event: &RunEvent) {
        self.inner.event(node, event);
        if self.sinks.open.iter().any(|open| open.failure.is_none()) {
            self.track(node, event);
        }
    }

    fn tick(&mut self) {
        self.inner.tick();
    }

    fn notice(&mut self, message: &str) {
        self.inner.notice(message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Missing;
    use runs::tests::{plan, runs};
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::rc::Rc;

    /// Writes down what it is told, until there is no room.
    struct Notebook {
        lines: Rc<RefCell<Vec<String>>>,
        room: usize,
    }

    impl Sink for Notebook {
        fn tell(&mut self, runs: &[usize], fact: &Fact) -> Result<()> {
            if self.lines.borrow().len() == self.room {
                return Err(Error::machine("no room"));
            }
            let what = match &fact.what {
                What::State(state) => state.state.to_string(),
                What::Scalars { scalars, .. } => format!("{}@{}", scalars.tag(&scalars.values[0]), scalars.at),
                _ => "more".to_string(),
            };
            self.lines.borrow_mut().push(format!("{runs:?} {what}"));
            Ok(())
        }

        fn end(&mut self, end: &End) -> Result<()> {
            self.lines.borrow_mut().push(format!("end {}", end.exit_code));
            Ok(())
        }

        fn look(&self) -> String {
            "look".into()
        }
    }

    #[derive(Default)]
    struct Reporter {
        n_events: usize,
        notices: Vec<String>,
    }

    impl Observer for Reporter {
        fn event(&mut self, _: usize, _: &RunEvent) {
            self.n_events += 1;
        }

        fn notice(&mut self, message: &str) {
            self.notices.push(message.into());
        }
    }

    fn metrics(at: u64) -> RunEvent {
        let values = BTreeMap::from([("loss".to_string(), 0.5)]);
        RunEvent::Worker(Event::Metrics { series: "history".into(), axis: "epoch".into(), at, values })
    }

    fn summary() -> Summary {
        Summary { outcomes: Vec::new(), hits: Vec::new(), keys: Vec::new(), interrupted: false, worst: None }
    }

    #[test]
    fn a_sink_that_fails_is_left_alone_and_the_others_and_the_run_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Missing::Pretend).unwrap();
        let plan = plan("name = \"p\"\n[stages.a]\nstage = \"test/echo\"");
        let runs = runs(&plan);
        let notebook = |name: &str, room| {
            let lines: Rc<RefCell<Vec<String>>> = Rc::default();
            let target = Target { format: Format::Jsonl, path: name.into() };
            (lines.clone(), Open { target, sink: Box::new(Notebook { lines, room }), failure: None })
        };
        let ((small, first), (large, second)) = (notebook("small", 2), notebook("large", 9));
        let mut reporter = Reporter::default();
        let sinks = Sinks { runs: &runs, open: vec![first, second] };
        let mut tracker = Tracker::new(sinks, &store, &mut reporter);
        for at in 1..=3 {
            tracker.event(0, &metrics(at));
        }
        tracker.event(0, &RunEvent::Interrupted);
        let told = tracker.finish(&summary());
        assert_eq!(*small.borrow(), ["[0] a/history/loss@1", "[0] a/history/loss@2"]);
        let all = ["[0] a/history/loss@1", "[0] a/history/loss@2", "[0] a/history/loss@3", "[0] interrupted", "end 0"];
        assert_eq!(*large.borrow(), all);
        assert_eq!(reporter.n_events, 4);
        assert_eq!(reporter.notices, ["no more tracking to `jsonl=small`, the run goes on: no room"]);
        assert_eq!(told.failures, ["tracking to `jsonl=small` is incomplete: no room"]);
        assert_eq!(told.looks, ["look"]);
    }

    #[test]
    fn a_bad_target_is_refused_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let plan = plan("name = \"p\"\n[stages.a]\nstage = \"test/echo\"");
        let runs = runs(&plan);
        for format in ["tensorboard", "wandb", "jsonl"] {
            let target: Target = format!("{format}={}/file/below", dir.path().display()).parse().unwrap();
            let message = format!("cannot track to `{target}`: cannot create `");
            let error = open(vec![target], &runs).err().expect("a file is no folder");
            assert_eq!(error.class(), crate::error::Class::User);
            assert!(error.message().starts_with(&message), "{error}");
        }
    }
}
