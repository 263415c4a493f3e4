//! `runner doctor`: every line on a machine that is as it should be, and what it says of a broken cache.

use crate::harness::Project;
use serde_json::Value;

const CHECKS: [&str; 5] = ["kernels", "threads", "memory", "cache", "cuda"];

#[test]
fn a_whole_machine_has_a_line_for_everything() {
    let project = Project::new();
    let ran = project.runner(&["doctor"]);
    let lines: Vec<&str> = ran.out.lines().collect();
    assert!(lines[0].starts_with(&format!("runner {}, ", env!("CARGO_PKG_VERSION"))), "{}", ran.out);
    for name in CHECKS {
        let line = lines.iter().find(|line| line.get(9..).is_some_and(|rest| rest.starts_with(name)));
        assert!(line.is_some(), "no line for {name} in\n{}", ran.out);
    }
    let cache = lines.iter().find(|line| line.contains(" cache ")).unwrap();
    assert!(
        cache.contains("(the first run makes it)") && cache.contains("written, locked, linked and mapped"),
        "{cache}"
    );
    // Only looked: there is no cache now either, and nothing was left behind.
    assert!(!project.cache().exists());
    let names: Vec<_> = std::fs::read_dir(project.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["runner.toml"]);
}

#[test]
fn programs_get_the_same_with_facts() {
    let project = Project::new();
    let report: Value = serde_json::from_str(&project.runner(&["doctor", "--json"]).out).unwrap();
    assert_eq!((&report["schema"], &report["version"]), (&1.into(), &env!("CARGO_PKG_VERSION").into()));
    let checks = report["checks"].as_array().unwrap();
    let names: Vec<&str> = checks.iter().map(|check| check["name"].as_str().unwrap()).collect();
    assert_eq!(names, CHECKS);
    for check in checks {
        assert!(check["state"] != "problem" || check["hint"].is_string(), "a problem without a way out: {check}");
    }
    let available = checks[0]["facts"]["available"].as_array().unwrap();
    assert_eq!(available.last(), Some(&checks[0]["facts"]["used"]));
    let problems = checks.iter().filter(|check| check["state"] == "problem").count();
    assert_eq!(report["problems"], problems);
}

/// The state, text and hint of the line about the cache, and the exit code.
fn cache_of(project: &Project) -> (String, String, i32) {
    let ran = project.runner(&["doctor", "--json"]);
    let report: Value = serde_json::from_str(&ran.out).unwrap();
    let check = &report["checks"][3];
    assert_eq!(check["name"], "cache");
    (check["state"].as_str().unwrap().to_string(), format!("{} | {}", check["text"], check["hint"]), ran.code)
}

#[test]
fn a_folder_that_cannot_be_a_cache_is_a_problem_with_a_way_out() {
    let project = Project::new();
    std::fs::write(project.cache(), "a file").unwrap();
    let (state, text, code) = cache_of(&project);
    assert_eq!((state.as_str(), code), ("problem", 3), "{text}");
    assert!(text.contains("found a file") && text.contains("choose a folder with `--cache DIR`"), "{text}");

    let project = Project::new();
    project.write("cache/cache.toml", "version = 9");
    let (state, text, code) = cache_of(&project);
    assert_eq!((state.as_str(), code), ("problem", 3), "{text}");
    assert!(text.contains("has version 9, expected 1"), "{text}");

    let project = Project::new();
    project.write("cache/thesis.tex", "");
    let (state, text, code) = cache_of(&project);
    assert_eq!((state.as_str(), code), ("problem", 3), "{text}");
    assert!(text.contains("is not a cache: it holds `thesis.tex`"), "{text}");
}

#[test]
fn a_used_cache_stays_as_it_is() {
    let project = Project::new();
    project.write("p.toml", "name = \"p\"\n[stages.a]\nstage = \"test/echo\"\n").ok(&["run", "p.toml"]);
    let before = std::fs::read_dir(project.cache().join("tmp")).unwrap().count();
    let (state, text, _) = cache_of(&project);
    assert!(state != "problem" && !text.contains("the first run makes it"), "{state} {text}");
    assert_eq!(std::fs::read_dir(project.cache().join("tmp")).unwrap().count(), before);
    project.ok(&["verify"]);
}
