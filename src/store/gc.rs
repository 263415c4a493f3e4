//! What can go: records that nobody asked to keep, blobs that no record names, and what dead processes left.

use super::digest::Digest;
use super::disk::{self, CacheIo};
use super::records::Record;
use super::{Store, scratch};
use crate::error::{Error, Result};
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What to keep.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Keys that stay whatever their age: those of the pipelines that the user names.
    pub keep: BTreeSet<Digest>,
    /// Other records, checkpoints, logs and damaged blobs stay until they are older than this.
    pub older_than: Duration,
}

/// What goes, or went.
#[derive(Clone, Debug, Default)]
pub struct Garbage {
    /// Records, oldest first.
    pub records: Vec<Record>,
    /// Blobs that only they name.
    pub blobs: Vec<(Digest, u64)>,
    /// Blobs that no record names: left by an interrupted run.
    pub orphans: Vec<(Digest, u64)>,
    /// Other files and folders: checkpoints of stages that are stored or no longer wanted, logs, damaged blobs, work
    /// folders of dead processes.
    pub others: Vec<(PathBuf, u64)>,
}

impl Garbage {
    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        let sizes = self.blobs.iter().chain(&self.orphans).map(|(_, size)| size);
        sizes.chain(self.others.iter().map(|(_, size)| size)).sum()
    }

    /// Whether there is nothing to remove.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.blobs.is_empty() && self.orphans.is_empty() && self.others.is_empty()
    }
}

/// Held by everything that runs stages or reads their outputs: as long as it lives, nothing is collected.
#[derive(Debug)]
pub struct RunGuard {
    _file: Option<File>,
}

impl Store {
    /// Keeps the garbage collector out, makes the folders that running stages expect, and sweeps what dead processes
    /// left in `tmp/`. Waits while garbage is being collected.
    ///
    /// # Errors
    /// [`Error::interrupted`] once `stop` is set, or what the disk says.
    pub fn enter_run(&self, stop: &AtomicBool) -> Result<RunGuard> {
        let path = self.root().join("gc.lock");
        let file = match File::open(&path) {
            Ok(file) => file,
            // Nothing is collected where nothing can be written.
            Err(_) if !self.writable() => return Ok(RunGuard { _file: None }),
            Err(error) => return Err(error).in_cache("open", &path),
        };
        loop {
            match file.try_lock_shared() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if stop.load(Ordering::Relaxed) => return Err(Error::interrupted()),
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(20)),
                Err(TryLockError::Error(error)) => return Err(error).in_cache("lock", &path),
            }
        }
        if self.writable() {
            for folder in super::layout::FOLDERS {
                let folder = self.root().join(folder);
                match std::fs::create_dir(&folder) {
                    Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                        return Err(error).in_cache("create", &folder);
                    }
                    _ => {}
                }
            }
            scratch::sweep(&self.tmp())?;
        }
        Ok(RunGuard { _file: Some(file) })
    }

    /// What [`Store::collect`] would remove now.
    ///
    /// # Errors
    /// What the disk says.
    pub fn garbage(&self, policy: &Policy) -> Result<Garbage> {
        let now = disk::unix_seconds();
        let is_old = |created: u64| now.saturating_sub(created) >= policy.older_than.as_secs();
        let mut garbage = Garbage::default();
        let (mut kept_blobs, mut stored) = (BTreeSet::new(), BTreeSet::new());
        let mut freed_blobs = BTreeSet::new();
        for key in self.index.keys()? {
            // A damaged record names nothing; it goes with the next compaction.
            let Some(record) = self.index.record(&key)? else { continue };
            let blobs = record.outputs.iter().flat_map(|output| &output.files).map(|file| file.digest);
            if policy.keep.contains(&key) || !is_old(record.created) {
                kept_blobs.extend(blobs);
                stored.insert(key);
            } else {
                freed_blobs.extend(blobs);
                garbage.records.push(record);
            }
        }
        garbage.records.sort_by_key(|record| (record.created, record.key));
        for (digest, size) in self.blobs.list()? {
            if kept_blobs.contains(&digest) {
                continue;
            }
            let list = if freed_blobs.contains(&digest) { &mut garbage.blobs } else { &mut garbage.orphans };
            list.push((digest, size));
        }
        let root = self.root();
        for (folder, stays) in [
            // A checkpoint is of use until its key is stored, a log for as long as somebody may ask for it.
            (
                "checkpoints",
                Box::new(|key: &Digest| !stored.contains(key) && policy.keep.contains(key))
                    as Box<dyn Fn(&Digest) -> bool>,
            ),
            ("logs", Box::new(|key: &Digest| stored.contains(key) || policy.keep.contains(key))),
            ("quarantine", Box::new(|_: &Digest| false)),
        ] {
            for (name, metadata) in disk::list(&root.join(folder))? {
                let path = root.join(folder).join(&name);
                let key = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<Digest>().ok());
                let is_done = folder == "checkpoints" && key.is_some_and(|key| stored.contains(&key));
                let modified = metadata.modified().map_or(0, |time| disk::nanos(time) / 1_000_000_000);
                if is_done || (is_old(modified.max(0) as u64) && !key.is_some_and(|key| stays(&key))) {
                    garbage.others.push((path, metadata.len()));
                }
            }
        }
        if self.writable() {
            garbage.others.extend(scratch::abandoned(&self.tmp())?);
        }
        Ok(garbage)
    }

    /// Removes what `policy` does not keep, and says what that was.
    ///
    /// # Errors
    /// If a run is using the cache, or what the disk says; what is left then is consistent.
    pub fn collect(&self, policy: &Policy) -> Result<Garbage> {
        self.require_writable()?;
        let path = self.root().join("gc.lock");
        let lock = OpenOptions::new().write(true).open(&path).in_cache("open", &path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::user(format!("a run is using the cache at `{}`", self.root().display()))
                    .hint("wait until it has ended, or stop it"));
            }
            Err(TryLockError::Error(error)) => return Err(error).in_cache("lock", &path),
        }
        let garbage = self.garbage(policy)?;
        // First what no record names: that needs no room, and makes some.
        for (digest, _) in &garbage.orphans {
            self.blobs.remove(digest)?;
        }
        for (path, _) in &garbage.others {
            if !path.starts_with(self.tmp()) {
                disk::remove(path)?;
            }
        }
        scratch::sweep(&self.tmp())?;
        self.locks().sweep()?;
        // Records before their blobs (invariant 5), but on a full disk forgetting a record may need room that only its
        // blobs can give: then it names missing blobs for a moment, which is a miss.
        let keys: Vec<Digest> = garbage.records.iter().map(|record| record.key).collect();
        let forgotten = self.index.remove(&keys);
        if forgotten.is_err() && !disk::is_full(&self.tmp()) {
            forgotten?;
        }
        for (digest, _) in &garbage.blobs {
            self.blobs.remove(digest)?;
        }
        self.index.remove(&keys)?;
        self.index.compact()?;
        Ok(garbage)
    }
}
