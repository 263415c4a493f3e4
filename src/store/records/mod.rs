//! The index of records: which keys were computed, and what came out.
//!
//! Two layouts behind one trait. On a local disk, one append-only [`log`] that a no-op run reads in a fraction of a
//! millisecond per thousand records; where several machines share a cache, write-once [`files`], because neither
//! appending nor mapping is safe over NFS. Both keep the first record of a key: when the same key gives other bytes
//! later, that is recorded as a deviation of its own and reported.

mod entry;
pub mod files;
pub mod log;

use super::digest::Digest;
use super::key::PreImage;
use crate::artifact::{FileEntry, Kind};
use crate::error::Result;
use serde::{Deserialize, Serialize};

/// What was computed under a key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The key.
    pub key: Digest,
    /// What the key stands for.
    pub pre_image: PreImage,
    /// What came out; the first is the default port's.
    pub outputs: Vec<OutputRecord>,
    /// Wall-clock seconds that it took.
    pub seconds: f64,
    /// The worker's peak resident memory, in MiB, where the system tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory_mib: Option<u64>,
    /// The number printed beside the finished stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headline: Option<String>,
    /// The device it ran on.
    pub device: String,
    /// Threads it ran with.
    pub threads: usize,
    /// The instruction set that its kernels were made of; unknown in records of earlier builds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instructions: Option<String>,
    /// The numbers that its networks compute with; unknown in records of earlier builds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<String>,
    /// The build that ran it.
    pub build: String,
    /// When it was stored, in seconds since 1970.
    pub created: u64,
}

/// One output artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputRecord {
    /// The output port.
    pub port: String,
    /// What it is.
    pub kind: Kind,
    /// The artifact's digest, see [`crate::artifact::digest`].
    pub digest: Digest,
    /// Its files, sorted by name.
    pub files: Vec<FileEntry>,
}

/// The part of a record that a run needs of a node that is stored already.
#[derive(Clone, Debug, PartialEq)]
pub struct Hit {
    /// What came out; the first is the default port's.
    pub outputs: Vec<OutputRecord>,
    /// Wall-clock seconds that it took.
    pub seconds: f64,
    /// The worker's peak resident memory, in MiB.
    pub peak_memory_mib: Option<u64>,
    /// The number printed beside the finished stage.
    pub headline: Option<String>,
    /// When it was stored, in seconds since 1970.
    pub created: u64,
}

impl Record {
    /// The part that a run needs.
    pub fn hit(&self) -> Hit {
        Hit {
            outputs: self.outputs.clone(),
            seconds: self.seconds,
            peak_memory_mib: self.peak_memory_mib,
            headline: self.headline.clone(),
            created: self.created,
        }
    }

    fn has_outputs_of(&self, other: &Record) -> bool {
        self.outputs == other.outputs
    }
}

/// What inserting a record came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Inserted {
    /// The outputs that count from now on: those of the first record of this key whose blobs are all there.
    pub outputs: Vec<OutputRecord>,
    /// Whether there was one before.
    pub fate: Fate,
}

/// Whether a key had a record when another one came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It had none.
    New,
    /// It had one with the same outputs.
    Same,
    /// It had one with other outputs: the stage is not deterministic. Both are recorded.
    Deviates,
}

/// An index of records. Safe to use from several threads and several processes at once.
pub trait Index: Send + Sync {
    /// What a run needs to know of `key`; none if there is no readable record.
    ///
    /// # Errors
    /// An index that cannot be read at all. Damage is a miss and a warning (invariant 6).
    fn hit(&self, key: &Digest) -> Result<Option<Hit>>;

    /// Gives `visit` the records that were added last with their keys, newest first, until it returns false. An index
    /// that cannot tell cheaply gives none.
    fn newest(&self, _visit: &mut dyn FnMut(Digest, Hit) -> bool) {}

    /// The record of `key`; none if there is no readable record.
    ///
    /// # Errors
    /// An index that cannot be read at all.
    fn record(&self, key: &Digest) -> Result<Option<Record>>;

    /// Adds a record and forces it to the disk. A record that is there already stays, unless `usable` says that its
    /// blobs are gone.
    ///
    /// # Errors
    /// What the disk says; the index then holds what it held before.
    fn insert(&self, record: &Record, usable: &dyn Fn(&Hit) -> bool) -> Result<Inserted>;

    /// Forgets records. Keys without a record are fine.
    ///
    /// # Errors
    /// What the disk says.
    fn remove(&self, keys: &[Digest]) -> Result<()>;

    /// Gives back the space of what was forgotten.
    ///
    /// # Errors
    /// What the disk says; the index then holds what it held before.
    fn compact(&self) -> Result<()>;

    /// The keys that have a record, sorted. Some of the records may turn out damaged when read.
    ///
    /// # Errors
    /// An index that cannot be read at all.
    fn keys(&self) -> Result<Vec<Digest>>;

    /// Results that came out differently from, and after, the record of the same key; or before, if the blobs of the
    /// earlier result were gone.
    ///
    /// # Errors
    /// An index that cannot be read at all.
    fn deviations(&self) -> Result<Vec<Record>>;
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::store::warning::Warnings;
    use serde_json::json;
    use std::collections::BTreeMap;
    use std::path::Path;

    /// A record whose outputs are told apart by `variant`.
    pub fn record(n: u64, variant: u8) -> Record {
        let pre_image = PreImage {
            stage: "test/echo".into(),
            version: 1,
            params: json!({ "value": n, "note": "a text that takes some room in the body of the record" }),
            seed: Some(n),
            inputs: BTreeMap::new(),
            sources: vec![],
        };
        let files = vec![
            FileEntry { name: "table.csv".into(), digest: Digest::of(&[variant]), size: 1 },
            FileEntry { name: "table.json".into(), digest: Digest::of(&[variant, 1]), size: 2 },
        ];
        let digest = crate::artifact::digest(Kind::Table, &files);
        Record {
            key: pre_image.key(),
            pre_image,
            outputs: vec![OutputRecord { port: "output".into(), kind: Kind::Table, digest, files }],
            seconds: 0.25,
            peak_memory_mib: Some(12),
            headline: n.is_multiple_of(2).then(|| format!("headline {n}")),
            device: "cpu".into(),
            threads: 2,
            instructions: Some("avx2".into()),
            precision: None,
            build: "test".into(),
            created: 1_700_000_000 + n,
        }
    }

    type Opener = fn(&Path) -> Box<dyn Index>;
    const LAYOUTS: [Opener; 2] = [
        |root| Box::new(log::Log::new(root, Warnings::default())),
        |root| Box::new(files::Files::new(root, Warnings::default())),
    ];

    /// Runs `body` on an empty index of every layout, with a second handle as another process would have it.
    fn conformance(body: impl Fn(&dyn Index, &dyn Index)) {
        for open in LAYOUTS {
            let dir = tempfile::tempdir().unwrap();
            body(&*open(dir.path()), &*open(dir.path()));
        }
    }

    const USABLE: fn(&Hit) -> bool = |_| true;
    const GONE: fn(&Hit) -> bool = |_| false;

    #[test]
    fn what_is_inserted_is_found_by_all() {
        conformance(|index, other| {
            assert_eq!(other.hit(&record(0, 0).key).unwrap(), None);
            for n in 0..50 {
                let fresh = record(n, 0);
                let inserted = index.insert(&fresh, &USABLE).unwrap();
                assert_eq!((inserted.fate, &inserted.outputs), (Fate::New, &fresh.outputs));
                for index in [index, other] {
                    assert_eq!(index.hit(&fresh.key).unwrap(), Some(fresh.hit()));
                    assert_eq!(index.record(&fresh.key).unwrap().as_ref(), Some(&fresh));
                }
            }
            let mut keys: Vec<Digest> = (0..50).map(|n| record(n, 0).key).collect();
            keys.sort();
            assert_eq!(other.keys().unwrap(), keys);
            assert_eq!(index.record(&record(51, 0).key).unwrap(), None);
        });
    }

    #[test]
    fn the_first_record_stays() {
        conformance(|index, other| {
            index.insert(&record(1, 0), &USABLE).unwrap();
            let again = Record { seconds: 99.0, created: 5, ..record(1, 0) };
            assert_eq!(other.insert(&again, &USABLE).unwrap().fate, Fate::Same);
            assert_eq!(index.record(&again.key).unwrap(), Some(record(1, 0)));
            assert!(index.deviations().unwrap().is_empty());
        });
    }

    #[test]
    fn a_deviating_result_is_recorded_once_and_changes_nothing() {
        conformance(|index, other| {
            index.insert(&record(1, 0), &USABLE).unwrap();
            for _ in 0..2 {
                let inserted = other.insert(&record(1, 1), &USABLE).unwrap();
                assert_eq!((inserted.fate, inserted.outputs), (Fate::Deviates, record(1, 0).outputs));
            }
            for index in [index, other] {
                assert_eq!(index.record(&record(1, 0).key).unwrap(), Some(record(1, 0)));
                assert_eq!(index.deviations().unwrap(), [record(1, 1)]);
            }
        });
    }

    #[test]
    fn a_record_whose_blobs_are_gone_gives_way() {
        conformance(|index, other| {
            index.insert(&record(1, 0), &USABLE).unwrap();
            let inserted = index.insert(&record(1, 1), &GONE).unwrap();
            assert_eq!((inserted.fate, inserted.outputs), (Fate::Deviates, record(1, 1).outputs));
            assert_eq!(other.record(&record(1, 0).key).unwrap(), Some(record(1, 1)));
            assert_eq!(other.deviations().unwrap(), [record(1, 0)]);
        });
    }

    #[test]
    fn what_is_removed_is_gone_and_can_come_back() {
        conformance(|index, other| {
            for n in 0..10 {
                index.insert(&record(n, 0), &USABLE).unwrap();
            }
            index.insert(&record(3, 1), &USABLE).unwrap();
            other.remove(&[record(3, 0).key, record(4, 0).key, record(77, 0).key]).unwrap();
            let check = |index: &dyn Index| {
                for n in 0..10 {
                    let expected = (n != 3 && n != 4).then(|| record(n, 0));
                    assert_eq!(index.record(&record(n, 0).key).unwrap(), expected);
                }
                assert!(index.deviations().unwrap().is_empty());
            };
            // A handle that has the record in memory learns of its removal when it next looks at the disk.
            index.keys().unwrap();
            check(other);
            check(index);
            other.compact().unwrap();
            index.keys().unwrap();
            check(other);
            check(index);
            assert_eq!(index.insert(&record(3, 1), &USABLE).unwrap().fate, Fate::New);
            assert_eq!(other.record(&record(3, 0).key).unwrap(), Some(record(3, 1)));
        });
    }

    #[test]
    fn eight_threads_lose_nothing() {
        conformance(|index, other| {
            std::thread::scope(|scope| {
                for thread in 0..8 {
                    let index = if thread % 2 == 0 { index } else { other };
                    scope.spawn(move || {
                        for n in 0..12 {
                            // Every record is inserted by two threads.
                            let fresh = record(thread / 2 * 12 + n, 0);
                            assert_ne!(index.insert(&fresh, &USABLE).unwrap().fate, Fate::Deviates);
                            assert_eq!(index.hit(&fresh.key).unwrap(), Some(fresh.hit()));
                        }
                    });
                }
            });
            assert_eq!(index.keys().unwrap().len(), 48);
            assert_eq!(other.keys().unwrap().len(), 48);
        });
    }
}
