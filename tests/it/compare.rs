//! Published numbers beside ours, run times as a figure: what is read off the records of a pipeline.

use crate::harness::Project;
use serde_json::Value;

/// Two attacks by one defence by two seeds, as small as it goes.
const SMALL: &str = r#"
name = "small"
[matrix]
attack = ["badnet", "blend"]
seed = [0, 1]
[stages.clean]
stage = "data/cifar10"
subset = "embedded"
n_train_per_class = 12
n_test_per_class = 3
[stages.defender]
stage = "data/clean_split"
from = { dataset = "clean" }
share = 0.2
[stages.poisoned]
stage = "poison/${attack}"
from = { clean = "defender.remainder" }
rate = 0.2
[stages.packed]
stage = "pack/beton"
from = { dataset = "poisoned" }
[stages.model]
stage = "train/classifier"
from = { dataset = "packed" }
model = "resnet8"
epochs = 1
batch_size = 32
evaluate_every = 0
[stages.fine_tune]
stage = "purify/fine_tune"
from = { model = "model", clean = "defender" }
epochs = 1
batch_size = 12
[stages.scores]
stage = "evaluate/backdoor"
from = { models = ["model", "fine_tune"], dataset = "packed" }
[stages.summary]
stage = "evaluate/over_seeds"
from = { scores = "scores[*]" }
"#;

/// The cells of a CSV without quotes, by row and column.
struct Csv {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Csv {
    fn of(text: &str) -> Csv {
        let mut lines = text.lines().map(|line| line.split(',').map(String::from).collect::<Vec<_>>());
        Csv { header: lines.next().unwrap(), rows: lines.collect() }
    }

    fn get<'a>(&'a self, row: &'a [String], column: &str) -> &'a str {
        let at = self.header.iter().position(|name| name == column);
        &row[at.unwrap_or_else(|| panic!("no column `{column}` in {:?}", self.header))]
    }

    fn number(&self, row: &[String], column: &str) -> f64 {
        self.get(row, column).parse().unwrap_or_else(|_| panic!("{column}: {row:?}"))
    }

    /// The rows with these values.
    fn of_rows<'a>(&'a self, wanted: &[(&str, &str)]) -> Vec<&'a Vec<String>> {
        self.rows.iter().filter(|row| wanted.iter().all(|(column, value)| self.get(row, column) == *value)).collect()
    }
}

#[test]
fn scores_stand_beside_published_numbers_and_run_times_are_drawn() {
    let project = Project::new();
    project.write("p.toml", SMALL);
    let ran = project.runner(&["compare", "p.toml", "--against", "published"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("has not been computed") && ran.err.contains("runner run p.toml"), "{}", ran.err);
    project.ok(&["run", "p.toml"]);

    // One row a model: what papers tabulate, by these names.
    let scores = Csv::of(&project.ok(&["show", "p.toml", "scores", "--format", "csv"]).out);
    assert_eq!(scores.rows.len(), 8);
    for column in ["attack", "seed", "clean_accuracy", "attack_success", "robust_accuracy", "der", "seconds"] {
        assert!(scores.rows.iter().all(|row| !scores.get(row, column).is_empty()), "{column}");
    }
    assert_eq!(scores.of_rows(&[("attack", "blend"), ("defence", "fine_tune")]).len(), 2);

    let compare = |args: &[&str]| {
        let all = [&["compare", "p.toml"][..], args, &["--against", "published", "--format", "csv"]].concat();
        Csv::of(&project.ok(&all).out)
    };
    let compared = compare(&[]);
    // Three sources have the attacked models; two of them plain fine-tuning.
    let sources = |attack: &str, defence: &str| -> Vec<String> {
        let rows = compared.of_rows(&[("attack", attack), ("defence", defence)]);
        rows.into_iter().map(|row| compared.get(row, "source").to_string()).collect()
    };
    assert_eq!(sources("badnet", "none"), ["backdoorbench", "fip", "ft-sam", "nft"]);
    assert_eq!(sources("blend", "fine_tune"), ["backdoorbench", "ft-sam"]);
    let row = compared.of_rows(&[("attack", "badnet"), ("defence", "fine_tune"), ("source", "backdoorbench")])[0];
    assert_eq!(
        ["clean_accuracy_published", "attack_success_published", "robust_accuracy_published"]
            .map(|c| compared.number(row, c)),
        [89.96, 1.48, 89.39]
    );
    let seeds = scores.of_rows(&[("attack", "badnet"), ("defence", "fine_tune")]);
    for column in ["clean_accuracy", "der", "seconds"] {
        let mean = seeds.iter().map(|row| scores.number(row, column)).sum::<f64>() / 2.0;
        assert!((compared.number(row, column) - mean).abs() < 1e-9, "{column}");
    }
    let difference = compared.number(row, "der") - compared.number(row, "der_published");
    assert!((compared.number(row, "der_difference") - difference).abs() < 1e-9);
    assert!(compared.number(row, "clean_accuracy_half") >= 0.0);
    assert_eq!((compared.get(row, "n"), compared.get(row, "seconds_published")), ("2", ""));

    // The table of means is that of the scores that it averages; one point is that point.
    assert_eq!(compare(&["summary"]).rows, compared.rows);
    let one = compare(&["scores[attack=blend,seed=1]"]);
    assert!(one.rows.iter().all(|row| one.get(row, "attack") == "blend" && one.get(row, "n") == "1"));

    let text = project.ok(&["compare", "p.toml", "--against", "published"]).out;
    for expected in [
        "ours: cifar10 (the embedded part), resnet8, poison rate 20 %, trained for 1 epoch, 20 % clean images",
        "differs: here resnet8, not preact-resnet18",
        "differs: here poison rate 20 %, not 10 %",
        "NeurIPS 2022",
    ] {
        let joined = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(joined.contains(expected), "no `{expected}` in {text}");
    }
    let json = project.ok(&["compare", "p.toml", "--against", "published", "--format", "json"]).out;
    assert!(serde_json::from_str::<Value>(&json).unwrap()["rows"].as_array().is_some_and(|rows| !rows.is_empty()));

    let ran = project.ok(&["show", "p.toml", "scores", "--figure"]);
    assert!(ran.err.contains("scores.seconds.svg"), "{}", ran.err);
    let svg = std::fs::read_to_string(project.path().join("results/small/scores.seconds.svg")).unwrap();
    assert!(svg.contains(">fine tune<") && svg.contains("wall time"));
    assert_eq!(project.runner(&["show", "p.toml", "model", "--figure"]).code, 2);
    assert_eq!(project.runner(&["show", "p.toml", "summary", "--figure"]).code, 2);
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let project = Project::new();
    project.write("p.toml", SMALL);
    project.write("empty.toml", "name = \"empty\"\n[stages.a]\nstage = \"test/echo\"\nvalue = 0.5\n");
    let check = |args: &[&str], expected: &str| {
        let ran = project.runner(args);
        assert_eq!(ran.code, 2, "{args:?}");
        assert!(ran.err.contains(expected), "no `{expected}` in {}", ran.err);
    };
    check(&["compare", "p.toml", "--against", "yesterday"], "the numbers of backdoorbench, fip, ft-sam, nft");
    check(&["compare", "p.toml"], "--against");
    check(&["compare", "p.toml", "nothing", "--against", "published"], "has no stage `nothing`");
    check(&["compare", "p.toml", "packed", "--against", "published"], "choose among scores, summary");
    check(&["compare", "empty.toml", "--against", "published"], "scores no models");
    check(&["show", "p.toml", "--figure"], "<STAGE>");
}
