//! Text -> Pipeline: what the user wrote, with its spans; profile and `--set` applied, matrix expanded, nothing else.

pub mod diagnostic;

use std::path::PathBuf;

/// What identifies a pipeline in results and in the history of runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `name` in the file.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// The profile chosen, if any.
    pub profile: Option<String>,
    /// The `--set` overrides in effect, as given.
    pub overrides: Vec<String>,
}
