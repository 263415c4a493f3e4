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
        project.digests(SMOKE, &[])
    };
    assert_eq!(run("1", "1"), run("2", "2"));
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
