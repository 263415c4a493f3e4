//! Every pipeline that we ship plans, in every profile.

use crate::harness::Project;
use std::path::{Path, PathBuf};

fn shipped() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines");
    let mut files = Vec::new();
    for dir in [root.clone(), root.join("smoke")] {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "toml") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

#[test]
fn every_pipeline_plans_in_every_profile() {
    let project = Project::new();
    for file in shipped() {
        let text = std::fs::read_to_string(&file).unwrap();
        let file = file.to_str().unwrap();
        project.ok(&["plan", file]);
        let profiles = text.lines().filter_map(|line| line.strip_prefix("[profile.")?.split([']', '.']).next());
        for profile in profiles {
            project.ok(&["plan", file, "--profile", profile]);
        }
    }
}

#[test]
fn the_starter_pipeline_plans() {
    let project = Project::new();
    project.ok(&["init", "first"]);
    project.ok(&["plan", "pipelines/first.toml"]);
    // A second `init` must not overwrite the user's work.
    assert_eq!(project.runner(&["init", "first"]).code, 2);
}
