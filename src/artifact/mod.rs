//! What flows between stages, one file per kind.
//!
//! An artifact is a small set of named files, each stored as a blob under its digest. A stage hands the framework a
//! value that can [`Save`] itself into a [`Sink`], which hashes while it writes; the stage below gets a value that
//! [`Open`]s those files, memory-mapped where they are large. The artifact's digest covers its kind and the names and
//! digests of its files, nothing else.

pub mod beton;
pub mod clean_split;
pub mod dataset;
pub mod figure;
pub mod files;
pub mod model;
pub mod packed;
pub mod sink;
pub mod table;
pub mod trace;
pub mod trigger;

pub use clean_split::CleanSplit;
pub use dataset::{Dataset, Role, Split};
pub use figure::Figure;
pub use files::Files;
pub use model::Model;
pub use packed::Packed;
pub use sink::Sink;
pub use table::Table;
pub use trace::Trace;
pub use trigger::Trigger;

use crate::error::Result;
use crate::store::digest::Digest;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The type of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Training, test and triggered test images with their columns, as tensors.
    Dataset,
    /// The same, packed as FFCV `.beton` files: what training and evaluation read.
    Packed,
    /// Clean training images with labels, and nothing else: what a defence may see.
    CleanSplit,
    /// Weights of a classifier.
    Model,
    /// Representations that hooks wrote during training.
    Trace,
    /// Rows and columns, with their definitions.
    Table,
    /// A figure as SVG and PNG.
    Figure,
    /// A trigger and the training images without it, for an attacker who puts it on batches.
    Trigger,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 8] = [
        Kind::Dataset,
        Kind::Packed,
        Kind::CleanSplit,
        Kind::Model,
        Kind::Trace,
        Kind::Table,
        Kind::Figure,
        Kind::Trigger,
    ];

    /// The name in messages and records.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Dataset => "dataset",
            Kind::Packed => "packed",
            Kind::CleanSplit => "clean-split",
            Kind::Model => "model",
            Kind::Trace => "trace",
            Kind::Table => "table",
            Kind::Figure => "figure",
            Kind::Trigger => "trigger",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A value that can be written as an artifact.
pub trait Save {
    /// What it is once written.
    const KIND: Kind;

    /// Writes the files. The same value gives the same bytes.
    ///
    /// # Errors
    /// What writing can bring: a full disk above all.
    fn save(&self, sink: &mut Sink) -> Result<()>;
}

/// A value that can be read back from an artifact.
pub trait Open: Sized {
    /// What it is read from.
    const KIND: Kind;

    /// Opens the files; large ones are memory-mapped.
    ///
    /// # Errors
    /// A missing, truncated or malformed file.
    fn open(files: &Files) -> Result<Self>;
}

/// One file of an artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// The name within the artifact, such as `train.beton`.
    pub name: String,
    /// BLAKE3 of the content.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
}

/// The digest of an artifact: its kind, and the names and digests of its files in name order.
pub fn digest(kind: Kind, files: &[FileEntry]) -> Digest {
    let mut files: Vec<&FileEntry> = files.iter().collect();
    files.sort_by(|a, b| a.name.cmp(&b.name));
    let mut hasher = blake3::Hasher::new_derive_key("runner 2026-11 artifact");
    let mut field = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    field(kind.name().as_bytes());
    for file in files {
        field(file.name.as_bytes());
        field(&file.digest.0);
    }
    hasher.finalize().into()
}
