//! Every stage of the registry, run for real on a small pipeline: the same key gives the same bytes on one and on two
//! threads, defaults are complete, unknown parameters are refused.

use crate::harness::Project;
use runner::stages::STAGES;
use serde_json::{Value, json};

const SMOKE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/pipelines/smoke/every_stage.toml");

#[test]
fn the_smoke_pipeline_uses_every_stage() {
    let text = std::fs::read_to_string(SMOKE).unwrap();
    for entry in STAGES.iter().filter(|entry| entry.family() != "test") {
        assert!(text.contains(&format!("\"{}\"", entry.name)), "{} is missing from {SMOKE}", entry.name);
    }
}

#[test]
fn the_same_key_gives_the_same_bytes_on_one_and_on_two_threads() {
    let run = |threads: &str, jobs: &str| {
        let project = Project::new();
        project.ok(&["run", SMOKE, "--threads", threads, "--jobs", jobs]);
        project.ok(&["verify"]);
        check_scores(&project.ok(&["show", SMOKE, "scores", "--format", "csv"]).out);
        project.digests(SMOKE, &[])
    };
    assert_eq!(run("1", "1"), run("2", "2"));
}

/// The scores of defences name them, count their passes, and stand beside what their stages took.
fn check_scores(csv: &str) {
    let lines: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    let at =
        |column: &str| lines[0].iter().position(|name| *name == column).unwrap_or_else(|| panic!("{column}: {csv}"));
    for column in ["clean_accuracy", "attack_success", "robust_accuracy", "der", "seconds", "peak_memory"] {
        assert!(
            lines[1..].iter().all(|line| line[at(column)].parse::<f64>().is_ok_and(f64::is_finite)),
            "{column}: {csv}"
        );
    }
    let of = |model: &str, column: &str| lines[1..].iter().find(|line| line[0] == model).unwrap()[at(column)];
    assert_eq!((of("model", "defence"), of("model", "forward_images")), ("none", ""));
    // Two passes over 40 images.
    assert_eq!((of("purified", "defence"), of("purified", "forward_images")), ("fine_tune", "80"));
    assert_eq!((of("purified", "n_clean"), of("purified", "backward_images")), ("40", "80"));
    // Beside them: a pass for the diagonal, and three of 40 images for the trace in each of 6 steps.
    assert_eq!((of("flat", "defence"), of("flat", "forward_images")), ("fip", "840"));
    assert_eq!((of("sharp", "forward_images"), of("sharp", "backward_images")), ("160", "160"));
    assert_eq!((of("bounded", "defence"), of("bounded", "forward_images")), ("clp", "0"));
    assert_eq!((of("lean", "n_clean"), of("lean", "n_held_out")), ("40", "8"));
}

#[test]
fn completing_parameters_is_idempotent_and_refuses_the_unknown() {
    for entry in STAGES {
        let schema = (entry.schema)();
        let required = schema.get("required").and_then(Value::as_array).is_some_and(|r| !r.is_empty());
        if !required {
            let once = (entry.complete)(&json!({})).unwrap_or_else(|e| panic!("{}: {e}", entry.name));
            let twice = (entry.complete)(&once).unwrap_or_else(|e| panic!("{}: {e}", entry.name));
            assert_eq!(once, twice, "{}", entry.name);
        }
        assert!((entry.complete)(&json!({ "no_such_parameter": 1 })).is_err(), "{}", entry.name);
        assert_eq!(schema.get("additionalProperties"), Some(&json!(false)), "{}", entry.name);
    }
}

#[test]
fn every_stage_documents_itself() {
    for entry in STAGES {
        assert!(!entry.description().is_empty(), "{}: its parameter struct has no doc comment", entry.name);
        let schema = (entry.schema)();
        let properties = schema.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
        for (name, property) in properties {
            assert!(property.get("description").is_some(), "{}: `{name}` has no doc comment", entry.name);
        }
        for port in (entry.inputs)() {
            assert!(!port.doc.is_empty(), "{}: input `{}` has no doc comment", entry.name, port.name);
        }
    }
}

#[test]
fn stages_stand_in_alphabetical_order() {
    let names: Vec<&str> = STAGES.iter().map(|entry| entry.name).collect();
    assert!(names.is_sorted(), "{names:?}");
}
