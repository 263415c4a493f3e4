//! The key of a node, once the outputs of the nodes above it are known.
//!
//! `plan`, `status`, `explain` and `run` all come here, so a plan cannot disagree with the run that follows it.

use crate::error::{Error, Result, ResultExt};
use crate::plan::{Node, Plan, Source};
use crate::store::Store;
use crate::store::digest::Digest;
use crate::store::key::{Asked, InputRef, PreImage, SourceRef};
use crate::store::records::{Hit, OutputRecord};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The key of a node, from its parameters and the records of the nodes above.
///
/// `hits[i]` is what is stored of node `i`; every node above `id` must be.
///
/// # Errors
/// A source file that is missing or unreadable.
pub fn key(plan: &Plan, id: usize, hits: &[Option<Hit>], store: &Store) -> Result<Digest> {
    let node = &plan.nodes[id];
    let mut inputs = Vec::with_capacity(node.inputs.len());
    for (port, sources) in &node.inputs {
        let mut refs = Vec::with_capacity(sources.len());
        for source in sources {
            let digest = output_of(plan, source.node, source.port, hits)?.digest;
            // An anonymous label is for people: the key does without.
            let label = if source.is_named { source.label.as_str() } else { "" };
            refs.push(input_ref(source, digest, label));
        }
        inputs.push((*port, Cow::Owned(refs)));
    }
    let mut sources = Vec::with_capacity(node.sources.len());
    for source in source_refs(plan, node, store)? {
        sources.push(source.digest);
    }
    let asked = Asked {
        stage: node.entry.name,
        version: node.entry.version,
        params: Cow::Borrowed(&node.form),
        seed: node.seed,
        inputs,
        sources,
    };
    Ok(asked.key())
}

/// What the key of a node stands for.
///
/// # Errors
/// As [`key`].
pub fn pre_image(plan: &Plan, id: usize, hits: &[Option<Hit>], store: &Store) -> Result<PreImage> {
    let node = &plan.nodes[id];
    let mut inputs = BTreeMap::new();
    for (port, sources) in &node.inputs {
        let mut refs = Vec::with_capacity(sources.len());
        for source in sources {
            let digest = output_of(plan, source.node, source.port, hits)?.digest;
            refs.push(input_ref(source, digest, &source.label));
        }
        inputs.insert((*port).to_string(), refs);
    }
    Ok(PreImage {
        stage: node.entry.name.to_string(),
        version: node.entry.version,
        params: node.params(),
        seed: node.seed,
        inputs,
        sources: source_refs(plan, node, store)?,
    })
}

fn input_ref(source: &Source, digest: Digest, label: &str) -> InputRef {
    if source.is_named {
        InputRef::named(digest, label, point_map(&source.point))
    } else {
        InputRef::anonymous(digest, label)
    }
}

fn source_refs(plan: &Plan, node: &Node, store: &Store) -> Result<Vec<SourceRef>> {
    let mut refs = Vec::with_capacity(node.sources.len());
    for path in &node.sources {
        let digest = store.sources().digest(&folder(plan).join(path)).context(format!("stage `{}`", node.label))?;
        refs.push(SourceRef { path: path.display().to_string(), digest });
    }
    Ok(refs)
}

/// The folder of the pipeline file: relative paths in a pipeline start there, and so do workers.
pub fn folder(plan: &Plan) -> PathBuf {
    let path = std::path::absolute(&plan.identity.path).unwrap_or_else(|_| plan.identity.path.clone());
    path.parent().map_or_else(PathBuf::new, Path::to_path_buf)
}

/// A matrix point as a map.
pub fn point_map(point: &[(String, Value)]) -> BTreeMap<String, Value> {
    point.iter().cloned().collect()
}

/// The stored output `port` of node `id`.
///
/// # Errors
/// If the node is not stored, or its record has no such port: a record made by another build.
pub fn output_of<'a>(plan: &Plan, id: usize, port: &str, hits: &'a [Option<Hit>]) -> Result<&'a OutputRecord> {
    let label = &plan.nodes[id].label;
    let hit = hits[id].as_ref().ok_or_else(|| Error::machine(format!("`{label}` has not been computed yet")))?;
    hit.outputs
        .iter()
        .find(|output| output.port == port)
        .ok_or_else(|| Error::machine(format!("the record of `{label}` has no output `{port}`")))
}

/// What is known of every node without running anything.
pub struct Outlook {
    /// What is stored of each node.
    pub hits: Vec<Option<Hit>>,
    /// The key of each node whose inputs are all stored.
    pub keys: Vec<Option<Digest>>,
    /// Why a node's sources could not be read, by node.
    pub problems: Vec<Option<String>>,
}

impl Outlook {
    /// Looks every node up, top down.
    ///
    /// # Errors
    /// A cache that cannot be read.
    pub fn of(plan: &Plan, store: &Store) -> Result<Outlook> {
        let n = plan.nodes.len();
        let mut outlook = Outlook { hits: vec![None; n], keys: vec![None; n], problems: vec![None; n] };
        for id in 0..n {
            if plan.nodes[id].inputs.values().flatten().any(|source| outlook.hits[source.node].is_none()) {
                continue;
            }
            match key(plan, id, &outlook.hits, store) {
                Ok(key) => {
                    outlook.hits[id] = store.hit(&key)?;
                    outlook.keys[id] = Some(key);
                }
                Err(error) => outlook.problems[id] = Some(error.to_string()),
            }
        }
        Ok(outlook)
    }
}

/// The nodes that `targets` need, themselves included; all nodes if there is no target.
///
/// # Errors
/// A target that is no stage of the plan.
pub fn needed(plan: &Plan, targets: &[String]) -> Result<Vec<bool>> {
    if targets.is_empty() {
        return Ok(vec![true; plan.nodes.len()]);
    }
    let mut needed = vec![false; plan.nodes.len()];
    for target in targets {
        let mut found = false;
        for (id, node) in plan.nodes.iter().enumerate() {
            if is_called(node, target) {
                needed[id] = true;
                found = true;
            }
        }
        if !found {
            return Err(no_such_stage(plan, target));
        }
    }
    for id in (0..plan.nodes.len()).rev() {
        if needed[id] {
            for above in plan.upstream(id) {
                needed[above] = true;
            }
        }
    }
    Ok(needed)
}

/// Whether `name` means this node: by its stage, or by its full label.
pub fn is_called(node: &Node, name: &str) -> bool {
    node.stage == name || node.label == name
}

/// The error for a name that no stage of the pipeline has.
pub fn no_such_stage(plan: &Plan, name: &str) -> Error {
    let mut stages: Vec<&str> = plan.nodes.iter().map(|node| node.stage.as_str()).collect();
    stages.dedup();
    Error::user(format!("pipeline `{}` has no stage `{name}`", plan.identity.name))
        .hint(format!("its stages are {}", stages.join(", ")))
}
