//! The key of a node, once the outputs of the nodes above it are known.
//!
//! `plan`, `status`, `explain` and `run` all come here, so a plan cannot disagree with the run that follows it.

use crate::error::{Error, Result, ResultExt};
use crate::plan::{Node, Plan};
use crate::stage::Arity;
use crate::store::Store;
use crate::store::digest::Digest;
use crate::store::key::{InputRef, PreImage, SourceRef};
use crate::store::records::{Hit, OutputRecord};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Takes a node's key from its parameters and the records of the nodes above.
///
/// `hits[i]` is what is stored of node `i`; every node above `id` must be.
///
/// # Errors
/// A source file that is missing or unreadable.
pub fn pre_image(plan: &Plan, id: usize, hits: &[Option<Hit>], store: &Store) -> Result<PreImage> {
    let node = &plan.nodes[id];
    let mut inputs = BTreeMap::new();
    for port in (node.entry.inputs)() {
        let Some(sources) = node.inputs.get(port.name) else { continue };
        let named = matches!(port.arity, Arity::Many | Arity::Any);
        let mut refs = Vec::with_capacity(sources.len());
        for source in sources {
            let output = output_of(plan, source.node, source.port, hits)?;
            refs.push(if named {
                InputRef::named(output.digest, &source.label, point_map(&source.point))
            } else {
                InputRef::anonymous(output.digest, &source.label)
            });
        }
        inputs.insert(port.name.to_string(), refs);
    }
    let mut sources = Vec::new();
    for path in (node.entry.sources)(&node.params) {
        let digest = store.sources().digest(&folder(plan).join(&path)).context(format!("stage `{}`", node.label))?;
        sources.push(SourceRef { path: path.display().to_string(), digest });
    }
    Ok(PreImage {
        stage: node.entry.name.to_string(),
        version: node.entry.version,
        params: node.params.clone(),
        seed: node.seed,
        inputs,
        sources,
    })
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
    /// The pre-image and the key of each node whose inputs are all stored.
    pub asked: Vec<Option<(PreImage, Digest)>>,
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
        let mut outlook = Outlook { hits: vec![None; n], asked: vec![None; n], problems: vec![None; n] };
        for id in 0..n {
            if plan.nodes[id].inputs.values().flatten().any(|source| outlook.hits[source.node].is_none()) {
                continue;
            }
            match pre_image(plan, id, &outlook.hits, store) {
                Ok(pre_image) => {
                    let key = pre_image.key();
                    outlook.hits[id] = store.hit(&key)?;
                    outlook.asked[id] = Some((pre_image, key));
                }
                Err(error) => outlook.problems[id] = Some(error.to_string()),
            }
        }
        Ok(outlook)
    }
}

impl Outlook {
    /// The key of node `id`, if its inputs are all stored.
    pub fn key(&self, id: usize) -> Option<Digest> {
        self.asked[id].as_ref().map(|(_, key)| *key)
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
