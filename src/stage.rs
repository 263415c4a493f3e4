//! What a stage is: the typed front that authors write, and the erased entry that the planner and the worker use.
//!
//! # Adding a stage
//!
//! 1. Write `src/stages/<family>/<name>.rs`: a `//!` header naming the paper; a `Params` struct whose doc comments,
//!    defaults and ranges are the documentation; `ports!` for inputs and outputs; a unit struct with `impl Stage`;
//!    its unit test against an oracle.
//! 2. Add `Entry::of::<family::name::Name>()` to [`crate::stages::STAGES`] and a `pub mod name;` line to the family.
//! 3. Use it in a pipeline, or in a test.
//!
//! ```
//! use runner::artifact::{Table, table::Column};
//! use runner::error::Result;
//! use runner::param::Count;
//! use runner::stage::{Context, Entry, Stage};
//! use schemars::JsonSchema;
//! use serde::{Deserialize, Serialize};
//!
//! /// Counts rows.
//! #[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
//! #[serde(deny_unknown_fields, default)]
//! pub struct Params {
//!     /// How often to count.
//!     pub times: Count,
//! }
//!
//! impl Default for Params {
//!     fn default() -> Params {
//!         Params { times: Count::ONE }
//!     }
//! }
//!
//! runner::ports! {
//!     /// What is counted.
//!     pub struct Inputs {
//!         /// Any table.
//!         table: Table,
//!     }
//! }
//!
//! pub struct CountRows;
//!
//! impl Stage for CountRows {
//!     const NAME: &'static str = "evaluate/count-rows";
//!     const VERSION: u32 = 1;
//!     type Params = Params;
//!     type Inputs = Inputs;
//!     type Outputs = Table;
//!
//!     fn run(_: &Context, params: Params, inputs: Inputs) -> Result<Table> {
//!         let mut table = Table::new(vec![Column::new("n_rows", "rows counted, times repeated")]);
//!         table.push(vec![(inputs.table.rows.len() * params.times.get()).into()]);
//!         Ok(table)
//!     }
//! }
//!
//! const ENTRY: Entry = Entry::of::<CountRows>();
//! assert_eq!((ENTRY.inputs)()[0].name, "table");
//! ```

use crate::artifact::{self, FileEntry, Files, Kind, Open, Save, Sink};
use crate::canonical::Canonical;
use crate::error::{Error, IoExt, Result, ResultExt};
use crate::events::Event;
use crate::nn::Place;
use crate::rng::{Stream, Streams};
use crate::store::checkpoint::Checkpoint;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// An operation of a pipeline: a pure function of parameters, inputs and named random streams (invariant 2).
///
/// It must give the same bytes for the same parameters, inputs and seed, whatever the number of threads (invariant
/// 3), must not read a clock, the environment or a path that [`Stage::sources`] does not name, and must not print.
pub trait Stage: 'static {
    /// The name in the TOML, `family/name`, which is also its path in the source.
    const NAME: &'static str;
    /// Raised whenever the same parameters and inputs give other bytes than before.
    const VERSION: u32;

    /// Parameters: a serde struct that refuses unknown keys. The struct's doc comment is the stage's description.
    type Params: Serialize + DeserializeOwned + JsonSchema;
    /// Inputs, made by [`ports!`](crate::ports).
    type Inputs: Inputs;
    /// Outputs: one artifact, or a struct made by [`ports!`](crate::ports) whose first field is the default.
    type Outputs: Outputs;

    /// Does the work.
    ///
    /// # Errors
    /// What makes the stage fail.
    fn run(cx: &Context, params: Self::Params, inputs: Self::Inputs) -> Result<Self::Outputs>;

    /// Whether it draws random numbers with these parameters. If not, the seed is not part of its key.
    fn draws(_: &Self::Params) -> bool {
        false
    }

    /// Checks that involve several parameters: (parameter, what is wrong, hint).
    fn check(_: &Self::Params) -> Vec<Problem> {
        Vec::new()
    }

    /// Files and folders outside the cache that it reads. Their content becomes part of the key.
    fn sources(_: &Self::Params) -> Vec<PathBuf> {
        Vec::new()
    }

    /// Output ports that stay empty with these parameters, each with the way to fill it.
    fn absent(_: &Self::Params) -> Vec<(&'static str, &'static str)> {
        Vec::new()
    }

    /// What it needs of the machine.
    fn resources(_: &Self::Params) -> Resources {
        Resources::default()
    }
}

/// Something wrong with a combination of parameters.
#[derive(Clone, Debug)]
pub struct Problem {
    /// The parameter to point at, such as `rate`, or `trigger.size`.
    pub parameter: &'static str,
    /// What is wrong: a lower-case fragment, either whole or said of the parameter: `must be below 1, got 2`.
    pub message: String,
    /// A way out.
    pub hint: Option<String>,
}

/// What planning learns of a stage's parameters.
#[derive(Clone, Debug)]
pub struct Examined {
    /// The parameters, completed.
    pub params: Canonical,
    /// [`Stage::draws`].
    pub draws: bool,
    /// [`Stage::check`].
    pub problems: Vec<Problem>,
    /// [`Stage::sources`].
    pub sources: Vec<PathBuf>,
    /// [`Stage::absent`].
    pub absent: Vec<(&'static str, &'static str)>,
    /// [`Stage::resources`].
    pub resources: Resources,
}

/// What a stage needs of the machine while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resources {
    /// Whether more than one thread helps.
    pub parallel: bool,
    /// Whether it can use a GPU; other stages see none.
    pub gpu: bool,
    /// Estimate of its peak memory, in MiB.
    pub memory_mib: u64,
}

impl Resources {
    /// Whether starting a process would cost more than the stage itself: such stages follow one another in one worker.
    /// What fills memory or runs on several threads has a process to itself, so that its peak memory is its own and
    /// nothing is left over from the stage before.
    pub fn is_light(&self) -> bool {
        !self.parallel && !self.gpu && self.memory_mib <= 128
    }
}

impl Default for Resources {
    fn default() -> Resources {
        Resources { parallel: true, gpu: false, memory_mib: 256 }
    }
}

/// What a stage sees besides parameters and inputs.
pub struct Context {
    streams: Streams,
    /// The device that tensors of candle live on.
    pub device: candle_core::Device,
    /// Where networks compute: on the CPU unless the stage's [`Resources`] say that it can use a GPU.
    pub place: Place,
    /// Threads that the stage may use; rayon's global pool has as many.
    pub threads: usize,
    /// Survives an interruption; empty when the stage starts afresh.
    pub checkpoint: Checkpoint,
    stop: Arc<AtomicBool>,
    emit: Arc<dyn Fn(Event) + Send + Sync>,
}

impl Context {
    /// A context; the worker makes it.
    pub fn new(
        streams: Streams,
        device: candle_core::Device,
        threads: usize,
        checkpoint: Checkpoint,
        stop: Arc<AtomicBool>,
        emit: Arc<dyn Fn(Event) + Send + Sync>,
    ) -> Context {
        Context { streams, device, place: Place::Cpu, threads, checkpoint, stop, emit }
    }

    /// The same with networks elsewhere.
    pub fn at(self, place: Place) -> Context {
        Context { place, ..self }
    }

    /// The context of a part of the stage that comes before its main loop: streams of its own, and no checkpoint, which
    /// is the main loop's. A part that was interrupted starts afresh.
    pub fn part(&self, name: &str) -> Context {
        Context {
            streams: self.streams.part(name),
            device: self.device.clone(),
            place: self.place.clone(),
            threads: self.threads,
            checkpoint: Checkpoint::none(),
            stop: self.stop.clone(),
            emit: self.emit.clone(),
        }
    }

    /// A context for unit tests: CPU, no checkpoint, events dropped.
    pub fn for_test(seed: u64, stage: &str) -> Context {
        Context {
            streams: Streams::new(seed, stage),
            device: candle_core::Device::Cpu,
            place: Place::Cpu,
            threads: 1,
            checkpoint: Checkpoint::none(),
            stop: Arc::default(),
            emit: Arc::new(|_| {}),
        }
    }

    /// The random stream `name` of this stage (invariant 4).
    pub fn rng(&self, name: &str) -> Stream {
        self.streams.stream(name)
    }

    /// Reports progress: `done` of `total` units (`epochs`, `critics`), and one line of headline numbers.
    pub fn progress(&self, done: u64, total: u64, unit: &'static str, headline: impl Into<String>) {
        (self.emit)(Event::Progress { done, total, unit: unit.into(), headline: headline.into() });
    }

    /// Tells those who follow the run numbers at a place on an axis (`epoch`, `step`), see [`Event::Metrics`]. What is
    /// not finite is left out.
    pub fn metrics(&self, series: &str, axis: &str, at: u64, values: impl IntoIterator<Item = (String, f64)>) {
        let values: BTreeMap<String, f64> = values.into_iter().filter(|(_, value)| value.is_finite()).collect();
        if !values.is_empty() {
            (self.emit)(Event::Metrics { series: series.into(), axis: axis.into(), at, values });
        }
    }

    /// One line that belongs in the run's output: something a user should know about the result.
    pub fn warn(&self, message: impl Into<String>) {
        (self.emit)(Event::Warning { message: message.into() });
    }

    /// The headline number that the run prints beside the finished stage, such as `ACC 93.1 % ASR 100 %`.
    pub fn headline(&self, text: impl Into<String>) {
        (self.emit)(Event::Headline { text: text.into() });
    }

    /// Whether somebody asked to stop. Long loops ask between steps, save a checkpoint and return
    /// [`Error::interrupted`].
    pub fn should_stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Returns [`Error::interrupted`] once somebody asked to stop; for loops that have nothing to save.
    ///
    /// # Errors
    /// When asked to stop.
    pub fn check_stop(&self) -> Result<()> {
        if self.should_stop() { Err(Error::interrupted()) } else { Ok(()) }
    }
}

/// How many artifacts a port takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arity {
    /// Exactly one.
    One,
    /// One or none.
    Optional,
    /// One or more: a list in `from`, or `"stage[*]"` for all points of a matrix.
    Many,
    /// Any number, none included.
    Any,
}

/// An input or output port.
#[derive(Clone, Copy, Debug)]
pub struct Port {
    /// The name in `from`, or behind the dot in `model.trace`.
    pub name: &'static str,
    /// What passes.
    pub kind: Kind,
    /// How many.
    pub arity: Arity,
    /// One sentence.
    pub doc: &'static str,
}

/// One artifact that is bound to an input port.
#[derive(Clone, Debug)]
pub struct Bound {
    /// The stage that made it, as the pipeline calls it, with its port if it is not the default: `model.trace`.
    pub label: String,
    /// The point of the matrix it comes from, when it was gathered with `[*]`.
    pub point: BTreeMap<String, Value>,
    /// Its files.
    pub files: Files,
}

/// Bound artifacts by port.
pub type RawInputs = BTreeMap<String, Vec<Bound>>;

/// A set of typed input ports. Implemented by [`ports!`](crate::ports), and by `()` for stages without inputs.
pub trait Inputs: Sized {
    /// The ports.
    fn ports() -> Vec<Port>;

    /// Opens the artifacts.
    ///
    /// # Errors
    /// A missing, truncated or malformed artifact.
    fn open(raw: &mut RawInputs) -> Result<Self>;
}

impl Inputs for () {
    fn ports() -> Vec<Port> {
        Vec::new()
    }

    fn open(_: &mut RawInputs) -> Result<()> {
        Ok(())
    }
}

/// An opened artifact of a port that takes several.
#[derive(Clone, Debug)]
pub struct Named<T> {
    /// The stage that made it, as the pipeline calls it.
    pub name: String,
    /// The point of the matrix it comes from, when it was gathered with `[*]`.
    pub point: BTreeMap<String, Value>,
    /// The artifact.
    pub value: T,
}

/// What can stand as the type of an input port: an artifact, an `Option` of one, a `Vec<Named<_>>`, or an `Option` of that.
pub trait PortValue: Sized {
    /// What passes.
    const KIND: Kind;
    /// How many.
    const ARITY: Arity;

    /// Opens what is bound to the port `name`.
    ///
    /// # Errors
    /// A missing, truncated or malformed artifact.
    fn open_port(name: &str, bound: Vec<Bound>) -> Result<Self>;
}

fn open_bound<T: Open>(bound: &Bound) -> Result<T> {
    T::open(&bound.files).context(format!("opening `{}` ({})", bound.label, T::KIND))
}

impl<T: Open> PortValue for T {
    const KIND: Kind = T::KIND;
    const ARITY: Arity = Arity::One;

    fn open_port(name: &str, bound: Vec<Bound>) -> Result<T> {
        match bound.as_slice() {
            [one] => open_bound(one),
            _ => Err(Error::machine(format!("port `{name}` takes one artifact, got {}", bound.len()))),
        }
    }
}

impl<T: Open> PortValue for Option<T> {
    const KIND: Kind = T::KIND;
    const ARITY: Arity = Arity::Optional;

    fn open_port(_: &str, bound: Vec<Bound>) -> Result<Option<T>> {
        bound.first().map(open_bound).transpose()
    }
}

impl<T: Open> PortValue for Vec<Named<T>> {
    const KIND: Kind = T::KIND;
    const ARITY: Arity = Arity::Many;

    fn open_port(_: &str, bound: Vec<Bound>) -> Result<Vec<Named<T>>> {
        bound.into_iter().map(|b| Ok(Named { value: open_bound(&b)?, name: b.label, point: b.point })).collect()
    }
}

impl<T: Open> PortValue for Option<Vec<Named<T>>> {
    const KIND: Kind = T::KIND;
    const ARITY: Arity = Arity::Any;

    fn open_port(name: &str, bound: Vec<Bound>) -> Result<Option<Vec<Named<T>>>> {
        if bound.is_empty() { Ok(None) } else { Vec::open_port(name, bound).map(Some) }
    }
}

/// A set of typed outputs: a single artifact, or a struct made by [`ports!`](crate::ports).
pub trait Outputs {
    /// The ports; the first is the default.
    fn ports() -> Vec<Port>;

    /// Writes every artifact into a directory of its own under `dir`.
    ///
    /// # Errors
    /// What writing can bring.
    fn save(&self, dir: &Path) -> Result<Vec<Written>>;
}

/// An artifact that was written.
#[derive(Clone, Debug)]
pub struct Written {
    /// The output port.
    pub port: String,
    /// What it is.
    pub kind: Kind,
    /// Where its files lie.
    pub dir: PathBuf,
    /// Its files.
    pub files: Vec<FileEntry>,
}

/// The port name of a stage with a single output.
pub const SINGLE: &str = "output";

impl<T: Save> Outputs for T {
    fn ports() -> Vec<Port> {
        vec![Port { name: SINGLE, kind: T::KIND, arity: Arity::One, doc: "" }]
    }

    fn save(&self, dir: &Path) -> Result<Vec<Written>> {
        Ok(vec![save_port(SINGLE, self, dir)?])
    }
}

/// Writes one artifact into `dir/port`.
///
/// # Errors
/// What writing can bring.
pub fn save_port<T: Save>(port: &str, value: &T, dir: &Path) -> Result<Written> {
    let dir = dir.join(port);
    // A stage that ran before in the same work folder may have left it, empty.
    std::fs::create_dir_all(&dir).at("create", &dir)?;
    let mut sink = Sink::new(&dir);
    value.save(&mut sink).context(format!("writing {}", T::KIND))?;
    Ok(Written { port: port.to_string(), kind: T::KIND, dir, files: sink.finish() })
}

impl Written {
    /// The artifact's digest.
    pub fn digest(&self) -> crate::store::digest::Digest {
        artifact::digest(self.kind, &self.files)
    }
}

/// A stage with its types erased: what the registry holds.
#[derive(Clone, Copy)]
pub struct Entry {
    /// `family/name`.
    pub name: &'static str,
    /// The stage's version.
    pub version: u32,
    /// Input ports.
    pub inputs: fn() -> Vec<Port>,
    /// Output ports; the first is the default.
    pub outputs: fn() -> Vec<Port>,
    /// JSON schema of the parameters.
    pub schema: fn() -> Schema,
    /// Decodes parameters, fills in the defaults, and encodes them again. The error is a lower-case fragment.
    pub complete: fn(&Value) -> Result<Value, String>,
    /// [`Stage::resources`] on completed parameters; planning takes them from [`Entry::examine`].
    pub resources: fn(&Value) -> Resources,
    /// All that planning asks about parameters, decoded once.
    pub examine: fn(Value) -> Result<Examined, String>,
    /// Runs the stage on completed parameters and writes its outputs under the directory.
    pub run: fn(&Context, &Value, RawInputs, &Path) -> Result<Vec<Written>>,
}

impl Entry {
    /// The entry of a stage.
    pub const fn of<S: Stage>() -> Entry {
        Entry {
            name: S::NAME,
            version: S::VERSION,
            inputs: S::Inputs::ports,
            outputs: S::Outputs::ports,
            schema: || {
                let settings = schemars::generate::SchemaSettings::draft2020_12().with(|s| s.inline_subschemas = true);
                SchemaGenerator::new(settings).into_root_schema_for::<S::Params>()
            },
            complete: |value| {
                let params: S::Params = serde_json::from_value(value.clone()).map_err(|e| e.to_string())?;
                serde_json::to_value(&params).map_err(|e| e.to_string())
            },
            resources: |value| decode::<S>(value).map(|p| S::resources(&p)).unwrap_or_default(),
            examine: |value| {
                let params: S::Params = serde_json::from_value(value).map_err(|e| e.to_string())?;
                Ok(Examined {
                    draws: S::draws(&params),
                    problems: S::check(&params),
                    sources: S::sources(&params),
                    absent: S::absent(&params),
                    resources: S::resources(&params),
                    params: Canonical::of(&params).map_err(|e| e.to_string())?,
                })
            },
            run: |cx, value, mut raw, dir| {
                let params = decode::<S>(value)?;
                let inputs = S::Inputs::open(&mut raw)?;
                S::run(cx, params, inputs)?.save(dir)
            },
        }
    }

    /// The family, the part of the name before the slash.
    pub fn family(&self) -> &'static str {
        self.name.split('/').next().unwrap_or(self.name)
    }

    /// The stage's description: the doc comment of its parameter struct.
    pub fn description(&self) -> String {
        let schema = (self.schema)();
        schema.get("description").and_then(|d| d.as_str()).unwrap_or_default().to_string()
    }
}

fn decode<S: Stage>(value: &Value) -> Result<S::Params> {
    serde_json::from_value(value.clone()).map_err(|e| Error::user(format!("parameters of `{}`: {e}", S::NAME)))
}

/// Declares the typed ports of a stage.
///
/// `pub struct Inputs { ... }` makes [`Inputs`]; `pub struct Outputs => { ... }` makes [`Outputs`], its first field
/// the default port. Field names are port names; doc comments are their documentation.
#[macro_export]
macro_rules! ports {
    ($(#[$meta:meta])* pub struct $name:ident { $( $(#[doc = $doc:literal])* $field:ident : $type:ty ),* $(,)? }) => {
        $(#[$meta])*
        pub struct $name { $( $(#[doc = $doc])* pub $field: $type ),* }

        impl $crate::stage::Inputs for $name {
            fn ports() -> Vec<$crate::stage::Port> {
                vec![ $( $crate::stage::Port {
                    name: stringify!($field),
                    kind: <$type as $crate::stage::PortValue>::KIND,
                    arity: <$type as $crate::stage::PortValue>::ARITY,
                    doc: concat!($($doc),*).trim_ascii(),
                } ),* ]
            }

            fn open(raw: &mut $crate::stage::RawInputs) -> $crate::error::Result<Self> {
                Ok($name { $( $field: $crate::stage::PortValue::open_port(
                    stringify!($field), raw.remove(stringify!($field)).unwrap_or_default())? ),* })
            }
        }
    };
    ($(#[$meta:meta])* pub struct $name:ident => { $( $(#[doc = $doc:literal])* $field:ident : $type:ty ),* $(,)? }) => {
        $(#[$meta])*
        pub struct $name { $( $(#[doc = $doc])* pub $field: $type ),* }

        impl $crate::stage::Outputs for $name {
            fn ports() -> Vec<$crate::stage::Port> {
                vec![ $( $crate::stage::Port {
                    name: stringify!($field),
                    kind: <$type as $crate::artifact::Save>::KIND,
                    arity: $crate::stage::Arity::One,
                    doc: concat!($($doc),*).trim_ascii(),
                } ),* ]
            }

            fn save(&self, dir: &::std::path::Path) -> $crate::error::Result<Vec<$crate::stage::Written>> {
                Ok(vec![ $( $crate::stage::save_port(stringify!($field), &self.$field, dir)? ),* ])
            }
        }
    };
}
