//! Where a run is told to: `[tracking]` of the pipeline, or `--track` in its place.

use crate::error::{Error, Result};
use crate::exec::resolve;
use crate::plan::Plan;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// A way to write a run down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// TensorBoard event files in a folder.
    Tensorboard,
    /// Weights & Biases offline runs in a folder.
    Wandb,
    /// JSON lines in a file.
    Jsonl,
}

impl Format {
    const ALL: [Format; 3] = [Format::Tensorboard, Format::Wandb, Format::Jsonl];

    /// The key in `[tracking]`.
    pub fn name(self) -> &'static str {
        match self {
            Format::Tensorboard => "tensorboard",
            Format::Wandb => "wandb",
            Format::Jsonl => "jsonl",
        }
    }
}

/// A format and a path: `tensorboard=runs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// How to write.
    pub format: Format,
    /// A folder, or for JSON lines a file.
    pub path: PathBuf,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.format.name(), self.path.display())
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Target, String> {
        let (name, path) = text.split_once('=').unwrap_or((text, ""));
        match Format::ALL.into_iter().find(|format| format.name() == name) {
            Some(format) if !path.is_empty() => Ok(Target { format, path: PathBuf::from(path) }),
            _ => Err("expected `tensorboard=DIR`, `wandb=DIR` or `jsonl=FILE`".to_string()),
        }
    }
}

/// What the command line says, or for formats that it does not mention, the pipeline.
///
/// # Errors
/// A format that the command line mentions twice.
pub fn choose(plan: &Plan, given: &[Target]) -> Result<Vec<Target>> {
    let mut targets: Vec<Target> = Vec::new();
    for target in given {
        if let Some(other) = targets.iter().find(|other| other.format == target.format) {
            return Err(Error::user(format!("`--track {target}` after `--track {other}`"))
                .hint("a run is told to one place in each format"));
        }
        targets.push(target.clone());
    }
    let tracking = &plan.tracking;
    let written = [&tracking.tensorboard, &tracking.wandb, &tracking.jsonl];
    for (format, path) in Format::ALL.into_iter().zip(written) {
        if let Some(path) = path.as_ref().filter(|_| !targets.iter().any(|target| target.format == format)) {
            targets.push(Target { format, path: resolve::folder(plan).join(path) });
        }
    }
    Ok(targets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Options;
    use crate::plan::plan_text;
    use std::path::Path;

    fn check(given: &[&str], expected: Result<&[&str], &str>) {
        let text = "name = \"p\"\n[tracking]\nwandb = \"w\"\njsonl = \"/j\"\n[stages.a]\nstage = \"test/echo\"";
        let plan = plan_text(Path::new("/pipelines/p.toml"), text, &Options::default()).unwrap();
        let given: Vec<Target> = given.iter().map(|target| target.parse().unwrap()).collect();
        let chosen = choose(&plan, &given).map(|all| all.iter().map(Target::to_string).collect::<Vec<_>>());
        match expected {
            Ok(targets) => assert_eq!(chosen.unwrap(), targets),
            Err(message) => assert_eq!(chosen.unwrap_err().message(), message),
        }
    }

    #[test]
    fn the_command_line_goes_before_the_pipeline() {
        check(&[], Ok(&["wandb=/pipelines/w", "jsonl=/j"]));
        check(&["wandb=x", "tensorboard=t"], Ok(&["wandb=x", "tensorboard=t", "jsonl=/j"]));
        check(&["jsonl=a", "jsonl=b"], Err("`--track jsonl=b` after `--track jsonl=a`"));
    }

    #[test]
    fn a_target_has_a_format_and_a_path() {
        assert_eq!("jsonl=a=b".parse(), Ok(Target { format: Format::Jsonl, path: "a=b".into() }));
        for text in ["", "jsonl", "jsonl=", "mlflow=x", "=x"] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }
}
