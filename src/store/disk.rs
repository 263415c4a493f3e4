//! Small steps on the file system that must not be left half done.
//!
//! A file is replaced by writing another one in the cache's `tmp/` and renaming it; its content and its name are
//! forced to the disk where losing them would break a promise (invariant 5), and only there.

use crate::error::{Class, Error, Result};
use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Whether a change must survive a power cut before the call returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Content and name are synced.
    Synced,
    /// Losing it costs time only.
    Lazy,
}

/// Names the path in an I/O error inside the cache. Unlike [`crate::error::IoExt`], a missing file is not the user's
/// fault here.
pub trait CacheIo<T> {
    /// `doing` completes "cannot …": `read`, `write`, `rename`.
    fn in_cache(self, doing: &str, path: &Path) -> Result<T>;
}

impl<T> CacheIo<T> for io::Result<T> {
    fn in_cache(self, doing: &str, path: &Path) -> Result<T> {
        self.map_err(|error| Error::io(error, doing, path).with_class(Class::Machine))
    }
}

/// Puts `bytes` in place of whatever `path` holds: readers see the old content or the new one.
///
/// # Errors
/// What the disk says; `path` then holds what it held before.
pub fn replace(tmp: &Path, path: &Path, bytes: &[u8], durability: Durability) -> Result<()> {
    let fresh = tmp.join(format!("{}.new", unique()));
    let done = write_new(&fresh, bytes, durability)
        .and_then(|()| with_parent(path, || std::fs::rename(&fresh, path)).in_cache("replace", path));
    if done.is_err() {
        // It may never have been made; what is left is swept by `gc`.
        let _ = std::fs::remove_file(&fresh);
        return done;
    }
    match (durability, path.parent()) {
        (Durability::Synced, Some(parent)) => sync_dir(parent),
        _ => Ok(()),
    }
}

/// Writes a file that does not exist yet.
///
/// # Errors
/// What the disk says.
pub fn write_new(path: &Path, bytes: &[u8], durability: Durability) -> Result<()> {
    let mut file = with_parent(path, || File::create_new(path)).in_cache("create", path)?;
    file.write_all(bytes).in_cache("write", path)?;
    if durability == Durability::Synced {
        file.sync_all().in_cache("write", path)?;
    }
    Ok(())
}

/// Forces the names in `dir` to the disk.
///
/// # Errors
/// What the disk says.
pub fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).in_cache("sync", dir)
}

/// Does `step`; if a folder is missing on the way to `path`, makes it and tries once more.
///
/// # Errors
/// What `step` says the second time.
pub fn with_parent<T>(path: &Path, step: impl Fn() -> io::Result<T>) -> io::Result<T> {
    match (step(), path.parent()) {
        (Err(error), Some(parent)) if error.kind() == ErrorKind::NotFound => {
            std::fs::create_dir_all(parent)?;
            step()
        }
        (result, _) => result,
    }
}

/// Removes a file; one that is gone already is fine.
///
/// # Errors
/// What the disk says.
pub fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).in_cache("remove", path),
        _ => Ok(()),
    }
}

/// The entries of a folder with their metadata; a folder that is not there has none, and entries that vanish
/// meanwhile are left out.
///
/// # Errors
/// What the disk says.
pub fn list(dir: &Path) -> Result<Vec<(std::ffi::OsString, std::fs::Metadata)>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).in_cache("read", dir),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.in_cache("read", dir)?;
        if let Ok(metadata) = entry.metadata() {
            found.push((entry.file_name(), metadata));
        }
    }
    Ok(found)
}

/// Whether the file system has no room for a small file in `tmp`.
pub fn is_full(tmp: &Path) -> bool {
    let probe = tmp.join(format!("{}.new", unique()));
    let wrote = File::create_new(&probe).and_then(|mut file| file.write_all(&[0; 1 << 16]));
    let _ = std::fs::remove_file(&probe);
    wrote.is_err_and(|error| matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded))
}

/// A name that no other process uses: process id and 64 random bits.
pub fn unique() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    // `RandomState` is keyed by the operating system's generator; the hash of a counter under it is our random number.
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u64(COUNT.fetch_add(1, Ordering::Relaxed));
    hasher.write_u64(unix_nanos() as u64);
    format!("{}-{:016x}", std::process::id(), hasher.finish())
}

/// Nanoseconds since 1970; negative before.
pub fn unix_nanos() -> i64 {
    nanos(SystemTime::now())
}

/// Seconds since 1970; 0 before.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

/// A point in time as nanoseconds since 1970; negative before.
pub fn nanos(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |nanos| -nanos),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replace_makes_folders_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let (tmp, path) = (dir.path().join("tmp"), dir.path().join("a/b/c"));
        for text in ["one", "two"] {
            replace(&tmp, &path, text.as_bytes(), Durability::Synced).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        assert!(list(&tmp).unwrap().is_empty());
    }

    #[test]
    fn a_failed_replace_keeps_the_old_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("folder");
        std::fs::create_dir(&path).unwrap();
        assert!(replace(dir.path(), &path, b"x", Durability::Lazy).is_err());
        assert!(path.is_dir());
        assert_eq!(list(dir.path()).unwrap().len(), 1);
    }

    #[test]
    fn unique_names_differ() {
        let names: std::collections::HashSet<String> = (0..1000).map(|_| unique()).collect();
        assert_eq!(names.len(), 1000);
    }
}
