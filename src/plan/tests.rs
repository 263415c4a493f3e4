//! Plans of good pipelines, and what random damage does to them.

use super::*;
use crate::rng::Streams;
use serde_json::json;

fn plan_with(text: &str, options: &Options) -> Result<Plan> {
    plan_text(Path::new("x.toml"), text, options)
}

fn good(text: &str) -> Plan {
    good_with(text, None, &[])
}

fn good_with(text: &str, profile: Option<&str>, set: &[&str]) -> Plan {
    let set = set.iter().map(|set| set.to_string()).collect();
    let options = Options { profile: profile.map(str::to_string), set, style: false };
    plan_with(text, &options).unwrap_or_else(|error| panic!("{error}"))
}

fn node<'a>(plan: &'a Plan, stage: &str) -> &'a Node {
    plan.nodes.iter().find(|node| node.stage == stage).expect("the stage is planned")
}

fn labels(plan: &Plan) -> Vec<&str> {
    plan.nodes.iter().map(|node| node.label.as_str()).collect()
}

const CHAIN: &str = r#"
name = "chain"
seed = 3
[stages.last]
stage = "test/echo"
from = { tables = ["middle", "first"] }
range.high = 5
[stages.middle]
stage = "test/echo"
from = { tables = "first" }
random = true
[stages.first]
stage = "test/echo"
value = 2
[profile.quick]
seed = 9
"stages.first" = { steps = 4 }
"stages.first.range" = { high = 2.5 }
[profile.quick.stages.last]
value = 0.5
from.tables = "first"
"#;

#[test]
fn sources_come_first_then_the_order_of_the_file() {
    let plan = good(CHAIN);
    assert_eq!(labels(&plan), ["first", "middle", "last"]);
    assert_eq!(plan.upstream(2), [0, 1]);
    let independent =
        good("name = 'x'\nstages.z.stage = 'test/echo'\nstages.a.stage = 'test/echo'\nstages.m.stage = 'test/echo'");
    assert_eq!(labels(&independent), ["z", "a", "m"]);
}

#[test]
fn parameters_are_complete_and_sorted() {
    let plan = good(CHAIN);
    let expected = json!({"end": "well", "items": [], "limit": null, "random": false, "range":
        {"high": 5.0, "low": 0.0, "parts": 1}, "share": 1.0, "steps": 0, "value": 0.0});
    assert_eq!(plan.nodes[2].params().to_string(), expected.to_string().replace("'", "\""));
    assert_eq!(plan.nodes[0].params()["value"], 2.0);
    let again = (plan.nodes[2].entry.complete)(&plan.nodes[2].params()).expect("complete parameters are good");
    assert_eq!(again, plan.nodes[2].params());
}

#[test]
fn only_what_draws_has_a_seed() {
    let seeds = |plan: &Plan| ["first", "middle", "last"].map(|stage| node(plan, stage).seed);
    assert_eq!(seeds(&good(CHAIN)), [None, Some(3), None]);
    assert_eq!(seeds(&good_with(CHAIN, None, &["seed=7"])), [None, Some(7), None]);
    assert_eq!(seeds(&good_with(CHAIN, None, &["stages.middle.seed=8"])), [None, Some(8), None]);
    assert_eq!(seeds(&good_with(CHAIN, Some("quick"), &[])), [None, Some(9), None]);
}

#[test]
fn profiles_merge_tables_and_replace_the_rest() {
    let plan = good_with(CHAIN, Some("quick"), &[]);
    assert_eq!(labels(&plan), ["first", "last", "middle"]);
    assert_eq!(node(&plan, "first").params()["steps"], 4);
    assert_eq!(node(&plan, "first").params()["range"], json!({"high": 2.5, "low": 0.0, "parts": 1}));
    assert_eq!(node(&plan, "last").params()["range"]["high"], 5.0);
    assert_eq!(node(&plan, "last").params()["value"], 0.5);
    assert_eq!(plan.upstream(1), [0]);
}

#[test]
fn set_takes_toml_values_and_bare_words() {
    let plan = good_with(
        CHAIN,
        Some("quick"),
        &[
            "stages.first.end=error",
            "stages.first.items = [1, 2]",
            "stages.first.range.low=-1",
            "stages.first.limit=1e-3",
        ],
    );
    let params = plan.nodes[0].params();
    assert_eq!(params["end"], "error");
    assert_eq!(params["items"], json!([1, 2]));
    assert_eq!(params["range"], json!({"high": 2.5, "low": -1.0, "parts": 1}));
    assert_eq!(params["limit"], 1e-3);
    assert_eq!(plan.identity.overrides.len(), 4);
}

const MATRIX: &str = r#"
name = "matrix"
[stages.data]
stage = "test/echo"
[stages.noise]
stage = "test/echo"
from = { tables = "data" }
random = true
[stages.poisoned]
stage = "test/echo"
from = { tables = "data" }
value = "${rate}"
[stages.model]
stage = "test/echo"
from = { tables = ["poisoned", "noise"] }
[stages.fixed]
stage = "test/echo"
from = { tables = "poisoned" }
random = true
seed = 5
[stages.all]
stage = "test/echo"
from = { tables = ["model[*]", "data"] }
[matrix]
rate = [0.05, 1]
seed = [0, 1]
"#;

#[test]
fn what_points_share_is_one_node() {
    let plan = good(MATRIX);
    assert_eq!(
        labels(&plan),
        [
            "data",
            "noise[seed=0]",
            "noise[seed=1]",
            "poisoned[rate=0.05]",
            "poisoned[rate=1]",
            "model[rate=0.05,seed=0]",
            "model[rate=0.05,seed=1]",
            "model[rate=1,seed=0]",
            "model[rate=1,seed=1]",
            "fixed[rate=0.05]",
            "fixed[rate=1]",
            "all",
        ]
    );
    assert_eq!(plan.nodes[3].params()["value"], 0.05);
    assert_eq!((plan.nodes[1].seed, plan.nodes[2].seed, plan.nodes[9].seed), (Some(0), Some(1), Some(5)));
    assert_eq!(plan.upstream(6), [2, 3]);
    assert_eq!(plan.of_stage("model").collect::<Vec<_>>(), [5, 6, 7, 8]);
}

#[test]
fn gathered_sources_know_their_points() {
    let plan = good(MATRIX);
    let bound = &plan.nodes[11].inputs["tables"];
    assert_eq!(bound.iter().map(|source| source.node).collect::<Vec<_>>(), [5, 6, 7, 8, 0]);
    assert_eq!(bound[1].point, [("rate".to_string(), json!(0.05)), ("seed".to_string(), json!(1))]);
    assert_eq!((bound[1].label.as_str(), bound[1].port), ("model", "output"));
    assert!(bound[4].point.is_empty() && plan.nodes[11].point.is_empty());
}

#[test]
fn interpolation_reaches_stages_inputs_and_longer_strings() {
    let plan = good(
        r#"
        name = "x"
        [stages.a]
        stage = "test/echo"
        value = 1
        [stages.b]
        stage = "test/${type}"
        value = 2
        [stages.c]
        stage = "test/echo"
        from = { tables = ["${source}"] }
        [matrix]
        type = ["echo"]
        source = ["a", "b"]
        "#,
    );
    assert_eq!(labels(&plan), ["a", "b[type=echo]", "c[source=a]", "c[type=echo,source=b]"]);
    assert_eq!((plan.upstream(2), plan.upstream(3)), (vec![0], vec![1]));
}

#[test]
fn dashes_are_underscores_and_good_pipelines_are_planned_twice_alike() {
    let dashed = catalogue::find("plot/information-plane").map(|info| info.entry.name);
    assert_eq!(dashed, Some("plot/information_plane"));
    assert!(catalogue::find("test/ec-ho").is_none());
    let (one, two) = (good(MATRIX), good(MATRIX));
    let content = |plan: Plan| {
        let nodes = plan.nodes.into_iter();
        nodes.map(|node| (node.params(), node.label, node.point, node.seed, node.inputs)).collect::<Vec<_>>()
    };
    assert_eq!(content(one), content(two));
}

#[test]
fn large_pipelines_are_planned_in_file_order() {
    let mut text = String::from("name = 'large'\n");
    for stage in 0..1000 {
        text.push_str(&format!("[stages.s{stage}]\nstage = 'test/echo'\nvalue = {stage}\n"));
        if stage > 0 {
            text.push_str(&format!("from = {{ tables = ['s{}', 's{}.output'] }}\n", stage - 1, stage / 3));
        }
    }
    let plan = good(&text);
    assert!(plan.nodes.iter().enumerate().all(|(id, node)| node.label == format!("s{id}")));
}

/// Whatever is done to a pipeline, it is planned or refused with a text, and never takes the planner down.
#[test]
fn damaged_pipelines_never_panic() {
    let mut rng = Streams::new(11, "test/fuzz").stream("damage");
    let words = [
        "[",
        "]",
        "{",
        "}",
        "\"",
        "'",
        "=",
        "\n",
        "${",
        "[*]",
        ".",
        "é",
        "-1",
        "1e999",
        "nan",
        "stages",
        "matrix",
        "[[stages.a]]",
        "from",
        "9999999999999999999",
        "seed",
        "\u{0}",
        "#",
        "1979-05-27",
    ];
    let seeds = [CHAIN, MATRIX, include_str!("../cli/init.toml")];
    let mut n_refused = 0;
    for round in 0..4000 {
        let mut bytes = seeds[round % seeds.len()].as_bytes().to_vec();
        for _ in 0..1 + rng.below(4) {
            let at = rng.below(bytes.len() as u64 + 1) as usize;
            match rng.below(4) {
                0 if at < bytes.len() => bytes[at] = rng.next_u32() as u8,
                1 => bytes.truncate(bytes.len().min(at.max(bytes.len() / 2))),
                2 => drop(bytes.splice(at..at, words[rng.below(words.len() as u64) as usize].bytes())),
                _ => {
                    let end = (at + rng.below(30) as usize).min(bytes.len());
                    bytes.drain(at..end);
                }
            }
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let mut options = Options::default();
        if rng.chance(0.2) {
            options.profile = Some("quick".into());
        }
        if rng.chance(0.2) {
            let from = rng.below(text.len() as u64) as usize;
            options.set.push(text.chars().skip(from).take(20).collect());
        }
        if let Err(error) = plan_with(&text, &options) {
            n_refused += 1;
            assert!(error.is_rendered() && error.message().starts_with("error: "), "{error}");
        }
    }
    assert!(n_refused > 1000);
}
