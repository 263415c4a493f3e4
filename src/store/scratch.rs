//! Work folders, `tmp/<process>-<random>/`, in the cache's own file system so that blobs move by renaming.
//!
//! Beside each folder lies a lock file that its process holds. A folder whose lock is free was left by a process that
//! died, and is swept.

use super::disk::{self, CacheIo};
use super::locks::Lock;
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Files that are replaced atomically lie in `tmp/` for milliseconds; older than this, they were left behind.
const STRAY: Duration = Duration::from_secs(3600);

/// A work folder; dropping it removes it.
#[derive(Debug)]
pub struct Scratch {
    dir: PathBuf,
    // Freed after the folder is removed.
    _lock: Lock,
}

impl Scratch {
    /// A new, empty folder in `tmp`.
    ///
    /// # Errors
    /// What the disk says.
    pub fn new(tmp: &Path) -> Result<Scratch> {
        // The lock first: a folder without a held lock is free to be swept. A sweeper that tries the fresh lock at this
        // very moment costs another name.
        for _ in 0..100 {
            let dir = tmp.join(disk::unique());
            if let Some(lock) = Lock::try_at(&lock_path(&dir))? {
                std::fs::create_dir(&dir).in_cache("create", &dir)?;
                return Ok(Scratch { dir, _lock: lock });
            }
        }
        Err(Error::machine(format!("cannot lock a new folder in `{}`", tmp.display())))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Removes what lies in it, but for empty folders: the next stage will want them, and ext4 is slow to make files
    /// right after others were removed.
    ///
    /// # Errors
    /// What the disk says.
    pub fn clear(&self) -> Result<()> {
        for (name, metadata) in disk::list(&self.dir)? {
            let path = self.dir.join(name);
            if !metadata.is_dir() {
                disk::remove(&path)?;
            } else if !disk::list(&path)?.is_empty() {
                std::fs::remove_dir_all(&path).in_cache("remove", &path)?;
            }
        }
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What will not go is swept later.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn lock_path(dir: &Path) -> PathBuf {
    dir.with_extension("lock")
}

/// What dead processes left in `tmp`, with its size in bytes.
///
/// # Errors
/// What the disk says.
pub fn abandoned(tmp: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let mut found = Vec::new();
    for (name, metadata) in disk::list(tmp)? {
        let path = tmp.join(name);
        if metadata.is_dir() {
            if Lock::try_at(&lock_path(&path))?.is_some() {
                let size = size(&path)?;
                found.push((path, size));
            }
        } else if path.extension().is_some_and(|extension| extension == "new") {
            let age = metadata.modified().ok().and_then(|time| SystemTime::now().duration_since(time).ok());
            if age.is_some_and(|age| age > STRAY) {
                found.push((path, metadata.len()));
            }
        }
    }
    Ok(found)
}

/// Removes what dead processes left in `tmp`.
///
/// # Errors
/// What the disk says.
pub fn sweep(tmp: &Path) -> Result<()> {
    for (name, metadata) in disk::list(tmp)? {
        let path = tmp.join(name);
        if metadata.is_dir() {
            // Held while the folder goes, so that two sweepers do not meet.
            if let Some(_lock) = Lock::try_at(&lock_path(&path))? {
                match std::fs::remove_dir_all(&path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(error).in_cache("remove", &path);
                    }
                    _ => {}
                }
            }
        } else if path.extension().is_some_and(|extension| extension == "lock") && !path.with_extension("").is_dir() {
            drop(Lock::try_at(&path)?);
        }
    }
    for (path, _) in abandoned(tmp)? {
        if !path.is_dir() {
            disk::remove(&path)?;
        }
    }
    Ok(())
}

/// Bytes of all files below `dir`.
fn size(dir: &Path) -> Result<u64> {
    let mut total = 0;
    for (name, metadata) in disk::list(dir)? {
        total += if metadata.is_dir() { size(&dir.join(name))? } else { metadata.len() };
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_work_folder_goes_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(dir.path()).unwrap();
        std::fs::create_dir(scratch.path().join("deep")).unwrap();
        std::fs::write(scratch.path().join("deep/file"), "x").unwrap();
        drop(scratch);
        assert!(disk::list(dir.path()).unwrap().is_empty());
    }

    #[test]
    fn a_cleared_work_folder_keeps_empty_folders_alone() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(dir.path()).unwrap();
        for folder in ["empty", "full/deep"] {
            std::fs::create_dir_all(scratch.path().join(folder)).unwrap();
        }
        for file in ["stray", "full/deep/file"] {
            std::fs::write(scratch.path().join(file), "x").unwrap();
        }
        scratch.clear().unwrap();
        let left: Vec<_> = disk::list(scratch.path()).unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(left, ["empty"]);
    }

    #[test]
    fn what_the_dead_left_is_swept_and_the_living_keep_theirs() {
        let dir = tempfile::tempdir().unwrap();
        let tmp = dir.path();
        let alive = Scratch::new(tmp).unwrap();
        std::fs::create_dir_all(tmp.join("1-dead/output")).unwrap();
        std::fs::write(tmp.join("1-dead/output/part"), [0; 100]).unwrap();
        std::fs::write(tmp.join("1-dead.lock"), "1 gone\n").unwrap();
        std::fs::create_dir(tmp.join("2-dead")).unwrap();
        std::fs::write(tmp.join("3-dead.lock"), "").unwrap();
        std::fs::write(tmp.join("4-busy.new"), "being written").unwrap();
        let stray = std::fs::File::create(tmp.join("5-dead.new")).unwrap();
        stray.set_modified(SystemTime::now() - 2 * STRAY).unwrap();
        let mut listed: Vec<u64> = abandoned(tmp).unwrap().into_iter().map(|(_, size)| size).collect();
        listed.sort_unstable();
        assert_eq!(listed, [0, 0, 100]);
        sweep(tmp).unwrap();
        let mut left: Vec<String> =
            disk::list(tmp).unwrap().into_iter().map(|(name, _)| name.to_string_lossy().into_owned()).collect();
        left.sort_unstable();
        let name = alive.path().file_name().unwrap().to_string_lossy().into_owned();
        let mut expected = vec![name.clone(), format!("{name}.lock"), "4-busy.new".into()];
        expected.sort_unstable();
        assert_eq!(left, expected);
    }
}
