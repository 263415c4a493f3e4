//! TensorBoard event files: TFRecords of `Event` messages, one folder a run.
//!
//! ```text
//! DIR/<pipeline>[/<profile>]/<run>[/<combination>]/events.out.tfevents.<time>.<host>.<process>
//! ```
//!
//! A record is its length (u64), the length's masked CRC-32C, the data, the data's masked CRC-32C, all little-endian
//! (`tensorflow/core/lib/io/record_writer.h`). Messages: `tensorflow/core/util/event.proto`, `framework/summary.proto`,
//! `framework/tensor.proto`; `tensorboard/plugins/hparams/plugin_data.proto`.
//!
//! Scalars and images are written in their first, plain form (`simple_value`, `image`), which every version of every
//! reader knows; texts and hyper-parameters are tensors of their plugins.

use super::append::Appender;
use super::crc32c::masked;
use super::protobuf::Message;
use super::runs::{Run, Runs};
use super::scalars::Scalar;
use super::{End, Fact, Picture, Sink, State, What};
use crate::error::{IoExt, Result};
use crate::report::table::{self, Format, Style};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// TensorBoard shows a whole table in one text; longer ones are cut.
const MAX_ROWS: usize = 200;

/// The event files of all runs.
pub struct TensorBoard<'a> {
    runs: &'a Runs<'a>,
    /// What was asked for, for `--logdir`.
    dir: PathBuf,
    files: Vec<Appender>,
    /// How the nodes of each run stand, for a table of them.
    states: Vec<Vec<(String, State)>>,
}

impl TensorBoard<'_> {
    /// Makes a folder for every run below `dir`, with what is known of it.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn open<'a>(dir: &Path, runs: &'a Runs<'a>) -> Result<TensorBoard<'a>> {
        let base = dir.join(runs.name()).join(&runs.id);
        let mut files = Vec::with_capacity(runs.all.len());
        for run in &runs.all {
            let folder = base.join(run.label.replace('/', "_"));
            std::fs::create_dir_all(&folder).at("create", &folder)?;
            let (seconds, process) = (runs.started as u64, std::process::id());
            let file = folder.join(format!("events.out.tfevents.{seconds:010}.{}.{process}", runs.host));
            files.push(Appender::create(file, &first(runs, run))?);
        }
        let states = vec![Vec::new(); runs.all.len()];
        Ok(TensorBoard { runs, dir: dir.to_path_buf(), files, states })
    }
}

impl Sink for TensorBoard<'_> {
    fn tell(&mut self, runs: &[usize], fact: &Fact) -> Result<()> {
        let origin = |is_cached: &bool| if *is_cached { "from the cache" } else { "" };
        let bytes = match &fact.what {
            What::State(state) => {
                if state.state == "started" {
                    return Ok(());
                }
                for run in runs {
                    let states = &mut self.states[*run];
                    states.retain(|(stage, _)| *stage != fact.node.stage);
                    states.push((fact.node.stage.clone(), (*state).clone()));
                }
                return Ok(());
            }
            What::Progress { .. } | What::Warning(_) => return Ok(()),
            What::Scalars { scalars, is_cached } => {
                let value = |scalar: &Scalar| {
                    let parts = [scalar.about.as_str(), origin(is_cached)];
                    let about = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ");
                    scalar_value(&scalars.tag(scalar), scalar.value, &about)
                };
                // One event holds all numbers of a place.
                summary(fact.time, scalars.at, scalars.values.iter().map(value))
            }
            What::Table { name, table, is_cached } => {
                let mut text = String::new();
                if *is_cached {
                    text.push_str("*from the cache*\n\n");
                }
                let mut shown = (*table).clone();
                if shown.rows.len() > MAX_ROWS {
                    shown.rows.truncate(MAX_ROWS);
                    shown.notes.insert(0, format!("the first {MAX_ROWS} of {} rows", table.rows.len()));
                }
                text.push_str(&table::render(&shown, Format::Markdown, &Style { all: true, ..Style::default() })?);
                summary(fact.time, 0, [text_value(name, &text)])
            }
            What::Figure { name, figure, is_cached } => {
                summary(fact.time, 0, [image_value(name, figure, origin(is_cached))])
            }
        };
        let record = record(&bytes);
        runs.iter().try_for_each(|run| self.files[*run].append(&record))
    }

    fn end(&mut self, end: &End) -> Result<()> {
        for (file, states) in self.files.iter().zip(&self.states) {
            let status = if end.exit_code == 0 { SUCCESS } else { FAILURE };
            // plugin_data.proto: SessionEndInfo.
            let info = Message::new().int(1, status).double(2, end.time);
            let plugin = Message::new().message(4, &info);
            let values = [
                hparams_value("_hparams_/session_end_info", &plugin),
                text_value("run/stages", &stages(states)),
                text_value("run/end", &code_block(&end.summary)),
            ];
            file.append(&record(&summary(end.time, 0, values)))?;
        }
        Ok(())
    }

    fn look(&self) -> String {
        format!("tensorboard --logdir {}", self.dir.join(self.runs.name()).display())
    }
}

/// summary.proto, Image.colorspace: 4 is RGBA. Readers take it from the PNG.
const RGBA: i64 = 4;
/// types.proto.
const DT_FLOAT: i64 = 1;
/// types.proto.
const DT_STRING: i64 = 7;
/// hparams/api.proto, Status.
const SUCCESS: i64 = 1;
/// hparams/api.proto, Status.
const FAILURE: i64 = 2;

/// The records that begin the file of a run.
fn first(runs: &Runs, run: &Run) -> Vec<u8> {
    let mut bytes = record(&event(runs.started, 0).text(3, "brain.Event:2").into_bytes());
    let mut hparams = Message::new();
    for (key, value) in runs.parameters(run) {
        // A map is a list of pairs; google.protobuf.Value holds one of several fields.
        let value = match &value {
            Value::Bool(value) => Message::new().int(4, i64::from(*value)),
            Value::Number(number) => Message::new().double(2, number.as_f64().unwrap_or(f64::NAN)),
            Value::String(text) => Message::new().text(3, text),
            other => Message::new().text(3, &other.to_string()),
        };
        hparams = hparams.message(1, &Message::new().text(1, &key).message(2, &value));
    }
    // No group name: TensorBoard would take the runs of a matrix for repetitions of one.
    let session = hparams.double(5, runs.started);
    let plugin = Message::new().message(3, &session);
    let parameters = Value::Object(runs.stages(run));
    let values = [
        hparams_value("_hparams_/session_start_info", &plugin),
        text_value("run/identity", &code_block(&runs.identity(run))),
        text_value("run/parameters", &code_block(&parameters)),
    ];
    bytes.extend(record(&summary(runs.started, 0, values)));
    bytes
}

/// How the nodes stand, as a table.
fn stages(states: &[(String, State)]) -> String {
    let mut text = "| stage | state | seconds | key | computed by |\n| --- | --- | ---: | --- | --- |\n".to_string();
    for (stage, state) in states {
        let seconds = state.seconds.map_or(String::new(), |seconds| format!("{seconds:.2}"));
        let key = state.key.map_or(String::new(), |key| key.to_string());
        let origin = state.origin.as_deref().or(state.message.as_deref()).unwrap_or_default();
        let origin = origin.replace(['|', '\n'], " ");
        text.push_str(&format!("| {stage} | {} | {seconds} | {key} | {origin} |\n", state.state));
    }
    text
}

fn code_block(value: &Value) -> String {
    format!("```\n{}\n```\n", serde_json::to_string_pretty(value).unwrap_or_default())
}

/// event.proto, Event: wall_time, step.
fn event(time: f64, step: i64) -> Message {
    Message::new().double(1, time).int(2, step)
}

/// An event whose summary holds these values.
fn summary(time: f64, step: i64, values: impl IntoIterator<Item = Message>) -> Vec<u8> {
    let summary = values.into_iter().fold(Message::new(), |summary, value| summary.message(1, &value));
    event(time, step).message(5, &summary).into_bytes()
}

/// summary.proto, DataClass. Without it, TensorBoard's data server forgets descriptions.
#[derive(Clone, Copy)]
enum Class {
    Unknown = 0,
    Scalar = 1,
    Tensor = 2,
    Blobs = 3,
}

/// summary.proto, SummaryMetadata: the plugin, and a description for people.
fn metadata(plugin: &str, class: Class, content: &[u8], description: &str) -> Message {
    let mut data = Message::new().text(1, plugin);
    if !content.is_empty() {
        data = data.blob(2, content);
    }
    let mut metadata = Message::new().message(1, &data);
    if !description.is_empty() {
        metadata = metadata.text(3, description);
    }
    match class {
        Class::Unknown => metadata,
        _ => metadata.int(4, class as i64),
    }
}

fn scalar_value(tag: &str, value: f64, description: &str) -> Message {
    Message::new().text(1, tag).float(2, value as f32).message(9, &metadata("scalars", Class::Scalar, &[], description))
}

fn image_value(tag: &str, figure: &Picture, description: &str) -> Message {
    let (height, width) = (i64::from(figure.height), i64::from(figure.width));
    let image = Message::new().int(1, height).int(2, width).int(3, RGBA).blob(4, &figure.png);
    Message::new().text(1, tag).message(4, &image).message(9, &metadata("images", Class::Blobs, &[], description))
}

fn text_value(tag: &str, text: &str) -> Message {
    let shape = Message::new().message(2, &Message::new().int(1, 1));
    let tensor = Message::new().int(1, DT_STRING).message(2, &shape).text(8, text);
    Message::new().text(1, tag).message(8, &tensor).message(9, &metadata("text", Class::Tensor, &[], ""))
}

/// Hyper-parameters are all metadata; the tensor is empty.
fn hparams_value(tag: &str, plugin: &Message) -> Message {
    let shape = Message::new().message(2, &Message::new());
    let tensor = Message::new().int(1, DT_FLOAT).message(2, &shape);
    let metadata = metadata("hparams", Class::Unknown, &plugin.clone().into_bytes(), "");
    Message::new().text(1, tag).message(8, &tensor).message(9, &metadata)
}

/// Frames a record.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut bytes = Vec::with_capacity(data.len() + 16);
    bytes.extend_from_slice(&length);
    bytes.extend_from_slice(&masked(&length).to_le_bytes());
    bytes.extend_from_slice(data);
    bytes.extend_from_slice(&masked(data).to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::Table;
    use crate::artifact::table::{Cell, Column};
    use crate::track::runs::tests::{plan, runs};
    use crate::track::scalars::Scalars;

    fn check(data: Vec<u8>, expected: &str) {
        let hex: String = record(&data).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, expected);
    }

    /// Bytes by `tests/peers/tensorboard_read.py golden`: TensorBoard's own messages and record writer.
    #[test]
    fn records_are_those_of_tensorboard() {
        let version = Message::new().double(1, 1.5).text(3, "brain.Event:2").into_bytes();
        check(version, "1800000000000000a37f4b2209000000000000f83f1a0d627261696e2e4576656e743a322a28646c");
        let scalars = [scalar_value("model/history/loss", 0.5, "mean [nats]"), scalar_value("a/b", -2.0, "")];
        check(
            summary(2.5, 3, scalars),
            "5f00000000000000503f288609000000000000044010032a520a350a126d6f64656c2f686973746f72792f6c6f7373150000003f\
             4a1a0a090a077363616c6172731a0b6d65616e205b6e6174735d20010a190a03612f6215000000c04a0d0a090a077363616c6172\
             732001c7b80eef",
        );
        let figure = Picture { png: b"png".to_vec(), width: 3, height: 2 };
        check(
            summary(2.5, 1, [text_value("note", "hi"), image_value("curves", &figure, "from the cache")]),
            "6400000000000000435f1cdf09000000000000044010012a570a200a046e6f7465420c0807120412020801420268694a0a0a060a\
             047465787420020a330a06637572766573220b0802100318042203706e674a1c0a080a06696d616765731a0e66726f6d20746865\
             206361636865200358eda5d4",
        );
        let value = Message::new().double(2, 12.0);
        let session = Message::new().message(1, &Message::new().text(1, "model.epochs").message(2, &value));
        let plugin = Message::new().message(3, &session.text(4, "g").double(5, 2.5));
        check(
            summary(2.5, 1, [hparams_value("_hparams_/session_start_info", &plugin)]),
            "6d000000000000003d4de67109000000000000044010012a600a5e0a1c5f68706172616d735f2f73657373696f6e5f7374617274\
             5f696e666f42060801120212004a360a340a0768706172616d7312291a270a190a0c6d6f64656c2e65706f636873120911000000\
             0000002840220167290000000000000440f132f804",
        );
    }

    /// The data of a file's records; whatever is torn at the end is left out.
    fn records(bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        let mut rest = bytes;
        while let Some((header, after)) = rest.split_at_checked(12) {
            let length = u64::from_le_bytes(header[..8].try_into().unwrap()) as usize;
            let Some((body, later)) = after.split_at_checked(length + 4) else { break };
            assert_eq!(record(&body[..length]), rest[..12 + length + 4], "a checksum is wrong");
            records.push(body[..length].to_vec());
            rest = later;
        }
        records
    }

    #[test]
    fn every_combination_has_a_file_and_shared_facts_are_in_all() {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan(
            "name = \"p\"\n[matrix]\nv = [1, 2]\n[stages.a]\nstage = \"test/echo\"\nvalue = \"${v}\"\n\
             [stages.s]\nstage = \"test/echo\"",
        );
        let runs = runs(&plan);
        let mut sink = TensorBoard::open(dir.path(), &runs).unwrap();
        let files: Vec<PathBuf> = sink.files.iter().map(|file| file.path().to_path_buf()).collect();
        assert!(files[1].starts_with(dir.path().join("p/20261121_100400-abcdefgh/v=2")), "{files:?}");
        let counts = || files.iter().map(|file| records(&std::fs::read(file).unwrap()).len()).collect::<Vec<_>>();
        assert_eq!(counts(), [2, 2]);
        let values = vec![Scalar { name: "x".into(), value: 1.0, about: "x".into() }];
        let scalars = &Scalars { prefix: "a".into(), axis: None, at: 0, values };
        let node = plan.nodes.iter().position(|node| node.label == "a[v=2]").unwrap();
        let fact =
            |node: usize| Fact { time: 1.0, node: &plan.nodes[node], what: What::Scalars { scalars, is_cached: true } };
        sink.tell(&runs.of_node[node], &fact(node)).unwrap();
        assert_eq!(counts(), [2, 3]);
        let shared = plan.nodes.iter().position(|node| node.label == "s").unwrap();
        sink.tell(&runs.of_node[shared], &fact(shared)).unwrap();
        assert_eq!(counts(), [3, 4]);
        let mut table = Table::new(vec![Column::new("row", "")]);
        (0..300).for_each(|row| table.push(vec![Cell::Int(row)]));
        let what = What::Table { name: "a", table: &table, is_cached: true };
        sink.tell(&[0], &Fact { time: 1.0, node: &plan.nodes[node], what }).unwrap();
        let last = records(&std::fs::read(&files[0]).unwrap()).pop().unwrap();
        let text = String::from_utf8_lossy(&last);
        assert!(text.contains("*from the cache*") && text.contains("| 199 |") && !text.contains("| 200 |"), "{text}");
        assert!(text.contains("the first 200 of 300 rows"));
        // A second run of the same name beside it: nothing of the first is touched.
        assert!(TensorBoard::open(dir.path(), &runs).is_err());
    }
}
