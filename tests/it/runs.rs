//! What runs again, what does not, and what a failure takes with it.

use crate::harness::{Project, nodes, signal};
use serde_json::Value;

/// a -> b -> c, a -> d; `c` draws.
const CHAIN: &str = r#"
name = "chain"
seed = 1

[stages.a]
stage = "test/echo"
value = 1.0

[stages.b]
stage = "test/echo"
from = { tables = "a" }
value = 2.0

[stages.c]
stage = "test/echo"
from = { tables = "b" }
random = true

[stages.d]
stage = "test/echo"
from = { tables = "a" }
value = 4.0
"#;

/// Runs `text` after CHAIN in the same cache; the nodes that were computed.
fn ran_after_edit(edit: impl Fn(&str) -> String) -> Vec<String> {
    let project = Project::new();
    project.write("p.toml", CHAIN);
    assert_eq!(nodes(&project.run_json("p.toml", &[]), "stored"), ["a", "b", "c", "d"]);
    project.write("p.toml", &edit(CHAIN));
    nodes(&project.run_json("p.toml", &[]), "stored")
}

fn check_edit(from: &str, to: &str, expected: &[&str]) {
    assert!(CHAIN.contains(from), "{from}");
    assert_eq!(ran_after_edit(|text| text.replacen(from, to, 1)), expected, "{from} -> {to}");
}

#[test]
fn only_what_depends_on_an_edit_runs_again() {
    check_edit("name", "# a comment\nname", &[]);
    check_edit("value = 4.0", "value = 5.0", &["d"]);
    check_edit("value = 2.0", "value = 3.0", &["b", "c"]);
    check_edit("seed = 1", "seed = 2", &["c"]);
    // `b` and `d` read a's new bytes; what `b` makes of them (its own value, a count of rows) is the same, so `c` is
    // not computed again: early cut-off.
    check_edit("value = 1.0", "value = 9.0", &["a", "b", "d"]);
}

#[test]
fn a_second_run_computes_nothing_and_a_reverted_edit_is_a_hit() {
    let project = Project::new();
    project.write("p.toml", CHAIN).ok(&["run", "p.toml"]);
    let events = project.run_json("p.toml", &[]);
    assert_eq!((nodes(&events, "stored").len(), nodes(&events, "cached").len()), (0, 4));
    project.run_json("p.toml", &["--set", "stages.b.value=7.0"]);
    assert_eq!(nodes(&project.run_json("p.toml", &[]), "stored"), [""; 0]);
}

#[test]
fn targets_run_with_what_they_need_and_force_runs_again() {
    let project = Project::new();
    project.write("p.toml", CHAIN);
    assert_eq!(nodes(&project.run_json("p.toml", &["b"]), "stored"), ["a", "b"]);
    assert_eq!(nodes(&project.run_json("p.toml", &["--force", "b"]), "stored"), ["b", "c", "d"]);
    let ran = project.runner(&["run", "p.toml", "nonsense"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("no stage `nonsense`") && ran.err.contains("its stages are a, b, c, d"), "{}", ran.err);
}

fn check_failure(end: &str, message: &str) {
    let project = Project::new();
    project.write("p.toml", &CHAIN.replacen("value = 2.0", &format!("value = 2.0\nend = \"{end}\""), 1));
    let ran = project.runner(&["run", "p.toml", "--json"]);
    let events = ran.events();
    assert_eq!(ran.code, 1, "{}", ran.err);
    assert_eq!(nodes(&events, "stored"), ["a", "d"], "{end}");
    assert_eq!(nodes(&events, "failed"), ["b"]);
    assert_eq!(nodes(&events, "skipped"), ["c"]);
    let failed = events.iter().find(|e| e["event"] == "failed").unwrap();
    assert!(failed["message"].as_str().unwrap().contains(message), "{failed}");
    // The failure is not remembered: mended, it runs.
    project.write("p.toml", CHAIN);
    assert_eq!(nodes(&project.run_json("p.toml", &[]), "stored"), ["b", "c"]);
}

#[test]
fn a_failure_takes_only_what_is_below_it() {
    check_failure("error", "asked to fail");
    check_failure("panic", "it panicked: this stage was asked to panic");
    check_failure("abort", "aborted (signal 6)");
}

#[test]
fn plan_and_run_agree() {
    let project = Project::new();
    project.write("p.toml", CHAIN);
    let states = || -> Vec<String> {
        let plan: Value = serde_json::from_str(&project.ok(&["plan", "p.toml", "--json"]).out).unwrap();
        plan["nodes"].as_array().unwrap().iter().map(|n| n["state"].as_str().unwrap().to_string()).collect()
    };
    assert_eq!(states(), ["new", "waits", "waits", "waits"]);
    project.ok(&["run", "p.toml"]);
    assert_eq!(states(), ["stored"; 4]);
    project.write("p.toml", &CHAIN.replace("value = 4.0", "value = 5.0"));
    assert_eq!(states().iter().filter(|s| *s == "changed").count(), 1);
}

/// What a plan has hashed is not worth a folder, nor a folder that a run then takes for somebody else's.
#[test]
fn a_plan_makes_no_cache() {
    let project = Project::new();
    let images = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/folder");
    project.write(
        "p.toml",
        &format!("name = 'p'\n[stages.clean]\nstage = 'data/folder'\npath = '{images}'\nsize = [4, 4]\n"),
    );
    project.ok(&["plan", "p.toml"]);
    assert!(!project.cache().exists());
    std::fs::create_dir(project.cache()).unwrap();
    project.ok(&["plan", "p.toml"]);
    project.ok(&["run", "p.toml"]);
}

#[test]
fn explain_names_the_cause() {
    let project = Project::new();
    project.write("p.toml", CHAIN).ok(&["run", "p.toml"]);
    let explain = |edit: (&str, &str), stage: &str| -> String {
        project.write("p.toml", &CHAIN.replacen(edit.0, edit.1, 1));
        project.ok(&["explain", "p.toml", stage]).out
    };
    let rows = [
        (("value = 4.0", "value = 5.0"), "d", "parameter `value` 4.0 -> 5.0"),
        (("seed = 1", "seed = 2"), "c", "seed 1 -> 2"),
        (("value = 2.0", "value = 3.0"), "c", "`b`: parameter `value` 2.0 -> 3.0"),
        (("name", "# nothing\nname"), "c", "is stored"),
    ];
    for (edit, stage, expected) in rows {
        let text = explain(edit, stage);
        assert!(text.contains(expected), "{edit:?}: expected `{expected}` in\n{text}");
    }
}

#[test]
fn an_interrupted_stage_goes_on_from_its_checkpoint() {
    let project = Project::new();
    project.write("p.toml", "name = \"slow\"\n[stages.a]\nstage = \"test/echo\"\nsteps = 300\n");
    let child = project.spawn(&["run", "p.toml", "--json"]);
    wait_for_checkpoint(&project);
    signal(&child, "INT");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let events = project.run_json("p.toml", &[]);
    assert_eq!(nodes(&events, "resumed"), ["a"]);
    assert_eq!(nodes(&events, "stored"), ["a"]);
}

fn wait_for_checkpoint(project: &Project) {
    let dir = project.cache().join("checkpoints");
    for _ in 0..10_000 {
        if std::fs::read_dir(&dir).is_ok_and(|mut entries| entries.next().is_some()) {
            return;
        }
        std::thread::yield_now();
        std::thread::park_timeout(std::time::Duration::from_millis(1));
    }
    panic!("no checkpoint was written");
}

#[test]
fn two_runs_together_compute_each_key_once() {
    let project = Project::new();
    let text: String = (0..6)
        .map(|i| format!("[stages.s{i}]\nstage = \"test/echo\"\nvalue = {i}.0\nsteps = 5\n"))
        .collect::<Vec<_>>()
        .join("");
    project.write("p.toml", &format!("name = \"both\"\n{text}"));
    let runs: Vec<_> = (0..2).map(|_| project.spawn(&["run", "p.toml", "--json"])).collect();
    let mut computed = Vec::new();
    for run in runs {
        let ran = crate::harness::Ran::of(run.wait_with_output().unwrap());
        assert_eq!(ran.code, 0, "{}", ran.err);
        let stored = ran.events().into_iter().filter(|e| e["event"] == "stored" && e["by_other"] == false);
        computed.extend(stored.map(|e| e["node"].as_str().unwrap().to_string()));
    }
    computed.sort();
    assert_eq!(computed, ["s0", "s1", "s2", "s3", "s4", "s5"]);
}

/// Memory, device, instruction set, precision and threads are told with a result, and are not part of its key.
#[test]
fn a_record_says_what_computed_the_result() {
    let project = Project::new();
    project.write("p.toml", "name = \"p\"\n[stages.a]\nstage = \"test/echo\"\nvalue = 2.0\n");
    let stored = |args: &[&str]| {
        let events = project.run_json("p.toml", args);
        let event = events.into_iter().find(|event| event["event"] == "stored").unwrap();
        (event["key"].clone(), event["outputs"].clone(), event["peak_memory_mib"].as_u64())
    };
    let first = stored(&["--threads", "1"]);
    let again = stored(&["--threads", "2", "--force", "a"]);
    assert_eq!((&first.0, &first.1), (&again.0, &again.1), "neither key nor digest depends on threads or memory");

    let shown: Value = serde_json::from_str(&project.ok(&["show", "p.toml", "--json"]).out).unwrap();
    let node = &shown["nodes"][0];
    let isa = runner::kernels::Isa::best().name();
    assert_eq!(
        (&node["device"], &node["precision"], &node["instructions"]),
        (&"cpu".into(), &"f32".into(), &isa.into())
    );
    let status: Value = serde_json::from_str(&project.ok(&["status", "p.toml", "--json"]).out).unwrap();
    if cfg!(target_os = "linux") {
        assert!(first.2.is_some_and(|mib| mib > 0), "{first:?}");
        assert_eq!(node["peak_memory_mib"].as_u64(), first.2);
        assert_eq!(status["nodes"][0]["peak_memory_mib"].as_u64(), first.2);
    }
    let expected = format!("cpu ({isa}, f32), 1 thread, ");
    assert!(project.ok(&["explain", "p.toml", "a"]).out.contains(&format!("on       {expected}")));
    let ran = project.ok(&["show", "p.toml", "a"]);
    assert!(ran.err.contains(&format!("computed by {expected}")) && !ran.out.contains("computed by"), "{ran:?}");
}
