//! Checks everything: every record's blobs are there, whole, and what their digests say (invariant 6).

use super::blobs::Condition;
use super::digest::Digest;
use super::records::Record;
use super::{Store, disk};
use crate::artifact::{self, FileEntry};
use crate::error::Result;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::fmt;

/// What to do about damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Tell, and touch nothing.
    No,
    /// Put damaged blobs aside and forget the records that name them: the next run computes them again.
    Yes,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Verification {
    /// Records read.
    pub n_records: usize,
    /// Blobs read, each once.
    pub n_blobs: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of blobs that no record names; `gc` frees them.
    pub unreferenced_bytes: u64,
    /// Damage.
    pub problems: Vec<Problem>,
    /// Results that came out differently another time: stages that are not deterministic.
    pub deviations: Vec<Record>,
}

/// Damage to what one key stands for.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// The key.
    pub key: Digest,
    /// The stage; none if the record itself is damaged.
    pub stage: Option<String>,
    /// What is wrong.
    pub damage: Damage,
}

/// What can be wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// The record cannot be read.
    Record,
    /// A blob is missing, of the wrong length, or of other content.
    Blob {
        /// The output port.
        port: String,
        /// The file.
        file: FileEntry,
        /// What is wrong with it.
        condition: Condition,
    },
    /// The digest of an output is not that of its files.
    Artifact {
        /// The output port.
        port: String,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.key.short())?;
        if let Some(stage) = &self.stage {
            write!(f, "{stage}: ")?;
        }
        match &self.damage {
            Damage::Record => f.write_str("the record is damaged"),
            Damage::Blob { port, file, condition } => {
                let what = match condition {
                    Condition::Good => "is good",
                    Condition::Missing => "is missing",
                    Condition::WrongSize => "has the wrong length",
                    Condition::Damaged => "has the wrong content",
                };
                write!(f, "`{port}/{}` (blob {}) {what}", file.name, file.digest.short())
            }
            Damage::Artifact { port } => write!(f, "the digest of `{port}` is not that of its files"),
        }
    }
}

impl Store {
    /// Reads everything that records name. With [`Repair::Yes`], damaged blobs are put aside, and records that name
    /// damaged or missing ones are forgotten.
    ///
    /// # Errors
    /// What the disk says. Damage is not an error: it is in the result.
    pub fn verify(&self, repair: Repair) -> Result<Verification> {
        if repair == Repair::Yes {
            self.require_writable()?;
        }
        let mut found = Verification { deviations: self.index.deviations()?, ..Verification::default() };
        let (mut records, mut files) = (Vec::new(), BTreeMap::new());
        for key in self.index.keys()? {
            match self.index.record(&key)? {
                Some(record) => {
                    let entries = record.outputs.iter().flat_map(|output| &output.files);
                    // Two records that disagree about a blob's size are both checked.
                    files.extend(entries.map(|file| ((file.digest, file.size), file.clone())));
                    records.push(record);
                }
                None => found.problems.push(Problem { key, stage: None, damage: Damage::Record }),
            }
        }
        let conditions: BTreeMap<(Digest, u64), Condition> = files
            .par_iter()
            .map(|(id, file)| Ok((*id, self.blobs.check(file)?)))
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .collect();
        found.n_records = records.len();
        found.n_blobs = conditions.len();
        found.bytes = conditions.keys().map(|(_, size)| size).sum();
        let named: std::collections::BTreeSet<Digest> = conditions.keys().map(|(digest, _)| *digest).collect();
        found.unreferenced_bytes =
            self.blobs.list()?.iter().filter(|(digest, _)| !named.contains(digest)).map(|(_, size)| size).sum();
        for record in &records {
            let problem = |damage| Problem { key: record.key, stage: Some(record.pre_image.stage.clone()), damage };
            for output in &record.outputs {
                if artifact::digest(output.kind, &output.files) != output.digest {
                    found.problems.push(problem(Damage::Artifact { port: output.port.clone() }));
                }
                for file in &output.files {
                    let condition = conditions.get(&(file.digest, file.size)).copied().unwrap_or(Condition::Missing);
                    if condition != Condition::Good {
                        let (port, file) = (output.port.clone(), file.clone());
                        found.problems.push(problem(Damage::Blob { port, file, condition }));
                    }
                }
            }
        }
        if repair == Repair::Yes {
            self.repair(&found)?;
        }
        Ok(found)
    }

    fn repair(&self, found: &Verification) -> Result<()> {
        let mut keys: Vec<Digest> = found.problems.iter().map(|problem| problem.key).collect();
        keys.dedup();
        // Records first (invariant 5).
        self.index.remove(&keys)?;
        for problem in &found.problems {
            if let Damage::Blob { file, condition: Condition::Damaged | Condition::WrongSize, .. } = &problem.damage {
                self.blobs.set_aside(&file.digest)?;
            }
        }
        if !keys.is_empty() {
            self.index.compact()?;
            disk::sync_dir(self.root())?;
        }
        Ok(())
    }
}
