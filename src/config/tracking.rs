//! `[tracking]`: where a run is told to, besides the terminal.
//!
//! ```toml
//! [tracking]
//! tensorboard = "../tracking/tensorboard"     # a folder: `tensorboard --logdir` reads it
//! wandb       = "../tracking"                 # a folder: `wandb sync` uploads the runs in its `wandb/`
//! jsonl       = "../tracking/runs.jsonl"      # a file, appended to
//! project     = "backdoors"                   # the Weights & Biases project; the pipeline's name if left out
//! ```
//!
//! Relative paths start at the pipeline's folder, as everywhere in a pipeline. Nothing here is part of any key: what is
//! told does not change what is computed.

use super::diagnostic::{Diagnostic, Diagnostics, did_you_mean, one_of};
use super::value::{Item, Value};

/// What the table may hold.
const KEYS: [&str; 4] = ["tensorboard", "wandb", "jsonl", "project"];

/// Where to tell, as it was written; nothing where a key was left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tracking {
    /// A folder for TensorBoard's event files.
    pub tensorboard: Option<String>,
    /// A folder in which `wandb/` holds offline runs.
    pub wandb: Option<String>,
    /// A file of JSON lines.
    pub jsonl: Option<String>,
    /// The Weights & Biases project.
    pub project: Option<String>,
}

/// Decodes the table; what is wrong with it goes into `problems`.
pub fn decode(item: Item, problems: &mut Diagnostics) -> Tracking {
    let mut tracking = Tracking::default();
    let sort = item.sort();
    let Value::Table(table) = item.value else {
        problems.push(
            Diagnostic::new(format!("`tracking` must be a table, not {sort}"), item.span)
                .label("expected where to tell, by format")
                .hint("write `[tracking]` and below it `tensorboard = \"DIR\"`"),
        );
        return tracking;
    };
    for (key, item) in table.entries {
        let slot = match key.name.as_str() {
            "tensorboard" => &mut tracking.tensorboard,
            "wandb" => &mut tracking.wandb,
            "jsonl" => &mut tracking.jsonl,
            "project" => &mut tracking.project,
            _ => {
                problems.push(
                    Diagnostic::new(format!("unknown key `{}` in `tracking`", key.name.escape_debug()), key.span)
                        .label(format!("expected {}", one_of(KEYS, "or")))
                        .hint_if(did_you_mean(&key.name, KEYS)),
                );
                continue;
            }
        };
        match text(&key.name, &item) {
            Ok(text) => *slot = Some(text),
            Err(problem) => problems.push(*problem),
        }
    }
    tracking
}

fn text(key: &str, item: &Item) -> Result<String, Box<Diagnostic>> {
    let expected = match key {
        "jsonl" => "expected the path of a file, in quotes",
        "project" => "expected the name of a project, in quotes",
        _ => "expected the path of a folder, in quotes",
    };
    let wrong = |title: String| Box::new(Diagnostic::new(title, item.span).label(expected));
    match item.as_str() {
        None => Err(wrong(format!("`tracking.{key}` cannot be {}", item.brief()))),
        Some("") => Err(wrong(format!("`tracking.{key}` is empty"))
            .hint(format!("leave `{key}` out where nothing is to be told"))
            .into()),
        Some(text) if text.contains("${") => Err(wrong(format!("`tracking.{key}` cannot vary with the matrix"))
            .hint("every combination of the matrix gets a run of its own below it")
            .into()),
        Some(text) if key == "project" && text.contains(['/', '\\', '#', '?', '%', ':']) => {
            Err(wrong(format!("{} cannot name a project", item.brief()))
                .hint("Weights & Biases takes letters, digits, `-`, `_`, `.` and spaces")
                .into())
        }
        Some(text) => Ok(text.to_string()),
    }
}
