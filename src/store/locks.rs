//! Locks between processes: one file per key, `locks/<key>.lock`, held with `flock` while the key is computed, so that
//! no two runners compute the same key at the same time (invariant 7).
//!
//! The lock of a process that died is free at once: the system lets go of it. The file's text, process id and host, is
//! for messages only.

use super::digest::Digest;
use super::disk::{self, CacheIo};
use crate::error::{Error, Result};
use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The locks of a cache.
pub struct Locks {
    dir: PathBuf,
}

/// A lock that is held; dropping it frees it and removes its file.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    // Closing the file frees the lock.
    _file: File,
}

/// Who holds a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The process.
    pub pid: u32,
    /// Its machine.
    pub host: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} on {}", self.pid, self.host)
    }
}

impl Locks {
    /// The locks of the cache at `root`.
    pub fn new(root: &Path) -> Locks {
        Locks { dir: root.join("locks") }
    }

    fn path(&self, key: &Digest) -> PathBuf {
        self.dir.join(format!("{key}.lock"))
    }

    /// The lock of `key`, if nobody holds it.
    ///
    /// # Errors
    /// What the disk says.
    pub fn try_lock(&self, key: &Digest) -> Result<Option<Lock>> {
        Lock::try_at(&self.path(key))
    }

    /// The lock of `key`, once nobody else holds it. When it has to wait it calls `on_wait` once, with the holder if
    /// that can be told.
    ///
    /// # Errors
    /// [`Error::interrupted`] once `stop` is set, or what the disk says.
    pub fn lock_with(&self, key: &Digest, stop: &AtomicBool, on_wait: impl FnOnce(Option<Holder>)) -> Result<Lock> {
        let mut on_wait = Some(on_wait);
        let mut pause = Duration::from_millis(20);
        loop {
            if let Some(lock) = self.try_lock(key)? {
                return Ok(lock);
            }
            if let Some(on_wait) = on_wait.take() {
                on_wait(self.holder(key));
            }
            if stop.load(Ordering::Relaxed) {
                return Err(Error::interrupted());
            }
            // A blocking lock could not be interrupted.
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }

    /// Who holds the lock of `key`, as far as its file tells.
    pub fn holder(&self, key: &Digest) -> Option<Holder> {
        let text = std::fs::read_to_string(self.path(key)).ok()?;
        let (pid, host) = text.trim_end().split_once(' ')?;
        Some(Holder { pid: pid.parse().ok()?, host: host.to_string() })
    }

    /// Removes the files of locks that nobody holds; killed processes leave them.
    ///
    /// # Errors
    /// What the disk says.
    pub fn sweep(&self) -> Result<()> {
        for (name, _) in disk::list(&self.dir)? {
            drop(Lock::try_at(&self.dir.join(name))?);
        }
        Ok(())
    }
}

impl Lock {
    /// Locks the file at `path`, making it if need be; none if somebody else holds it.
    pub(super) fn try_at(path: &Path) -> Result<Option<Lock>> {
        loop {
            let mut file = disk::with_parent(path, || {
                OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)
            })
            .in_cache("open", path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error).in_cache("lock", path),
            }
            // Between opening and locking, the holder may have removed the file: then we hold a lock that nobody else
            // will ever meet, and must take the new file's.
            let mine = file.metadata().in_cache("read", path)?;
            match std::fs::metadata(path) {
                Ok(there) if (there.dev(), there.ino()) == (mine.dev(), mine.ino()) => {}
                Ok(_) => continue,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error).in_cache("read", path),
            }
            // For messages only: on a full disk it goes unsaid.
            let _ = file.set_len(0).and_then(|()| file.rewind());
            let _ = file.write_all(format!("{} {}\n", std::process::id(), host()).as_bytes());
            return Ok(Some(Lock { path: path.to_path_buf(), _file: file }));
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Before the lock is freed, so that whoever gets it next sees that the file is gone. A file that will not go
        // is locked again next time.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "this machine".into() } else { name.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    const KEY: Digest = Digest([7; 32]);

    #[test]
    fn one_holder_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let locks = Locks::new(dir.path());
        let held = locks.try_lock(&KEY).unwrap().unwrap();
        assert!(locks.try_lock(&KEY).unwrap().is_none());
        assert!(locks.try_lock(&Digest([8; 32])).unwrap().is_some());
        assert_eq!(locks.holder(&KEY).unwrap().pid, std::process::id());
        drop(held);
        assert_eq!(locks.holder(&KEY), None);
        assert!(locks.try_lock(&KEY).unwrap().is_some());
        assert!(disk::list(&dir.path().join("locks")).unwrap().is_empty());
    }

    #[test]
    fn waiting_ends_with_the_lock_or_with_the_stop() {
        let dir = tempfile::tempdir().unwrap();
        let locks = Locks::new(dir.path());
        let held = locks.try_lock(&KEY).unwrap();
        let (stop, mut n_calls) = (AtomicBool::new(true), 0);
        let error = locks.lock_with(&KEY, &stop, |holder| {
            n_calls += 1;
            assert!(holder.is_some());
        });
        assert_eq!(error.unwrap_err().class(), crate::error::Class::Interrupted);
        assert_eq!(n_calls, 1);
        stop.store(false, Ordering::Relaxed);
        let mut held = Some(held);
        // The holder lets go while the other waits.
        let lock = locks.lock_with(&KEY, &stop, |_| drop(held.take()));
        assert!(lock.is_ok());
    }

    #[test]
    fn removing_the_file_lets_nobody_in_twice() {
        let dir = tempfile::tempdir().unwrap();
        let locks = Locks::new(dir.path());
        let (inside, most, done) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let Some(_lock) = locks.try_lock(&KEY).unwrap() else { continue };
                        most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        std::thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                        done.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(most.into_inner(), 1);
        assert!(done.into_inner() > 0);
    }

    #[test]
    fn sweeping_spares_what_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let locks = Locks::new(dir.path());
        let _held = locks.try_lock(&KEY).unwrap();
        std::fs::write(locks.path(&Digest([1; 32])), "1 gone\n").unwrap();
        locks.sweep().unwrap();
        assert_eq!(disk::list(&locks.dir).unwrap().len(), 1);
        assert!(locks.try_lock(&KEY).unwrap().is_none());
    }
}
