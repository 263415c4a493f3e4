//! Weights & Biases offline runs, which `wandb sync` uploads. Written and checked against wandb 0.31.
//!
//! ```text
//! DIR/wandb/offline-run-YYYYMMDD_HHMMSS-ID/
//!     run-ID.wandb                 the log: all that is uploaded, in order
//!     files/config.yaml            parameters and identity
//!     files/wandb-metadata.json    machine and program
//!     files/wandb-summary.json     the last value of everything, once the run is over
//!     files/media/images, files/media/table
//! ```
//!
//! The log begins with `:W&B`, 0xBEE1 and a version, and goes on in LevelDB's log format (`doc/log_format.md`): blocks of
//! 32 KiB, records in fragments, each with checksum, length and kind. Two things differ from LevelDB: the seven bytes
//! at the beginning are part of the first block, and the checksum is the plain CRC-32 (IEEE) of kind and data. Records
//! are the messages of `wandb_internal.proto`.
//!
//! Numbers with an axis are rows of the history whose x-axis is that number (`model/history/epoch`). Tables are
//! `table-file`s without an artifact beside them.

use super::append::Appender;
use super::protobuf::Message;
use super::runs::{Run, Runs, short_id, stamp};
use super::{End, Fact, Picture, Sink, What};
use crate::artifact::Table;
use crate::error::{IoExt, Result};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The offline runs.
pub struct Wandb<'a> {
    runs: &'a Runs<'a>,
    /// `DIR/wandb`.
    dir: PathBuf,
    open: Vec<OfflineRun>,
}

impl Wandb<'_> {
    /// Makes an offline run for every run in `dir/wandb`.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn open<'a>(dir: &Path, runs: &'a Runs<'a>) -> Result<Wandb<'a>> {
        let dir = dir.join("wandb");
        std::fs::create_dir_all(&dir).at("create", &dir)?;
        let open = runs.all.iter().map(|run| OfflineRun::create(&dir, runs, run)).collect::<Result<_>>()?;
        Ok(Wandb { runs, dir, open })
    }
}

impl Sink for Wandb<'_> {
    fn tell(&mut self, runs: &[usize], fact: &Fact) -> Result<()> {
        let stage = &fact.node.stage;
        for run in runs {
            let run = &mut self.open[*run];
            match &fact.what {
                What::State(state) => {
                    let result = state.json();
                    run.config.entry("results").or_insert_with(|| json!({}))[stage] = result.clone();
                    let item = item(&["results", stage], &result);
                    run.write(&[Message::new().message(CONFIG, &Message::new().message(UPDATE, &item))])?;
                }
                What::Progress { .. } | What::Warning(_) => {}
                What::Scalars { scalars, .. } => {
                    let mut row: Vec<(String, Value)> = Vec::new();
                    if let Some(axis) = &scalars.axis {
                        let x = format!("{}/{axis}", scalars.prefix);
                        row.push((x.clone(), scalars.at.into()));
                        let names = scalars.values.iter().map(|scalar| scalars.tag(scalar));
                        run.define(&x, names.collect())?;
                    }
                    row.extend(scalars.values.iter().map(|scalar| (scalars.tag(scalar), scalar.value.into())));
                    run.log(fact.time, &row)?;
                }
                What::Table { name, table, .. } => run.table(fact.time, name, table)?,
                What::Figure { name, figure, .. } => run.figure(fact.time, name, figure)?,
            }
        }
        Ok(())
    }

    fn end(&mut self, end: &End) -> Result<()> {
        self.open.iter_mut().try_for_each(|run| run.end(end))
    }

    fn look(&self) -> String {
        let began = stamp(self.runs.started as u64);
        match self.open.as_slice() {
            [run] => format!("wandb sync {}", run.dir.display()),
            _ => format!("wandb sync {}", self.dir.join(format!("offline-run-{began}-*")).display()),
        }
    }
}

/// wandb_internal.proto, Record: the fields in use.
const HISTORY: u32 = 2;
const SUMMARY: u32 = 3;
const CONFIG: u32 = 5;
const FILES: u32 = 6;
const METRIC: u32 = 12;
const RUN: u32 = 17;
const EXIT: u32 = 18;
const HEADER: u32 = 21;
const ENVIRONMENT: u32 = 26;
/// ConfigRecord.update and SummaryRecord.update.
const UPDATE: u32 = 1;

struct OfflineRun {
    dir: PathBuf,
    log: Appender,
    /// Bytes of the log.
    length: u64,
    /// Records so far.
    n_records: i64,
    /// Rows of the history so far.
    n_rows: i64,
    id: String,
    started: f64,
    config: Map<String, Value>,
    summary: Map<String, Value>,
    /// Numbers whose x-axis was defined.
    defined: BTreeSet<String>,
    /// Media files so far: two of a name have different numbers.
    n_media: usize,
}

impl OfflineRun {
    fn create(dir: &Path, runs: &Runs, run: &Run) -> Result<OfflineRun> {
        let id = short_id(&format!("{} {}", runs.id, run.label));
        let dir = dir.join(format!("offline-run-{}-{id}", stamp(runs.started as u64)));
        let files = dir.join("files");
        std::fs::create_dir_all(&files).at("create", &files)?;
        let log = Appender::create(dir.join(format!("run-{id}.wandb")), &START)?;
        let matrix: Map<String, Value> = run.point.iter().cloned().collect();
        let mut config = Map::new();
        config.insert("pipeline".into(), runs.identity(run));
        config.insert("matrix".into(), matrix.into());
        config.insert("stages".into(), runs.stages(run).into());
        let mut offline = OfflineRun {
            dir,
            log,
            length: START.len() as u64,
            n_records: 0,
            n_rows: 0,
            id,
            started: runs.started,
            config,
            summary: Map::new(),
            defined: BTreeSet::new(),
            n_media: 0,
        };
        offline.first(runs, run)?;
        Ok(offline)
    }

    /// What is known before anything runs.
    fn first(&mut self, runs: &Runs, run: &Run) -> Result<()> {
        let version = format!("runner {}", env!("CARGO_PKG_VERSION"));
        let header = Message::new().message(1, &Message::new().text(1, &version).text(2, MIN_CONSUMER));
        let update = |config: Message, (key, value): (&String, &Value)| config.message(UPDATE, &item(&[key], value));
        let config = self.config.iter().fold(Message::new(), update);
        let started = timestamp(runs.started);
        let project = runs.plan.tracking.project.as_ref().unwrap_or(&runs.plan.identity.name);
        let name = match run.label.as_str() {
            "" => runs.name(),
            label => format!("{} {label}", runs.name()),
        };
        let mut of_run = Message::new().text(1, &self.id).text(3, project).message(4, &config);
        if runs.all.len() > 1 {
            of_run = of_run.text(6, &runs.id);
        }
        let tags = std::iter::once("runner").chain(runs.plan.identity.profile.as_deref());
        let of_run = tags.fold(of_run.text(8, &name), |run, tag| run.text(10, tag));
        let of_run = of_run.text(13, &runs.host).message(17, &started);
        let here = std::env::current_dir().unwrap_or_default();
        let executable = std::env::current_exe().unwrap_or_default();
        let n_cores = std::thread::available_parallelism().map_or(1, usize::from) as i64;
        let args: Vec<String> = std::env::args().skip(1).collect();
        let os = format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH);
        let environment = Message::new().text(1, &os).message(3, &started);
        let environment = args.iter().fold(environment, |environment, arg| environment.text(5, arg));
        let environment = environment
            .text(6, "runner")
            .text(11, &here.to_string_lossy())
            .text(12, &runs.host)
            .text(14, &executable.to_string_lossy())
            .int(16, n_cores)
            .int(17, n_cores)
            .text(199, &self.id);
        self.write(&[
            Message::new().message(HEADER, &header),
            Message::new().message(RUN, &of_run),
            Message::new().message(ENVIRONMENT, &environment),
        ])?;
        let metadata = json!({
            "os": os,
            "args": args,
            "program": "runner",
            "root": here.to_string_lossy(),
            "host": runs.host,
            "executable": executable.to_string_lossy(),
            "cpu_count": n_cores,
            "runner": env!("CARGO_PKG_VERSION"),
        });
        self.file("wandb-metadata.json", &serde_json::to_vec_pretty(&metadata)?)?;
        self.config_yaml()
    }

    /// Appends records, all of them at once.
    fn write(&mut self, records: &[Message]) -> Result<()> {
        let mut bytes = Vec::new();
        let mut n_records = self.n_records;
        for record in records {
            n_records += 1;
            frame(self.length, &numbered(n_records, record, &self.id), &mut bytes);
        }
        self.log.append(&bytes)?;
        self.length += bytes.len() as u64;
        self.n_records = n_records;
        Ok(())
    }

    /// Makes `x` the x-axis of `names`, those for which it was not told before.
    fn define(&mut self, x: &str, names: Vec<String>) -> Result<()> {
        let new: Vec<String> = names.into_iter().filter(|name| !self.defined.contains(name)).collect();
        if new.is_empty() {
            return Ok(());
        }
        self.write(&new.iter().map(|name| metric(name, x)).collect::<Vec<_>>())?;
        self.defined.extend(new);
        Ok(())
    }

    /// A row of the history; its values are also the latest of the summary.
    fn log(&mut self, time: f64, row: &[(String, Value)]) -> Result<()> {
        let runtime = (time - self.started).max(0.0);
        let mut items = row.to_vec();
        items.push(("_timestamp".into(), time.into()));
        items.push(("_runtime".into(), runtime.into()));
        items.push(("_step".into(), self.n_rows.into()));
        self.write(&history_row(&items, self.n_rows))?;
        self.summary.extend(items);
        self.n_rows += 1;
        Ok(())
    }

    fn figure(&mut self, time: f64, name: &str, figure: &Picture) -> Result<()> {
        let mut value = self.media("media/images", name, "png", &figure.png)?;
        value["_type"] = "image-file".into();
        value["format"] = "png".into();
        value["width"] = figure.width.into();
        value["height"] = figure.height.into();
        self.log(time, &[(name.to_string(), value)])
    }

    fn table(&mut self, time: f64, name: &str, table: &Table) -> Result<()> {
        let columns: Vec<&str> = table.columns.iter().map(|column| column.name.as_str()).collect();
        let content = serde_json::to_vec(&json!({"columns": columns, "data": table.rows}))?;
        let mut value = self.media("media/table", name, "table.json", &content)?;
        value["_type"] = "table-file".into();
        value["ncols"] = columns.len().into();
        value["nrows"] = table.rows.len().into();
        self.log(time, &[(name.to_string(), value)])
    }

    /// Writes a file below `files/` and has it uploaded; what the history says of it.
    fn media(&mut self, folder: &str, name: &str, extension: &str, content: &[u8]) -> Result<Value> {
        let sha256: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
        self.n_media += 1;
        let path = format!("{folder}/{}_{}_{}.{extension}", name.replace('/', "_"), self.n_media, &sha256[..20]);
        self.file(&path, content)?;
        // FilesItem: path, policy NOW, type MEDIA.
        let files = Message::new().message(1, &Message::new().text(1, &path).int(2, 0).int(3, 2));
        self.write(&[Message::new().message(FILES, &files)])?;
        Ok(json!({"path": path, "sha256": sha256, "size": content.len()}))
    }

    fn file(&self, path: &str, content: &[u8]) -> Result<()> {
        let path = self.dir.join("files").join(path);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).at("create", parent)?;
        }
        std::fs::write(&path, content).at("write", &path)
    }

    /// JSON is YAML.
    fn config_yaml(&self) -> Result<()> {
        let mut text = "wandb_version: 1\n".to_string();
        for (key, value) in &self.config {
            text.push_str(&format!("\n{key}:\n  desc: null\n  value: {value}\n"));
        }
        self.file("config.yaml", text.as_bytes())
    }

    fn end(&mut self, end: &End) -> Result<()> {
        let runtime = (end.time - self.started).max(0.0);
        let mut summary = Message::new().message(UPDATE, &item(&["_wandb", "runtime"], &(runtime as i64).into()));
        for (key, value) in end.summary.as_object().into_iter().flatten() {
            summary = summary.message(UPDATE, &item(&["run", key], value));
        }
        let exit = Message::new().int(1, i64::from(end.exit_code)).int(2, runtime as i64);
        self.write(&[Message::new().message(SUMMARY, &summary), Message::new().message(EXIT, &exit)])?;
        self.summary.insert("_wandb".into(), json!({"runtime": runtime as i64}));
        self.summary.insert("run".into(), end.summary.clone());
        self.file("wandb-summary.json", &serde_json::to_vec(&self.summary)?)?;
        self.config_yaml()
    }
}

/// The oldest wandb that may read the log, as wandb itself writes it.
const MIN_CONSUMER: &str = "0.70.0";

/// An item of a config, a summary or a history: its path and its value as JSON.
fn item(path: &[&str], value: &Value) -> Message {
    // Field 1 is a key, field 2 a path; one of one key is a key all the same.
    path.iter().fold(Message::new(), |item, key| item.text(2, key)).text(16, &value.to_string())
}

/// A whole record. Field 200 is the `_info` of the stream, which readers take the run's name from.
fn numbered(number: i64, record: &Message, id: &str) -> Vec<u8> {
    Message::new().int(1, number).merge(record).message(200, &Message::new().text(1, id)).into_bytes()
}

/// Row number `step` of the history (counted from 0), and the summary whose latest values it holds.
fn history_row(items: &[(String, Value)], step: i64) -> [Message; 2] {
    // HistoryItem and SummaryItem have the same fields.
    let of = |message: Message, (key, value): &(String, Value)| message.message(1, &item(&[key], value));
    let items = items.iter().fold(Message::new(), of);
    let history = items.clone().message(2, &Message::new().int(1, step));
    [Message::new().message(SUMMARY, &items), Message::new().message(HISTORY, &history)]
}

/// Makes `x` the x-axis of the number `name`.
fn metric(name: &str, x: &str) -> Message {
    // MetricRecord: name, step_metric, options.defined.
    let metric = Message::new().text(1, name).text(4, x).message(6, &Message::new().int(3, 1));
    Message::new().message(METRIC, &metric)
}

/// google.protobuf.Timestamp.
fn timestamp(seconds: f64) -> Message {
    let nanos = (seconds.fract() * 1e9) as i64;
    Message::new().int(1, seconds as i64).int(2, nanos)
}

/// What the log begins with.
const START: [u8; 7] = [b':', b'W', b'&', b'B', 0xE1, 0xBE, 0];
/// Bytes of a block.
const BLOCK: u64 = 32 << 10;
/// Bytes before a fragment: checksum u32, length u16, kind u8.
const FRAGMENT_HEADER: u64 = 7;

/// Writes a record that comes after `length` bytes of the log, in as many fragments as it takes.
fn frame(length: u64, record: &[u8], out: &mut Vec<u8>) {
    const FULL: u8 = 1;
    const FIRST: u8 = 2;
    const MIDDLE: u8 = 3;
    const LAST: u8 = 4;
    let mut rest = record;
    let mut is_first = true;
    loop {
        let used = (length + out.len() as u64) % BLOCK;
        if BLOCK - used < FRAGMENT_HEADER {
            // No header fits: the block ends in zeros.
            out.resize(out.len() + (BLOCK - used) as usize, 0);
            continue;
        }
        let room = (BLOCK - used - FRAGMENT_HEADER) as usize;
        let (fragment, later) = rest.split_at(rest.len().min(room));
        let kind = match (is_first, later.is_empty()) {
            (true, true) => FULL,
            (true, false) => FIRST,
            (false, false) => MIDDLE,
            (false, true) => LAST,
        };
        let mut crc = crc32fast::Hasher::new();
        crc.update(&[kind]);
        crc.update(fragment);
        out.extend_from_slice(&crc.finalize().to_le_bytes());
        out.extend_from_slice(&(fragment.len() as u16).to_le_bytes());
        out.push(kind);
        out.extend_from_slice(fragment);
        if later.is_empty() {
            return;
        }
        rest = later;
        is_first = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::track::runs::tests::{plan, runs};
    use crate::track::scalars::{Scalar, Scalars};

    /// The records of a log, by LevelDB's description of the format; a torn end is left out.
    fn records(log: &[u8]) -> Vec<Vec<u8>> {
        assert_eq!(log[..7], START);
        let (mut at, mut open, mut records, mut is_open) = (7, Vec::new(), Vec::new(), false);
        while at + 7 <= log.len() {
            let left = 32768 - at % 32768;
            if left < 7 {
                assert!(log[at..(at + left).min(log.len())].iter().all(|byte| *byte == 0));
                at += left;
                continue;
            }
            let length = usize::from(u16::from_le_bytes([log[at + 4], log[at + 5]]));
            let (kind, Some(data)) = (log[at + 6], log.get(at + 7..at + 7 + length)) else { break };
            assert!(length <= left - 7, "a fragment crosses the block's end");
            let crc = u32::from_le_bytes(log[at..at + 4].try_into().unwrap());
            assert_eq!(crc, crc32fast::hash(&log[at + 6..at + 7 + length]));
            assert_eq!(kind == 3 || kind == 4, is_open, "kind {kind} at {at}");
            is_open = kind == 2 || kind == 3;
            open.extend_from_slice(data);
            if !is_open {
                records.push(std::mem::take(&mut open));
            }
            at += 7 + length;
        }
        records
    }

    /// A log by wandb 0.31.0 itself (`tests/peers/wandb_sync.py golden`), some records longer than a block: the same
    /// records give the same bytes.
    #[test]
    fn framing_is_that_of_wandb() {
        let log = include_bytes!("../../tests/golden/track/wandb_0.31.0.wandb");
        let records = records(log);
        assert!(records.iter().filter(|record| record.len() > 32768).count() >= 2);
        let mut ours = START.to_vec();
        for record in &records {
            let mut bytes = Vec::new();
            frame(ours.len() as u64, record, &mut bytes);
            ours.extend(bytes);
        }
        assert!(ours == log);
    }

    #[test]
    fn records_end_and_begin_anywhere_in_a_block() {
        // Room left in the block for a header and a bit, for a header alone, and for less.
        for left in [9, 8, 7, 6, 1, 0] {
            for length in [0, 1, 100, 32761, 32762, 70000] {
                let first = vec![1; 32768 - 7 - 7 - left];
                let second: Vec<u8> = (0..length).map(|i| i as u8).collect();
                let mut log = START.to_vec();
                for record in [&first, &second, &first] {
                    let mut bytes = Vec::new();
                    frame(log.len() as u64, record, &mut bytes);
                    log.extend(bytes);
                }
                assert!(records(&log) == [first.clone(), second, first], "{left} {length}");
            }
        }
    }

    /// Bytes by `tests/peers/wandb_sync.py golden`: wandb's own messages.
    #[test]
    fn records_are_those_of_wandb() {
        let check = |bytes: Vec<u8>, expected: &str| {
            assert_eq!(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), expected);
        };
        let [_, history] = history_row(&[("model/history/epoch".into(), 3.into()), ("_step".into(), 0.into())], 1);
        check(
            numbered(5, &history, "abc"),
            "0805122c0a1912136d6f64656c2f686973746f72792f65706f6368820101330a0b12055f737465708201013012020801c20c050a03\
             616263",
        );
        check(numbered(6, &metric("m", "s"), "abc"), "0806620a0a016d22017332021801c20c050a03616263");
    }

    #[test]
    fn numbers_on_an_axis_are_rows_and_a_killed_run_opens() {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan("name = \"p\"\n[stages.a]\nstage = \"test/echo\"");
        let runs = runs(&plan);
        let mut sink = Wandb::open(dir.path(), &runs).unwrap();
        let path = sink.open[0].log.path().to_path_buf();
        assert_eq!(path.parent().and_then(Path::parent), Some(dir.path().join("wandb").as_path()));
        for at in [1, 2] {
            let values = vec![Scalar { name: "loss".into(), value: 0.5, about: String::new() }];
            let scalars = &Scalars { prefix: "a/history".into(), axis: Some("epoch".into()), at, values };
            let what = What::Scalars { scalars, is_cached: false };
            sink.tell(&[0], &Fact { time: runs.started + 2.0, node: &plan.nodes[0], what }).unwrap();
        }
        let log = std::fs::read(&path).unwrap();
        let all = records(&log);
        // Header, run, environment; then a metric once, and summary and history twice.
        let kinds: Vec<u8> = all.iter().map(|record| record[2]).collect();
        assert_eq!(kinds, [0xaa, 0x8a, 0xd2, 0x62, 0x1a, 0x12, 0x1a, 0x12]);
        let text = String::from_utf8_lossy(&all[7]);
        assert!(text.contains("a/history/epoch") && text.contains("_step") && text.contains("_runtime"));
        // Torn in the middle of the last record.
        assert_eq!(records(&log[..log.len() - 3]).len(), 7);
        let config = std::fs::read_to_string(sink.open[0].dir.join("files/config.yaml")).unwrap();
        assert!(config.contains("\npipeline:\n  desc: null\n  value: {\"pipeline\":\"p\""), "{config}");
    }
}
