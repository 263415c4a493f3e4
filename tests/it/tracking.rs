//! Runs told to TensorBoard, Weights & Biases and JSON lines, read back by readers that share no code with the writers.

use crate::harness::{Project, kill_9, nodes};
use base64::Engine;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Trains, scores and plots in about a second.
const TRAINING: &str = r#"
name = "tracked"
seed = 3

[stages.clean]
stage = "data/cifar10"
subset = "embedded"
n_train_per_class = 4
n_test_per_class = 2

[stages.poisoned]
stage = "poison/badnet"
from = { clean = "clean" }
rate = 0.2

[stages.packed]
stage = "pack/beton"
from = { dataset = "poisoned" }

[stages.model]
stage = "train/classifier"
from = { dataset = "packed" }
model = "resnet8"
epochs = 3
batch_size = 16

[stages.scores]
stage = "evaluate/backdoor"
from = { models = ["model"], dataset = "packed" }

[stages.curves]
stage = "plot/curves"
from = { tables = ["model.history"] }
"#;

/// A field of a protobuf message: an integer, eight or four bytes, or a run of bytes.
#[derive(Clone, Debug)]
enum Field {
    Int(u64),
    Fixed(Vec<u8>),
    Bytes(Vec<u8>),
}

impl Field {
    fn bytes(&self) -> &[u8] {
        match self {
            Field::Fixed(bytes) | Field::Bytes(bytes) => bytes,
            Field::Int(_) => panic!("{self:?} has no bytes"),
        }
    }

    fn text(&self) -> String {
        String::from_utf8(self.bytes().to_vec()).unwrap()
    }

    fn message(&self) -> Message {
        Message::read(self.bytes())
    }

    fn int(&self) -> u64 {
        match self {
            Field::Int(value) => *value,
            _ => panic!("{self:?} is no integer"),
        }
    }
}

/// The fields of a protobuf message by number, repeated ones in their order.
#[derive(Default)]
struct Message(BTreeMap<u64, Vec<Field>>);

impl Message {
    fn read(bytes: &[u8]) -> Message {
        let mut message = Message::default();
        let mut at = 0;
        let varint = |at: &mut usize| {
            let mut value = 0;
            for shift in (0..).step_by(7) {
                let byte = bytes[*at];
                *at += 1;
                value |= u64::from(byte & 0x7f) << shift;
                if byte < 0x80 {
                    break;
                }
            }
            value
        };
        while at < bytes.len() {
            let tag = varint(&mut at);
            let take = |at: &mut usize, n: usize| {
                *at += n;
                bytes[*at - n..*at].to_vec()
            };
            let field = match tag & 7 {
                0 => Field::Int(varint(&mut at)),
                1 => Field::Fixed(take(&mut at, 8)),
                2 => {
                    let n = varint(&mut at) as usize;
                    Field::Bytes(take(&mut at, n))
                }
                5 => Field::Fixed(take(&mut at, 4)),
                wire => panic!("wire type {wire}"),
            };
            message.0.entry(tag >> 3).or_default().push(field);
        }
        message
    }

    fn all(&self, number: u64) -> &[Field] {
        self.0.get(&number).map_or(&[], Vec::as_slice)
    }

    fn one(&self, number: u64) -> &Field {
        &self.all(number)[0]
    }

    fn text(&self, number: u64) -> String {
        self.all(number).first().map(Field::text).unwrap_or_default()
    }
}

/// What a TensorBoard run shows.
#[derive(Default)]
struct Board {
    scalars: BTreeMap<String, Vec<(u64, f32)>>,
    texts: BTreeMap<String, String>,
    images: BTreeMap<String, Vec<u8>>,
    hparams: BTreeMap<String, Vec<u8>>,
    descriptions: BTreeMap<String, String>,
    has_ended: bool,
}

/// Reads the one event file of a folder.
fn board(dir: &Path) -> Board {
    let bytes = std::fs::read(only(dir, "events.out.tfevents")).unwrap();
    let mut board = Board::default();
    let mut at = 0;
    while at < bytes.len() {
        let n = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        let event = Message::read(&bytes[at + 12..at + 12 + n]);
        if at == 0 {
            assert_eq!(event.text(3), "brain.Event:2");
        }
        at += n + 16;
        let step = event.all(2).first().map_or(0, Field::int);
        for value in event.all(5).iter().flat_map(|summary| summary.message().0.remove(&1).unwrap_or_default()) {
            let value = value.message();
            let tag = value.text(1);
            let metadata = value.one(9).message();
            board.descriptions.insert(tag.clone(), metadata.text(3));
            let plugin = metadata.one(1).message();
            match plugin.text(1).as_str() {
                "scalars" => {
                    let number = f32::from_le_bytes(value.one(2).bytes().try_into().unwrap());
                    board.scalars.entry(tag).or_default().push((step, number));
                }
                "text" => {
                    board.texts.insert(tag, value.one(8).message().text(8));
                }
                "images" => {
                    board.images.insert(tag, value.one(4).message().one(4).bytes().to_vec());
                }
                "hparams" => {
                    let data = plugin.one(2).message();
                    board.has_ended |= !data.all(4).is_empty();
                    for pair in data.all(3).iter().flat_map(|info| info.message().0.remove(&1).unwrap_or_default()) {
                        board.hparams.insert(pair.message().text(1), pair.message().one(2).bytes().to_vec());
                    }
                }
                plugin => panic!("{plugin}"),
            }
        }
    }
    board
}

/// What a Weights & Biases run would upload.
#[derive(Default)]
struct Offline {
    project: String,
    config: BTreeMap<String, Value>,
    history: Vec<BTreeMap<String, Value>>,
    summary: BTreeMap<String, Value>,
    x_axes: BTreeMap<String, String>,
    files: Vec<String>,
    exit: Option<u64>,
}

fn items(message: &Message, number: u64) -> Vec<(String, Value)> {
    let item = |field: &Field| {
        let item = field.message();
        let path: Vec<String> = item.all(2).iter().map(Field::text).collect();
        (path.join("/"), serde_json::from_str(&item.text(16)).unwrap())
    };
    message.all(number).iter().map(item).collect()
}

/// Reads the log of an offline run.
fn offline(dir: &Path) -> Offline {
    let name = dir.file_name().unwrap().to_str().unwrap();
    let id = name.rsplit_once('-').unwrap().1;
    let bytes = std::fs::read(dir.join(format!("run-{id}.wandb"))).unwrap();
    let (mut at, mut record, mut n) = (7, Vec::new(), 0);
    let mut run = Offline::default();
    while at < bytes.len() {
        let left = 32768 - at % 32768;
        if left < 7 {
            at += left;
            continue;
        }
        let length = usize::from(u16::from_le_bytes([bytes[at + 4], bytes[at + 5]]));
        let kind = bytes[at + 6];
        record.extend_from_slice(&bytes[at + 7..at + 7 + length]);
        at += 7 + length;
        if kind == 2 || kind == 3 {
            continue;
        }
        let message = Message::read(&std::mem::take(&mut record));
        n += 1;
        assert_eq!(message.one(1).int(), n);
        for field in message.all(17) {
            let of_run = field.message();
            assert_eq!(of_run.text(1), id);
            run.project = of_run.text(3);
            run.config.extend(items(&of_run.one(4).message(), 1));
        }
        for field in message.all(5) {
            run.config.extend(items(&field.message(), 1));
        }
        for field in message.all(2) {
            assert_eq!(field.message().one(2).message().one(1).int(), run.history.len() as u64);
            run.history.push(items(&field.message(), 1).into_iter().collect());
        }
        for field in message.all(3) {
            run.summary.extend(items(&field.message(), 1));
        }
        for field in message.all(12) {
            run.x_axes.insert(field.message().text(1), field.message().text(4));
        }
        for field in message.all(6) {
            run.files.extend(field.message().all(1).iter().map(|file| file.message().text(1)));
        }
        for field in message.all(18) {
            run.exit = Some(field.message().one(1).int());
        }
    }
    run
}

fn folders(dir: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

/// The only entry whose name begins with `start`.
fn only(dir: &Path, start: &str) -> PathBuf {
    let mut found = folders(dir);
    found.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with(start));
    assert_eq!(found.len(), 1, "{start} in {}: {found:?}", dir.display());
    found.remove(0)
}

fn lines(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The curve `name` of a table: (epoch, value).
fn curve(table: &Value, name: &str) -> Vec<(u64, f64)> {
    let place = |name: &str| table["columns"].as_array().unwrap().iter().position(|c| c["name"] == name).unwrap();
    let (epoch, value) = (place("epoch"), place(name));
    let rows = table["rows"].as_array().unwrap().iter();
    rows.map(|row| (row[epoch].as_u64().unwrap(), row[value].as_f64().unwrap())).collect()
}

#[test]
fn every_format_tells_what_was_computed_and_a_cached_run_tells_it_again() {
    let project = Project::new();
    project.write("p.toml", TRAINING);
    let track = ["--track", "tensorboard=tb", "--track", "wandb=.", "--track", "jsonl=log/run.jsonl"];
    let ran = project.ok(&[&["run", "p.toml"], &track[..]].concat());
    for look in ["tracked: tensorboard --logdir tb/tracked", "tracked: wandb sync ./wandb/offline-run-"] {
        assert!(ran.err.contains(look), "{}", ran.err);
    }
    let shown = |stage: &str| -> Value {
        serde_json::from_str(&project.ok(&["show", "p.toml", stage, "--format", "json"]).out).unwrap()
    };
    let (history, scores) = (shown("model.history"), shown("scores"));
    let loss = curve(&history, "loss");
    let rounded: Vec<(u64, f32)> = loss.iter().map(|(epoch, value)| (*epoch, *value as f32)).collect();
    let accuracy = scores["columns"].as_array().unwrap().iter().position(|c| c["name"] == "clean_accuracy").unwrap();
    let accuracy = scores["rows"][0][accuracy].as_f64().unwrap();
    let png = std::fs::read(project.path().join("results/tracked/curves.png")).unwrap();

    let check = |board: &Board, offline: &Offline, lines: &[Value], is_cached: bool| {
        // TensorBoard.
        assert_eq!(board.scalars["model/history/loss"], rounded);
        assert_eq!(board.scalars["scores/clean_accuracy/model"], [(0, accuracy as f32)]);
        assert_eq!(board.images["curves"], png);
        assert_eq!(board.descriptions["curves"].contains("from the cache"), is_cached);
        assert_eq!(board.texts["scores"].starts_with("*from the cache*"), is_cached);
        assert!(board.texts["scores"].contains("| model |"), "{}", board.texts["scores"]);
        assert!(board.texts["run/identity"].contains("\"pipeline\": \"tracked\""));
        let state = if is_cached { "| model | cached |" } else { "| model | stored |" };
        assert!(board.texts["run/stages"].contains(state), "{}", board.texts["run/stages"]);
        // google.protobuf.Value: a number is field 2, a string field 3.
        let epochs = Message::read(&board.hparams["model.epochs"]).one(2).bytes().to_vec();
        assert_eq!(epochs, 3f64.to_le_bytes());
        assert_eq!(Message::read(&board.hparams["model.model"]).text(3), "resnet8");
        assert!(board.has_ended);
        assert_eq!(board.scalars.contains_key("model/train/loss"), !is_cached);

        // Weights & Biases.
        assert_eq!((offline.project.as_str(), offline.exit), ("tracked", Some(0)));
        let rows = offline.history.iter().filter(|row| row.contains_key("model/history/loss"));
        let of_row = |row: &BTreeMap<String, Value>| {
            (row["model/history/epoch"].as_u64().unwrap(), row["model/history/loss"].as_f64().unwrap())
        };
        assert_eq!(rows.map(of_row).collect::<Vec<_>>(), loss);
        assert_eq!(offline.x_axes["model/history/loss"], "model/history/epoch");
        assert_eq!(offline.summary["scores/clean_accuracy/model"], accuracy);
        assert_eq!(offline.summary["model/history/loss"], loss[2].1);
        assert_eq!(offline.summary["curves"]["_type"], "image-file");
        assert_eq!(offline.config["stages"]["model"]["params"]["epochs"], 3);
        assert_eq!(offline.config["pipeline"]["pipeline"], "tracked");
        let result = &offline.config["results/model"];
        assert_eq!(result["state"], if is_cached { "cached" } else { "stored" });
        assert_eq!(result["key"].as_str().unwrap().len(), 64);
        for file in ["curves", "scores"].map(|name| offline.summary[name]["path"].as_str().unwrap().to_string()) {
            assert!(offline.files.contains(&file), "{file}");
        }

        // JSON lines.
        let of = |event: &str| lines.iter().filter(|line| line["event"] == event).cloned().collect::<Vec<_>>();
        let scalars = of("scalars").into_iter().filter(|line| line["series"] == "model/history");
        let of_line = |line: Value| (line["at"].as_u64().unwrap(), line["values"]["loss"].as_f64().unwrap());
        assert_eq!(scalars.map(of_line).collect::<Vec<_>>(), loss);
        let table = of("table").into_iter().find(|line| line["name"] == "scores").unwrap();
        assert_eq!((&table["table"], &table["cached"]), (&scores, &json!(is_cached)));
        let figure = of("figure").remove(0);
        let decoded = base64::engine::general_purpose::STANDARD.decode(figure["base64"].as_str().unwrap()).unwrap();
        assert_eq!(decoded, png);
        assert_eq!(of("run")[0]["stages"]["model"]["params"]["model"], "resnet8");
        assert_eq!(of("end")[0]["exit_code"], 0);
    };
    let run = only(&project.path().join("tb/tracked"), "");
    let wandb = only(&project.path().join("wandb"), "offline-run-");
    let media = |offline: &Offline, name: &str| {
        std::fs::read(wandb.join("files").join(offline.summary[name]["path"].as_str().unwrap())).unwrap()
    };
    let first = offline(&wandb);
    assert_eq!(media(&first, "curves"), png);
    let table: Value = serde_json::from_slice(&media(&first, "scores")).unwrap();
    assert_eq!(table["data"], scores["rows"]);
    for file in ["config.yaml", "wandb-metadata.json", "wandb-summary.json"] {
        assert!(wandb.join("files").join(file).exists(), "{file}");
    }
    check(&board(&run), &first, &lines(&project.path().join("log/run.jsonl")), false);

    // Named by the pipeline instead of the command line: nothing runs again, and the same is told.
    let tracking = "[tracking]\ntensorboard = \"more/tb\"\nwandb = \"more\"\njsonl = \"more/run.jsonl\"\n";
    project.write("p.toml", &format!("{TRAINING}\n{tracking}"));
    let events = project.run_json("p.toml", &[]);
    assert_eq!((nodes(&events, "stored").len(), nodes(&events, "cached").len()), (0, 6));
    let more = project.path().join("more");
    let wandb = offline(&only(&more.join("wandb"), "offline-run-"));
    check(&board(&only(&more.join("tb/tracked"), "")), &wandb, &lines(&more.join("run.jsonl")), true);
    // And nobody is told.
    project.ok(&["run", "p.toml", "--no-track"]);
    assert_eq!(folders(&more.join("tb/tracked")).len(), 1);
}

#[test]
fn every_combination_is_a_run_and_what_is_gathered_another() {
    let text = r#"
name = "sweep"
[matrix]
value = [1.5, 2.5]
seed = [0, 1]
[stages.first]
stage = "test/echo"
value = "${value}"
[stages.drawn]
stage = "test/echo"
from = { tables = "first" }
random = true
[stages.end]
stage = "test/echo"
from = { tables = "drawn[*]" }
[profile.quick]
matrix = { seed = [0] }
"tracking.tensorboard" = "quick"
"#;
    let project = Project::new();
    project.write("p.toml", text);
    project.ok(&["run", "p.toml", "--track", "tensorboard=tb", "--track", "wandb=."]);
    let run = only(&project.path().join("tb/sweep"), "");
    let names = |dir: &Path| -> Vec<String> {
        folders(dir).iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_string()).collect()
    };
    let all = ["all", "value=1.5,seed=0", "value=1.5,seed=1", "value=2.5,seed=0", "value=2.5,seed=1"];
    assert_eq!(names(&run), all);
    for name in &all[1..] {
        let board = board(&run.join(name));
        let value = if name.contains("1.5") { 1.5 } else { 2.5 };
        assert_eq!(board.scalars["first/value"], [(0, value)], "{name}");
        assert_eq!(board.scalars["drawn/n_rows"], [(0, 1.0)]);
        assert!(!board.scalars.contains_key("end/n_rows") && board.hparams.contains_key("matrix.seed"));
    }
    assert_eq!(board(&run.join("all")).scalars["end/n_rows"], [(0, 4.0)]);
    let offline: Vec<Offline> = folders(&project.path().join("wandb")).iter().map(|dir| offline(dir)).collect();
    assert_eq!(offline.len(), 5);
    let points = offline.iter().filter(|run| run.config["matrix"] == json!({"value": 2.5, "seed": 1}));
    assert_eq!(points.count(), 1);
    // A profile may say where.
    project.ok(&["run", "p.toml", "--profile", "quick"]);
    let quick = only(&project.path().join("quick/sweep/quick"), "");
    assert_eq!(names(&quick), ["all", "value=1.5,seed=0", "value=2.5,seed=0"]);
}

#[test]
fn a_target_that_cannot_be_written_is_an_error_before_anything_runs() {
    let project = Project::new();
    project.write("p.toml", "name = \"p\"\n[stages.a]\nstage = \"test/echo\"\n").write("file", "");
    for target in ["tensorboard=file/x", "wandb=file", "jsonl=file/x", "jsonl=/dev/full"] {
        let ran = project.runner(&["run", "p.toml", "--track", target]);
        assert_eq!(ran.code, 2, "{}", ran.err);
        assert!(ran.err.contains(&format!("cannot track to `{target}`: cannot ")), "{}", ran.err);
        assert!(ran.err.contains("--no-track"), "{}", ran.err);
    }
    let ran = project.runner(&["run", "p.toml", "--track", "mlflow=x"]);
    assert!(ran.code == 2 && ran.err.contains("expected `tensorboard=DIR`"), "{}", ran.err);
    // A stage that does not exist is found before a folder is made for it.
    project.runner(&["run", "p.toml", "nonsense", "--track", "tensorboard=tb"]);
    assert!(!project.path().join("tb").exists());
    let plan: Value = serde_json::from_str(&project.ok(&["plan", "p.toml", "--json"]).out).unwrap();
    assert_eq!(plan["nodes"][0]["state"], "new");
}

#[test]
fn numbers_are_there_while_a_stage_runs_and_a_killed_run_can_be_read() {
    let project = Project::new();
    project.write("p.toml", "name = \"p\"\n[stages.a]\nstage = \"test/echo\"\nsteps = 100000\n");
    let track = ["--track", "tensorboard=tb", "--track", "wandb=.", "--track", "jsonl=run.jsonl"];
    let mut child = project.spawn(&[&["run", "p.toml", "--json"], &track[..]].concat());
    let log = project.path().join("run.jsonl");
    let n_scalars = || std::fs::read_to_string(&log).unwrap_or_default().matches("\"event\":\"scalars\"").count();
    let start = Instant::now();
    while n_scalars() < 3 {
        assert!(start.elapsed() < Duration::from_secs(60), "nothing was told");
        assert!(child.try_wait().unwrap().is_none(), "it ended early");
        std::thread::sleep(Duration::from_millis(10));
    }
    kill_9(&mut child);
    let board = board(&only(&project.path().join("tb/p"), ""));
    let told = &board.scalars["a/loop/share_done"];
    assert!(told.len() >= 3 && !board.has_ended);
    assert_eq!(told[..3], [(1, 1e-5), (2, 2e-5), (3, 3e-5)]);
    let wandb = offline(&only(&project.path().join("wandb"), "offline-run-"));
    assert!(wandb.history.len() >= 3 && wandb.exit.is_none());
    assert_eq!(wandb.history[1]["a/loop/share_done"], 2e-5);
    // The next run goes on in the same file.
    project.write("p.toml", "name = \"p\"\n[stages.a]\nstage = \"test/echo\"\nsteps = 1\n");
    project.ok(&["run", "p.toml", "--track", "jsonl=run.jsonl"]);
    let runs: Vec<Value> = lines(&log).into_iter().filter(|line| line["event"] == "run").collect();
    assert_eq!(runs.len(), 2);
    assert_ne!(runs[0]["run"], runs[1]["run"]);
}
