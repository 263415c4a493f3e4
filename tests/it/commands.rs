//! The commands that ask and tell.

use crate::harness::Project;
use serde_json::Value;

const TWO: &str = r#"
name = "two"
[stages.a]
stage = "test/echo"
value = 0.25
[stages.b]
stage = "test/echo"
from = { tables = "a" }
"#;

#[test]
fn show_writes_tables_in_every_format() {
    let project = Project::new();
    project.write("p.toml", TWO).ok(&["run", "p.toml"]);
    let show = |format: &str| project.ok(&["show", "p.toml", "a", "--format", format]).out;
    assert_eq!(show("csv"), "value,n_rows,random\n0.25,0,\n");
    assert!(show("terminal").contains("0.25"));
    assert!(
        show("markdown").contains("| ---") || show("markdown").contains("|---") || show("markdown").contains("| -")
    );
    assert!(show("latex").contains("\\toprule"));
    let json: Value = serde_json::from_str(&show("json")).unwrap();
    assert!(json.to_string().contains("0.25"));
}

#[test]
fn show_says_what_is_missing_and_how_to_get_it() {
    let project = Project::new();
    project.write("p.toml", TWO);
    let ran = project.runner(&["show", "p.toml", "a"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("has not been computed") && ran.err.contains("runner run p.toml"), "{}", ran.err);
    project.ok(&["run", "p.toml"]);
    assert_eq!(project.runner(&["show", "p.toml", "a.nothing"]).code, 2);
}

#[test]
fn results_hold_links_under_readable_names() {
    let project = Project::new();
    project.write("p.toml", TWO).ok(&["run", "p.toml"]);
    let text = std::fs::read_to_string(project.path().join("results/two/a.csv")).unwrap();
    assert_eq!(text, "value,n_rows,random\n0.25,0,\n");
}

#[test]
fn the_catalogue_describes_every_stage() {
    let project = Project::new();
    let list = project.ok(&["list"]).out;
    for entry in runner::stages::STAGES.iter().filter(|entry| entry.family() != "test") {
        assert!(list.contains(entry.name), "{} is not listed", entry.name);
        let text = project.ok(&["describe", entry.name]).out;
        let schema = (entry.schema)();
        for name in schema.get("properties").and_then(Value::as_object).into_iter().flat_map(|p| p.keys()) {
            assert!(text.contains(name), "{}: `{name}` is not described", entry.name);
        }
    }
    assert!(!list.contains("test/echo"));
    let ran = project.runner(&["describe", "poison/badnets"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("poison/badnet"), "{}", ran.err);
}

#[test]
fn graphs_are_drawn() {
    let project = Project::new();
    project.write("p.toml", TWO);
    assert!(project.ok(&["graph", "p.toml"]).out.contains('b'));
    assert!(project.ok(&["graph", "p.toml", "--format", "dot"]).out.starts_with("digraph"));
    assert!(project.ok(&["graph", "p.toml", "--format", "mermaid"]).out.contains("flowchart"));
}

#[test]
fn the_schema_is_json_schema() {
    let schema: Value = serde_json::from_str(&Project::new().ok(&["schema"]).out).unwrap();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
}

#[test]
fn completions_are_written() {
    let project = Project::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(project.ok(&["completions", shell]).out.contains("runner"));
    }
}

#[test]
fn gc_keeps_what_pipelines_need_and_only_tells_at_first() {
    let project = Project::new();
    project.write("p.toml", TWO).ok(&["run", "p.toml"]);
    project.ok(&["run", "p.toml", "--set", "stages.a.value=9.0"]);
    let before = project.blobs().len();
    project.ok(&["gc", "p.toml"]);
    assert_eq!(project.blobs().len(), before);
    project.ok(&["gc", "p.toml", "--delete"]);
    assert!(project.blobs().len() < before);
    project.ok(&["verify"]);
    let events = project.run_json("p.toml", &[]);
    assert_eq!(crate::harness::nodes(&events, "cached"), ["a", "b"]);
    project.ok(&["gc", "--delete"]);
    assert!(project.blobs().is_empty());
}

#[test]
fn logs_show_what_a_worker_wrote() {
    let project = Project::new();
    project.write("p.toml", &TWO.replace("value = 0.25", "end = \"panic\""));
    assert_eq!(project.runner(&["run", "p.toml"]).code, 1);
    assert!(project.ok(&["logs", "p.toml", "a"]).out.contains("asked to panic"));
    // Light stages follow one another in one process; each has a log of its own.
    project.write("p.toml", &format!("{TWO}end = \"panic\"\n"));
    assert_eq!(project.runner(&["run", "p.toml", "--jobs", "1"]).code, 1);
    assert!(project.ok(&["logs", "p.toml", "b"]).out.contains("asked to panic"));
    assert!(!project.ok(&["logs", "p.toml", "a"]).out.contains("asked to panic"));
}

#[test]
fn wrong_command_lines_end_with_two() {
    let project = Project::new();
    for args in [&["run"][..], &["run", "missing.toml"], &["nonsense"], &["run", "x.toml", "--jobs", "0"]] {
        assert_eq!(project.runner(args).code, 2, "{args:?}");
    }
}
