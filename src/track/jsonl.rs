//! A run as JSON lines in a file: one object a line, each with `"schema": 1`, the run's name and the time.
//!
//! ```text
//! {"event":"run", "run":ID, "pipeline":{...}, "combinations":[{"label","point","seed"}], "stages":{NODE: {...}}}
//! {"event":"state", "node":"model[rate=0.1]", "state":"cached", "key":..., "seconds":..., ...}
//! {"event":"scalars", "series":"model/history", "axis":"epoch", "at":3, "values":{"loss":0.7}, "cached":false}
//! {"event":"table", "name":"scores", "table":{"columns","rows","notes"}, "cached":true}
//! {"event":"figure", "name":"curves", "format":"png", "width":..., "height":..., "base64":..., "cached":true}
//! {"event":"progress", ...}   {"event":"warning", ...}
//! {"event":"end", "exit_code":0, "ran":3, ...}
//! ```
//!
//! Complete in itself: figures and tables are in it. A fact that concerns several combinations stands once, under the
//! node's own label and `point`. Several runs may share a file; the field `run` tells them apart.

use super::append::Appender;
use super::runs::{Runs, stage};
use super::{End, Fact, Sink, What};
use crate::error::{IoExt, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use std::path::Path;

/// The file.
pub struct Jsonl<'a> {
    runs: &'a Runs<'a>,
    file: Appender,
}

impl Jsonl<'_> {
    /// Opens `path` for appending and writes who the run is.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn open<'a>(path: &Path, runs: &'a Runs<'a>) -> Result<Jsonl<'a>> {
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            std::fs::create_dir_all(dir).at("create", dir)?;
        }
        let file = Appender::open(path.to_path_buf())?;
        end_last_line(&file)?;
        let sink = Jsonl { runs, file };
        let nodes = (0..runs.plan.nodes.len()).filter(|id| !runs.of_node[*id].is_empty());
        let stages: Map<String, Value> = nodes
            .map(|id| {
                let node = &runs.plan.nodes[id];
                let mut stage = stage(node);
                stage["point"] = node.point.iter().cloned().collect::<Map<_, _>>().into();
                (node.label.clone(), stage)
            })
            .collect();
        let combination = |run: &super::runs::Run| {
            let point: Map<String, Value> = run.point.iter().cloned().collect();
            json!({"label": run.label, "point": point, "seed": run.seed})
        };
        let mut identity = runs.all.first().map(|run| runs.identity(run)).unwrap_or_default();
        if let Some(identity) = identity.as_object_mut() {
            // Of one combination; they stand beside it.
            identity.retain(|key, _| !["combination", "seed", "run"].contains(&key.as_str()));
        }
        let combinations: Vec<Value> = runs.all.iter().map(combination).collect();
        let run = json!({"pipeline": identity, "combinations": combinations, "stages": stages});
        sink.write("run", runs.started, run)?;
        Ok(sink)
    }

    fn write(&self, event: &str, time: f64, rest: Value) -> Result<()> {
        let mut line = json!({"schema": 1, "event": event, "run": self.runs.id, "time": time});
        if let (Some(line), Value::Object(rest)) = (line.as_object_mut(), rest) {
            line.extend(rest);
        }
        let mut bytes = serde_json::to_vec(&line)?;
        bytes.push(b'\n');
        self.file.append(&bytes)
    }
}

/// A run that was killed may have left half a line, which must not take ours with it.
fn end_last_line(file: &Appender) -> Result<()> {
    use std::io::{Read, Seek, SeekFrom};
    let mut reader = std::fs::File::open(file.path()).at("read", file.path())?;
    // A device or a pipe has no last line.
    let length = reader.metadata().at("look at", file.path())?.len();
    let mut last = [b'\n'];
    if length > 0 {
        reader.seek(SeekFrom::End(-1)).and_then(|_| reader.read_exact(&mut last)).at("read", file.path())?;
    }
    if last == *b"\n" { Ok(()) } else { file.append(b"\n") }
}

impl Sink for Jsonl<'_> {
    fn tell(&mut self, _: &[usize], fact: &Fact) -> Result<()> {
        let (event, mut object) = match &fact.what {
            What::State(state) => ("state", state.json()),
            What::Progress { done, total, unit, headline } => {
                ("progress", json!({"done": done, "total": total, "unit": unit, "headline": headline}))
            }
            What::Warning(message) => ("warning", json!({"message": message})),
            What::Scalars { scalars, is_cached } => {
                let values: Map<String, Value> =
                    scalars.values.iter().map(|scalar| (scalar.name.clone(), scalar.value.into())).collect();
                let (series, axis, at) = (&scalars.prefix, &scalars.axis, axis_value(scalars));
                ("scalars", json!({"series": series, "axis": axis, "at": at, "values": values, "cached": is_cached}))
            }
            What::Table { name, table, is_cached } => {
                ("table", json!({"name": name, "table": table, "cached": is_cached}))
            }
            What::Figure { name, figure, is_cached } => (
                "figure",
                json!({
                    "name": name,
                    "format": "png",
                    "width": figure.width,
                    "height": figure.height,
                    "base64": STANDARD.encode(&figure.png),
                    "cached": is_cached,
                }),
            ),
        };
        object["node"] = fact.node.label.clone().into();
        object["stage"] = fact.node.entry.name.into();
        self.write(event, fact.time, object)
    }

    fn end(&mut self, end: &End) -> Result<()> {
        let mut object = end.summary.clone();
        object["exit_code"] = end.exit_code.into();
        self.write("end", end.time, object)
    }

    fn look(&self) -> String {
        self.file.path().display().to_string()
    }
}

fn axis_value(scalars: &super::Scalars) -> Option<i64> {
    scalars.axis.is_some().then_some(scalars.at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::track::runs::tests::{plan, runs};
    use crate::track::scalars::{Scalar, Scalars};

    #[test]
    fn a_line_stands_for_itself_and_half_a_line_before_it_does_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/run.jsonl");
        let plan = plan("name = \"p\"\n[matrix]\nv = [1, 2]\n[stages.a]\nstage = \"test/echo\"\nvalue = \"${v}\"");
        let runs = runs(&plan);
        drop(Jsonl::open(&path, &runs).unwrap());
        std::fs::write(&path, "{\"event\":\"sta").unwrap();
        let mut sink = Jsonl::open(&path, &runs).unwrap();
        let values = vec![Scalar { name: "loss".into(), value: 0.1 + 0.2, about: String::new() }];
        let scalars = &Scalars { prefix: "a/history".into(), axis: Some("epoch".into()), at: 3, values };
        let what = What::Scalars { scalars, is_cached: false };
        sink.tell(&[1], &Fact { time: 5.25, node: &plan.nodes[1], what }).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        let run: Value = serde_json::from_str(lines[1]).unwrap();
        assert_eq!(run["combinations"][1], json!({"label": "v=2", "point": {"v": 2}, "seed": 0}));
        assert_eq!(run["stages"]["a[v=2]"]["params"]["value"], 2.0);
        assert_eq!(run["pipeline"]["pipeline"], "p");
        assert_eq!(
            lines[2],
            "{\"schema\":1,\"event\":\"scalars\",\"run\":\"20261121_100400-abcdefgh\",\"time\":5.25,\
             \"series\":\"a/history\",\"axis\":\"epoch\",\"at\":3,\"values\":{\"loss\":0.30000000000000004},\
             \"cached\":false,\"node\":\"a[v=2]\",\"stage\":\"test/echo\"}"
        );
    }
}
