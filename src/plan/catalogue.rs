//! The registry, indexed: each stage's ports and parameters are worked out once per process.

use super::shape::{Shape, root_fields};
use crate::config::diagnostic::{closest, one_of};
use crate::plan::shape::Field;
use crate::stage::{Entry, Port};
use crate::stages::STAGES;
use std::collections::HashMap;
use std::sync::OnceLock;

/// The family of the stages that test the runner itself.
pub const HIDDEN: &str = "test";

/// The families, with a line on what each is for.
pub const FAMILIES: &[(&str, &str)] = &[
    ("data", "images to begin with"),
    ("poison", "attacks that plant a backdoor in a dataset"),
    ("pack", "files that training reads"),
    ("train", "networks, with hooks that observe them"),
    ("purify", "defences that take a backdoor out of a network"),
    ("evaluate", "numbers about models, data and representations"),
    ("plot", "figures for papers"),
    (HIDDEN, "stages that test the runner itself"),
];

/// A stage, with what planning needs of it.
pub struct Info {
    /// The registry entry.
    pub entry: &'static Entry,
    /// Input ports.
    pub inputs: Vec<Port>,
    /// Output ports; the first is the default.
    pub outputs: Vec<Port>,
    /// The schema of the parameters, as schemars made it.
    pub schema: serde_json::Value,
    /// The parameters.
    pub params: Shape,
}

impl Info {
    fn of(entry: &'static Entry) -> Info {
        let schema = (entry.schema)().to_value();
        Info { entry, inputs: (entry.inputs)(), outputs: (entry.outputs)(), params: Shape::of(&schema), schema }
    }

    /// The parameters, in the order of their declaration.
    pub fn fields(&self) -> &[Field] {
        root_fields(&self.params)
    }

    /// The first sentence of the description.
    pub fn summary(&self) -> &str {
        first_sentence(&self.params.doc)
    }
}

/// The text up to the end of its first sentence, which is kept on one line.
pub fn first_sentence(text: &str) -> &str {
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    match paragraph.find(". ") {
        Some(end) => &paragraph[..end + 1],
        None => paragraph,
    }
}

fn infos() -> &'static HashMap<String, (&'static Entry, OnceLock<Info>)> {
    static INFOS: OnceLock<HashMap<String, (&'static Entry, OnceLock<Info>)>> = OnceLock::new();
    INFOS.get_or_init(|| STAGES.iter().map(|entry| (plain(entry.name), (entry, OnceLock::new()))).collect())
}

/// Dashes and underscores are the same in a lookup: `plot/information-plane` is `plot/information_plane`.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

/// The stage called `name`.
pub fn find(name: &str) -> Option<&'static Info> {
    let infos = infos();
    let (entry, info) = match infos.get(name) {
        Some(found) => found,
        None => infos.get(&plain(name))?,
    };
    Some(info.get_or_init(|| Info::of(entry)))
}

/// All stages, family by family, without those that test the runner.
pub fn visible() -> impl Iterator<Item = &'static Info> {
    let position = |family: &str| FAMILIES.iter().position(|(name, _)| *name == family).unwrap_or(FAMILIES.len());
    let mut entries: Vec<&'static Entry> = STAGES.iter().filter(|entry| entry.family() != HIDDEN).collect();
    entries.sort_by_key(|entry| (position(entry.family()), entry.name));
    entries.into_iter().filter_map(|entry| find(entry.name))
}

/// A way out for somebody who asked for the stage `name`, which does not exist.
pub fn suggest(name: &str) -> String {
    let hidden_too = name.starts_with("test/");
    let known = || STAGES.iter().map(|entry| entry.name).filter(move |known| hidden_too || !known.starts_with("test/"));
    if let Some(found) = closest(name, known()) {
        return format!("did you mean `{found}`?");
    }
    // Without its family, or in the wrong one.
    let last = |name: &str| name.rsplit('/').next().unwrap_or_default().to_string();
    let wanted = last(name);
    let lasts: Vec<(String, &str)> = known().map(|known| (last(known), known)).collect();
    if let Some(found) = closest(&wanted, lasts.iter().map(|(last, _)| last.as_str()))
        && let Some((_, full)) = lasts.iter().find(|(last, _)| last == found)
    {
        return format!("did you mean `{full}`?");
    }
    let family = name.split('/').next().unwrap_or_default();
    let siblings: Vec<&str> = known().filter(|known| known.split('/').next() == Some(family)).collect();
    if siblings.is_empty() {
        return "`runner list` shows all stages".into();
    }
    format!("the family `{family}` has {}", one_of(siblings, "and"))
}
