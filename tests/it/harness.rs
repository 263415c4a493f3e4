//! A fresh project folder and the real binary.

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use tempfile::TempDir;

/// A project in a temporary folder.
pub struct Project {
    dir: TempDir,
    cache: Option<PathBuf>,
}

/// What a run of the binary gave.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Project {
    /// An empty project.
    pub fn new() -> Project {
        let dir = TempDir::new().unwrap();
        std::fs::write(dir.path().join("runner.toml"), "").unwrap();
        Project { dir, cache: None }
    }

    /// The same, with its cache elsewhere.
    pub fn with_cache(cache: &Path) -> Project {
        Project { cache: Some(cache.to_path_buf()), ..Project::new() }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn cache(&self) -> PathBuf {
        self.cache.clone().unwrap_or_else(|| self.path().join("cache"))
    }

    /// Writes a file into the project.
    pub fn write(&self, name: &str, text: &str) -> &Project {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        self
    }

    /// The binary, set up to run here.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_runner"));
        command.args(args).current_dir(self.path()).env("RUNNER_CACHE", self.cache()).env("NO_COLOR", "1");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn spawn(&self, args: &[&str]) -> Child {
        self.command(args).spawn().unwrap()
    }

    /// Runs the binary to its end.
    pub fn runner(&self, args: &[&str]) -> Ran {
        Ran::of(self.command(args).output().unwrap())
    }

    /// Runs the binary, which must succeed.
    pub fn ok(&self, args: &[&str]) -> Ran {
        let ran = self.runner(args);
        assert_eq!(ran.code, 0, "runner {args:?}\n--- stdout\n{}\n--- stderr\n{}", ran.out, ran.err);
        ran
    }

    /// `runner run FILE --json ARGS`: the events.
    pub fn run_json(&self, file: &str, args: &[&str]) -> Vec<Value> {
        let mut all = vec!["run", file, "--json"];
        all.extend(args);
        self.runner(&all).events()
    }

    /// Output digests of every node, `node.port` -> digest, of a pipeline whose results are all stored.
    pub fn digests(&self, file: &str, args: &[&str]) -> BTreeMap<String, String> {
        let mut all = vec!["show", file, "--json"];
        all.extend(args);
        let shown: Value = serde_json::from_str(&self.ok(&all).out).unwrap();
        let mut digests = BTreeMap::new();
        for node in shown["nodes"].as_array().unwrap() {
            for output in node["outputs"].as_array().unwrap_or_else(|| panic!("not stored: {node}")) {
                let name = format!("{}.{}", node["node"].as_str().unwrap(), output["port"].as_str().unwrap());
                digests.insert(name, output["digest"].as_str().unwrap().to_string());
            }
        }
        assert!(!digests.is_empty());
        digests
    }

    /// All blobs of the cache.
    pub fn blobs(&self) -> Vec<PathBuf> {
        let mut blobs = Vec::new();
        for folder in std::fs::read_dir(self.cache().join("blobs")).unwrap() {
            for file in std::fs::read_dir(folder.unwrap().path()).unwrap() {
                blobs.push(file.unwrap().path());
            }
        }
        blobs.sort();
        blobs
    }
}

impl Ran {
    pub fn of(output: Output) -> Ran {
        Ran {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Standard output as JSON lines.
    pub fn events(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"))).collect()
    }
}

/// The nodes that an event of this kind happened to, sorted.
pub fn nodes(events: &[Value], kind: &str) -> Vec<String> {
    let mut nodes: Vec<String> = events
        .iter()
        .filter(|event| event["event"] == kind)
        .map(|event| event["node"].as_str().unwrap().to_string())
        .collect();
    nodes.sort();
    nodes
}

/// Ends a process at once, as `kill -9` does.
pub fn kill_9(child: &mut Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Sends a signal by its name.
pub fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}
