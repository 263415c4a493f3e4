//! The content-addressed store: what was asked (keys) and what came out (blobs, under their digests).
//!
//! - [`key`]: a key is the digest of everything that a stage's result depends on; [`change`] says how two differ
//! - [`blobs`]: files under the digest of their content, never modified
//! - [`records`]: which key gave which artifacts
//! - [`locks`], [`scratch`], [`checkpoint`]: what is being computed
//! - [`sources`]: digests of files outside; [`history`]: what the last runs were
//! - [`gc`], [`verify`]: what can go, and whether all is well
//! - [`layout`]: what lies where
//!
//! A stage's result becomes visible in three steps: its files are written and hashed in a scratch folder, renamed to
//! their blobs, and only then named by a record (invariant 5). Killed anywhere in between, the cache holds at worst
//! some bytes that `gc` frees.

pub mod blobs;
pub mod change;
pub mod checkpoint;
pub mod digest;
mod disk;
pub mod gc;
pub mod history;
pub mod key;
pub mod layout;
pub mod locks;
pub mod records;
pub mod scratch;
pub mod sources;
#[cfg(test)]
mod tests;
pub mod verify;
pub mod warning;

use crate::artifact::{FileEntry, Files};
use crate::error::{Error, Result};
use crate::stage::Written;
use checkpoint::Checkpoint;
use digest::{Digest, DigestMap};
use layout::Layout;
use records::{Hit, Index, Inserted, OutputRecord, Record};
use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A cache, opened. Safe to share between threads; other processes may use the same cache.
pub struct Store {
    root: PathBuf,
    layout: Layout,
    is_writable: bool,
    index: Box<dyn Index>,
    /// Records that [`Store::warm`] has read, with all of their blobs there. One that is asked for is taken out.
    warm: Mutex<DigestMap<Hit>>,
    blobs: blobs::Blobs,
    locks: locks::Locks,
    sources: sources::Sources,
    history: history::History,
    warnings: warning::Warnings,
}

/// What to do where there is no cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Make one.
    Create,
    /// Make nothing: the store is empty and cannot be written. For commands that only look.
    Pretend,
}

impl Store {
    /// Opens the cache at `dir`. Reads two small files; records are read when the first is asked for. A cache that
    /// cannot be written, by permission or because the file system is read-only, opens for reading.
    ///
    /// # Errors
    /// A folder that is something else than a cache, a cache of another version, or what the disk says.
    pub fn open(dir: &Path, missing: Missing) -> Result<Store> {
        let root = std::path::absolute(dir).map_err(|error| Error::io(error, "find", dir))?;
        let gc_lock = root.join("gc.lock");
        let open_lock = || OpenOptions::new().write(true).open(&gc_lock);
        let mut layout = layout::read(&root)?;
        let mut lock = open_lock();
        let is_missing = |error: &std::io::Error| error.kind() == ErrorKind::NotFound;
        if missing == Missing::Create && (layout.is_none() || lock.as_ref().is_err_and(is_missing)) {
            layout::create(&root)?;
            layout = layout::read(&root)?;
            lock = open_lock();
        }
        let is_writable = match lock {
            Ok(_) => layout.is_some(),
            Err(error) => match error.kind() {
                ErrorKind::NotFound | ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => false,
                _ => return Err(Error::io(error, "open", &gc_lock)),
            },
        };
        let warnings = warning::Warnings::default();
        let layout = layout.unwrap_or_default();
        let (index, margin): (Box<dyn Index>, Duration) = match layout {
            Layout::Local => (Box::new(records::log::Log::new(&root, warnings.clone())), Duration::from_millis(10)),
            // Other machines' clocks and coarse timestamps count here.
            Layout::Shared => (Box::new(records::files::Files::new(&root, warnings.clone())), Duration::from_secs(2)),
        };
        Ok(Store {
            index,
            warm: Mutex::default(),
            is_writable,
            layout,
            warnings,
            blobs: blobs::Blobs::new(&root),
            locks: locks::Locks::new(&root),
            sources: sources::Sources::new(&root, margin),
            history: history::History::new(&root),
            root,
        })
    }

    /// Where the cache lies, absolute.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// How it keeps records.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Whether it can be written.
    pub fn writable(&self) -> bool {
        self.is_writable
    }

    /// Refuses to go on with a cache that cannot be written.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn require_writable(&self) -> Result<()> {
        if self.is_writable {
            return Ok(());
        }
        Err(Error::machine(format!("the cache at `{}` cannot be written", self.root.display()))
            .hint("choose a writable cache with `--cache DIR` or RUNNER_CACHE"))
    }

    /// What went wrong without stopping anything, since the last call: damage that was treated as a miss.
    pub fn warnings(&self) -> Vec<String> {
        self.warnings.take()
    }

    /// What a run needs to know of a node that is stored: a record whose blobs are all there, in full length. About
    /// 1 us besides 1.2 us for each blob that was not asked for before; less for what [`Store::warm`] has read.
    ///
    /// # Errors
    /// An index that cannot be read at all. Damage is a miss and a warning (invariant 6).
    pub fn hit(&self, key: &Digest) -> Result<Option<Hit>> {
        if let Some(hit) = self.warm_hits().remove(key) {
            return Ok(Some(hit));
        }
        Ok(self.index.hit(key)?.filter(|hit| self.are_present(key, &hit.outputs)))
    }

    /// Reads the newest records, and looks for their blobs, until told to stop, so that [`Store::hit`] has them at
    /// hand.
    ///
    /// Looking is most of what a run that finds everything stored waits for; it is done while the pipeline is planned.
    /// A record that lacks a blob is left to [`Store::hit`], which says so if anybody asks for it.
    pub fn warm(&self, stop: &AtomicBool) {
        // A cache can hold much more than one pipeline needs: its oldest records are no help.
        const MOST: usize = 100_000;
        let mut hits = DigestMap::default();
        self.index.newest(&mut |key, hit| {
            if hit.outputs.iter().flat_map(|output| &output.files).all(|file| self.blobs.is_whole(file)) {
                hits.insert(key, hit);
            }
            hits.len() < MOST && !stop.load(Ordering::Relaxed)
        });
        *self.warm_hits() = hits;
    }

    fn warm_hits(&self) -> MutexGuard<'_, DigestMap<Hit>> {
        self.warm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// [`Store::hit`] for many keys, in their order.
    ///
    /// # Errors
    /// As [`Store::hit`].
    pub fn hits(&self, keys: &[Digest]) -> Result<Vec<Option<Hit>>> {
        keys.iter().map(|key| self.hit(key)).collect()
    }

    /// The whole record of `key`, if its blobs are all there, in full length.
    ///
    /// # Errors
    /// As [`Store::hit`].
    pub fn lookup(&self, key: &Digest) -> Result<Option<Record>> {
        Ok(self.index.record(key)?.filter(|record| self.are_present(key, &record.outputs)))
    }

    /// The whole record of `key`, whatever became of its blobs: for explanations.
    ///
    /// # Errors
    /// As [`Store::hit`].
    pub fn record(&self, key: &Digest) -> Result<Option<Record>> {
        self.index.record(key)
    }

    /// All readable records, sorted by key.
    ///
    /// # Errors
    /// As [`Store::hit`].
    pub fn records(&self) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        for key in self.index.keys()? {
            records.extend(self.index.record(&key)?);
        }
        Ok(records)
    }

    /// Results of `key` that came out differently another time.
    ///
    /// # Errors
    /// As [`Store::hit`].
    pub fn deviations(&self, key: &Digest) -> Result<Vec<Record>> {
        Ok(self.index.deviations()?.into_iter().filter(|record| record.key == *key).collect())
    }

    /// Moves what a stage wrote in its scratch folder to its blobs. Nothing names them until [`Store::insert`].
    ///
    /// # Errors
    /// A full or read-only disk.
    pub fn publish(&self, written: &[Written]) -> Result<Vec<OutputRecord>> {
        self.require_writable()?;
        let files = written
            .iter()
            .flat_map(|artifact| artifact.files.iter().map(|file| (artifact.dir.join(&file.name), file.clone())));
        // Two outputs of the same content are two files and one blob.
        self.blobs.publish(&files.collect::<Vec<_>>())?;
        Ok(written
            .iter()
            .map(|artifact| OutputRecord {
                port: artifact.port.clone(),
                kind: artifact.kind,
                digest: artifact.digest(),
                files: artifact.files.clone(),
            })
            .collect())
    }

    /// Stores a record whose blobs are published. The first record of a key stays; what then counts is in the result.
    ///
    /// # Errors
    /// A blob that is not there (invariant 5), or what the disk says.
    pub fn insert(&self, record: &Record) -> Result<Inserted> {
        self.require_writable()?;
        let mut files = record.outputs.iter().flat_map(|output| &output.files);
        if let Some(file) = files.find(|file| !self.blobs.present(file)) {
            return Err(Error::machine(format!(
                "the blob {} of `{}` is missing or not whole",
                file.digest.short(),
                file.name
            )));
        }
        self.index
            .insert(record, &|old| old.outputs.iter().flat_map(|output| &output.files).all(|f| self.blobs.present(f)))
    }

    /// The files of an output, for [`crate::artifact::Open::open`].
    pub fn files(&self, output: &OutputRecord) -> Files {
        Files::new(output.files.iter().map(|file| (file.name.clone(), self.blobs.path(&file.digest))))
    }

    /// Where the blob of `digest` lies, if it is there.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.blobs.path(digest)
    }

    /// Reads a blob whole: whether it is what its entry says. A damaged one is put aside, so that what names it is a
    /// miss (invariant 6).
    ///
    /// # Errors
    /// What the disk says.
    pub fn check_blob(&self, entry: &FileEntry) -> Result<bool> {
        let is_good = self.blobs.check(entry)? == blobs::Condition::Good;
        if !is_good && self.is_writable {
            self.blobs.set_aside(&entry.digest)?;
        }
        Ok(is_good)
    }

    /// Forgets which blobs were seen: another process, a worker, may have put one aside.
    pub fn look_again(&self) {
        self.warm_hits().clear();
        self.blobs.look_again();
    }

    /// The lock of `key` and who holds it.
    pub fn locks(&self) -> &locks::Locks {
        &self.locks
    }

    /// Digests of files and folders outside the cache.
    pub fn sources(&self) -> &sources::Sources {
        &self.sources
    }

    /// What the last runs of each pipeline were.
    pub fn history(&self) -> &history::History {
        &self.history
    }

    /// A new work folder in the cache's file system.
    ///
    /// # Errors
    /// What the disk says.
    pub fn scratch(&self) -> Result<scratch::Scratch> {
        self.require_writable()?;
        scratch::Scratch::new(&self.tmp())
    }

    /// Where the worker of `key` writes its log. The folder exists once [`Store::enter_run`] was called.
    pub fn log_path(&self, key: &Digest) -> PathBuf {
        self.root.join("logs").join(format!("{key}.log"))
    }

    /// The checkpoint of `key`. Its folder exists once [`Store::enter_run`] was called.
    pub fn checkpoint(&self, key: &Digest) -> Checkpoint {
        Checkpoint::at(&self.checkpoint_path(key))
    }

    /// Where the checkpoint of `key` lies.
    pub fn checkpoint_path(&self, key: &Digest) -> PathBuf {
        self.root.join("checkpoints").join(key.to_string())
    }

    fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    fn are_present(&self, key: &Digest, outputs: &[OutputRecord]) -> bool {
        let lost = outputs.iter().flat_map(|output| &output.files).find(|file| !self.blobs.present(file));
        if let Some(file) = lost {
            self.warnings.push(format!(
                "the blob {} (`{}`) of {} is missing or not whole; the stage is computed again",
                file.digest.short(),
                file.name,
                key.short()
            ));
        }
        lost.is_none()
    }
}
