//! What the scheduler hands a worker: one line of JSON on its standard input.

use super::device::Choice;
use crate::artifact::{FileEntry, Kind};
use crate::store::key::PreImage;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// One stage to run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// The cache.
    pub cache: PathBuf,
    /// What is asked; its digest is the key.
    pub pre_image: PreImage,
    /// The artifacts bound to each input port.
    pub inputs: BTreeMap<String, Vec<Input>>,
    /// Threads that the stage may use.
    pub threads: usize,
    /// Where it computes.
    pub device: Choice,
    /// Compute even if the key is stored.
    pub force: bool,
}

/// One bound artifact.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Input {
    /// What tables call it.
    pub label: String,
    /// The point of the matrix that it was gathered from.
    pub point: BTreeMap<String, Value>,
    /// What it is.
    pub kind: Kind,
    /// Its files, stored as blobs.
    pub files: Vec<FileEntry>,
}
