//! Bad pipelines and what is said about them: `tests/golden/bad/*.toml` with the message in the `.txt` beside it.
//!
//! `UPDATE_GOLDEN=1` rewrites the messages. A first line `# --profile quick` or `# --set path=value` stands for
//! command-line options.

use runner::config::Options;
use runner::error::Class;
use runner::plan::plan_file;
use std::path::{Path, PathBuf};

const FOLDER: &str = "tests/golden/bad";

fn pipelines() -> Vec<PathBuf> {
    // Relative, so that messages do not depend on where the repository lies: tests run in its root.
    let entries = std::fs::read_dir(FOLDER).expect("the golden files are there");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a readable entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    paths
}

fn options(text: &str) -> Options {
    let mut options = Options::default();
    for line in text.lines().map_while(|line| line.strip_prefix("# --")) {
        match line.split_once(' ') {
            Some(("profile", name)) => options.profile = Some(name.into()),
            Some(("set", set)) => options.set.push(set.into()),
            _ => panic!("an unknown option: {line}"),
        }
    }
    options
}

fn message(path: &Path) -> String {
    let text = std::fs::read_to_string(path).expect("a readable pipeline");
    match plan_file(path, &options(&text)) {
        Ok(_) => panic!("{} is a good pipeline", path.display()),
        Err(error) => {
            assert_eq!(error.class(), Class::User, "{}", path.display());
            format!("{error}\n")
        }
    }
}

#[test]
fn messages_are_as_agreed() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut wrong = Vec::new();
    for path in pipelines() {
        let (message, golden) = (message(&path), path.with_extension("txt"));
        if update {
            std::fs::write(&golden, message).expect("a writable golden file");
        } else if std::fs::read_to_string(&golden).unwrap_or_default() != message {
            wrong.push(format!("{}:\n{message}", golden.display()));
        }
    }
    assert!(wrong.is_empty(), "UPDATE_GOLDEN=1 accepts these messages:\n\n{}", wrong.join("\n"));
}

#[test]
fn there_are_many_and_every_message_has_a_place_and_a_caret() {
    let pipelines = pipelines();
    assert!(pipelines.len() >= 45, "{}", pipelines.len());
    for path in pipelines {
        let message = message(&path);
        for problem in message.split("error: ").skip(1) {
            assert!(problem.contains("--> ") && problem.contains('^'), "{}:\n{message}", path.display());
        }
    }
}

#[test]
fn every_message_file_has_its_pipeline() {
    for entry in std::fs::read_dir(FOLDER).expect("the golden files are there") {
        let path = entry.expect("a readable entry").path();
        assert!(path.with_extension("toml").exists(), "{} has no pipeline", path.display());
    }
}
