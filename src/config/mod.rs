//! Text -> Pipeline: what the user wrote, with its spans; profile and `--set` applied, nothing else.
//!
//! Decoding takes two steps, so that every problem keeps its place: the text becomes a tree of values with spans
//! ([`value`]), overlays are merged into it ([`overlay`]), and the tree becomes a [`Pipeline`] ([`decode`]), whose
//! parameters are still values with spans. What the parameters mean is for [`crate::plan`], which knows the stages.
//!
//! # The file
//!
//! ```toml
//! name = "sweep"                      # letters, digits, `.`, `_`, `-`
//! seed = 0                            # optional; stages that draw derive their streams from it
//!
//! [stages.first]
//! stage = "test/echo"                 # what it is; everything else here but `from` and `seed` is a parameter
//! value = "${rate}"
//!
//! [stages.second]
//! stage = "test/echo"
//! from  = { tables = "first" }        # "stage", "stage.port", "stage[*]", "stage.port[*]", or a list of those
//! seed  = 7                           # optional; its own seed
//!
//! [profile.quick]                     # `--profile quick` merges this into the file
//! "stages.first" = { steps = 1 }
//!
//! [matrix]                            # every combination; what several share is one node
//! rate = [0.1, 0.5]
//!
//! [tracking]                          # where runs are told to; part of no key, see [`tracking`]
//! tensorboard = "../tracking"
//! ```
//!
//! A stage is read at the reader's own point of the matrix: `first` above is read at the same `rate` that `second`
//! stands at. There is therefore no ambiguous reference and no notation for one point; `"first[*]"` gathers all
//! points into a port that takes several. The matrix key `seed` sets the pipeline's seed.

pub mod decode;
pub mod diagnostic;
pub mod matrix;
pub mod overlay;
pub mod syntax;
pub mod tracking;
pub mod value;

use crate::error::{Error, Result};
use diagnostic::{Diagnostic, Diagnostics, Text, did_you_mean, one_of};
use matrix::Axis;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tracking::Tracking;
use value::{Item, Key, Table, Value};

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

/// How to read a pipeline.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The profile to merge in.
    pub profile: Option<String>,
    /// Overrides, `stages.model.epochs=5`.
    pub set: Vec<String>,
    /// Whether problems are shown with terminal colours.
    pub style: bool,
}

/// What the user wrote.
#[derive(Clone, Debug)]
pub struct Pipeline {
    /// Name, file, profile and overrides.
    pub identity: Identity,
    /// What it is for, in the user's words.
    pub description: Option<String>,
    /// The seed; the matrix key `seed` takes its place.
    pub seed: u64,
    /// The stages, in the order of the file.
    pub stages: Vec<StageDecl>,
    /// The axes of the matrix, in the order of the file.
    pub matrix: Vec<Axis>,
    /// Where runs are told to.
    pub tracking: Tracking,
    /// The profiles that the file has, in its order.
    pub profiles: Vec<String>,
    /// The stages that the profiles not chosen would change; checked, never run.
    pub(crate) variants: Vec<Variant>,
    /// What spans point into: the file, then the arguments.
    pub(crate) texts: Arc<Vec<Text>>,
    pub(crate) style: bool,
}

/// One `[stages.X]`.
#[derive(Clone, Debug)]
pub struct StageDecl {
    /// `X`.
    pub name: Key,
    /// `stage = "family/name"`; none if that was missing or no string, which is a problem already told.
    pub stage: Option<Item>,
    /// `from`; none if it was no table.
    pub from: Option<Vec<Binding>>,
    /// Its own seed.
    pub seed: Option<Item>,
    /// All other keys.
    pub params: Table,
    /// The axes of the matrix that its strings mention, ascending.
    pub axes: Vec<usize>,
}

/// One port in `from`.
#[derive(Clone, Debug)]
pub struct Binding {
    /// The port.
    pub port: Key,
    /// The value as a whole.
    pub value: diagnostic::Span,
    /// Whether it was written as a list.
    pub is_list: bool,
    /// The references; none if they were no strings, which is a problem already told.
    pub references: Option<Vec<Item>>,
}

/// The stages that a profile changes, as they would be with it.
#[derive(Clone, Debug)]
pub(crate) struct Variant {
    pub(crate) stages: Vec<StageDecl>,
    pub(crate) matrix: Vec<Axis>,
    /// The names of all stages with this profile.
    pub(crate) names: Vec<String>,
}

/// A pipeline as far as it could be read, and what is wrong with it.
pub(crate) struct Draft {
    /// None if the text is no TOML.
    pub(crate) pipeline: Option<Pipeline>,
    pub(crate) problems: Diagnostics,
}

/// Reads a pipeline file.
///
/// # Errors
/// An unreadable file, or all problems of the file that show without knowing the stages.
pub fn load(path: &Path, options: &Options) -> Result<Pipeline> {
    let draft = read(path, options)?;
    match draft.pipeline {
        Some(pipeline) if draft.problems.is_empty() => Ok(pipeline),
        _ => Err(draft.problems.into_error(options.style)),
    }
}

/// [`load`], with the problems still open to be added to.
pub(crate) fn read(path: &Path, options: &Options) -> Result<Draft> {
    let bytes = std::fs::read(path).map_err(|error| {
        let missing = error.kind() == std::io::ErrorKind::NotFound;
        let error = Error::io(error, "read the pipeline", path);
        if missing {
            error.hint("`runner init NAME` writes a pipeline to start from")
        } else {
            error.with_class(crate::error::Class::User)
        }
    })?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count();
        Error::user(format!("`{}` is not UTF-8: byte {at}, on line {line}", path.display()))
            .hint("save the file as UTF-8; pipelines are TOML, which knows no other encoding")
    })?;
    if text.len() > 64 << 20 {
        return Err(Error::user(format!("`{}` has {} MiB", path.display(), text.len() >> 20))
            .hint("pipelines are short texts; is this the file that you meant?"));
    }
    Ok(parse(path, text, options))
}

/// Reads the text of a pipeline; `path` only names it.
pub(crate) fn parse(path: &Path, text: String, options: &Options) -> Draft {
    let mut texts = vec![Text { name: path.display().to_string(), text }];
    for (index, argument) in options.set.iter().enumerate() {
        texts.push(Text { name: format!("--set {}", index + 1), text: argument.clone() });
    }
    let profile_text = texts.len() as u32;
    texts.extend(options.profile.iter().map(|name| Text { name: "--profile".into(), text: name.clone() }));
    let texts = Arc::new(texts);
    let mut problems = Diagnostics::new(texts.clone());
    let mut root = syntax::parse(&texts[0].text, &mut problems);
    if !problems.is_empty() {
        return Draft { pipeline: None, problems };
    }

    let profiles = take_profiles(&mut root, &mut problems);
    let names: Vec<String> = profiles.iter().map(|(key, _)| key.name.clone()).collect();
    if let Some(chosen) = options.profile.as_deref().filter(|chosen| !names.iter().any(|name| name == chosen)) {
        let span = diagnostic::Span::new(profile_text, 0..chosen.len());
        let label = match one_of(names.iter().map(String::as_str), "or").as_str() {
            "" => "the file has no profiles".to_string(),
            names => format!("expected {names}"),
        };
        problems.push(
            Diagnostic::new(format!("there is no profile `{chosen}`"), span)
                .label(label)
                .hint_if(did_you_mean(chosen, names.iter().map(String::as_str))),
        );
    }
    let mut chosen = None;
    let mut variants = Vec::new();
    for (key, item) in profiles {
        let overlay = overlay::profile(&key.name, item, &root, &mut problems);
        if options.profile.as_deref() == Some(key.name.as_str()) {
            chosen = Some(overlay);
        } else {
            variants.push(variant(overlay, &root, &mut problems));
        }
    }
    if let Some(overlay) = chosen {
        overlay::merge(&mut root, overlay);
    }
    let set = overlay::set(&options.set, &root, &mut problems);
    overlay::merge(&mut root, set);

    let identity = Identity {
        name: String::new(),
        path: path.to_path_buf(),
        profile: options.profile.clone(),
        overrides: options.set.clone(),
    };
    let mut pipeline = Pipeline {
        identity,
        description: None,
        seed: 0,
        stages: Vec::new(),
        matrix: Vec::new(),
        tracking: Tracking::default(),
        profiles: names,
        variants,
        texts,
        style: options.style,
    };
    decode::root(root, &mut pipeline, &mut problems);
    Draft { pipeline: Some(pipeline), problems }
}

fn take_profiles(root: &mut Table, problems: &mut Diagnostics) -> Vec<(Key, Item)> {
    let Some((_, item)) = root.take("profile") else { return Vec::new() };
    let sort = item.sort();
    match item.value {
        Value::Table(table) => table.entries,
        _ => {
            problems.push(
                Diagnostic::new(format!("`profile` must be a table, not {sort}"), item.span)
                    .label("expected profiles by name")
                    .hint("write `[profile.quick]` and below it `\"stages.X\" = { ... }`"),
            );
            Vec::new()
        }
    }
}

/// Decodes what a profile that was not chosen would change.
fn variant(overlay: Table, root: &Table, problems: &mut Diagnostics) -> Variant {
    let mut partial = Table::default();
    let mut names = Vec::new();
    if let Some((_, matrix)) =
        root.get("matrix").filter(|_| overlay.get("matrix").is_some() || overlay.get("stages").is_some())
    {
        let key = Key { name: "matrix".into(), span: matrix.span };
        partial.entries.push((key, matrix.clone()));
    }
    let touched = overlay.get("stages").and_then(|(_, stages)| stages.as_table());
    if let Some((key, item)) = root.get("stages")
        && let Some(all) = item.as_table()
        && let Some(touched) = touched
    {
        names.extend(all.names().map(str::to_string));
        let entries = touched.names().filter_map(|name| all.get(name).cloned()).collect();
        let stages = Item { value: Value::Table(Table { entries }), span: item.span, used: None };
        partial.entries.push((key.clone(), stages));
    }
    names.extend(touched.iter().flat_map(|table| table.names()).map(str::to_string));
    overlay::merge(&mut partial, overlay);
    let (stages, matrix) = decode::variant(partial, problems);
    Variant { stages, matrix, names }
}
