//! Blobs: files under the digest of their content, `blobs/ab/<62 more digits>`, read-only and never modified
//! (invariant 5).

use super::digest::{Digest, DigestMap};
use super::disk::{self, CacheIo};
use crate::artifact::FileEntry;
use crate::error::{Error, Result};
use nix::fcntl::AtFlags;
use nix::sys::stat::SFlag;
use std::collections::BTreeSet;
use std::ffi::CStr;
use std::fs::{File, Permissions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

/// The blobs of a cache.
pub struct Blobs {
    root: PathBuf,
    quarantine: PathBuf,
    /// Sizes of blobs that were seen; a run asks for the same blob again and again.
    seen: Mutex<DigestMap<u64>>,
    /// The folder `root`, opened once it is there: from it, a blob is two steps away instead of all of its path.
    folder: OnceLock<File>,
}

/// What a look at a blob's content said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The content has the digest.
    Good,
    /// There is no such blob.
    Missing,
    /// It has another length.
    WrongSize,
    /// It has the right length and other content.
    Damaged,
}

impl Blobs {
    /// The blobs of the cache at `root`.
    pub fn new(root: &Path) -> Blobs {
        Blobs {
            root: root.join("blobs"),
            quarantine: root.join("quarantine"),
            seen: Mutex::default(),
            folder: OnceLock::new(),
        }
    }

    /// Where the blob of `digest` lies, if it is there.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        let name = digest.to_string();
        self.root.join(&name[..2]).join(&name[2..])
    }

    /// Moves files, hashed and synced while they were written, to their places, and forces the names to the disk.
    ///
    /// A blob that is there already is replaced: its content is the same, or damaged, and finding out costs more.
    ///
    /// # Errors
    /// A file that is not as long as its entry says, or what the disk says.
    pub fn publish(&self, files: &[(PathBuf, FileEntry)]) -> Result<()> {
        let mut folders = BTreeSet::new();
        for (path, entry) in files {
            let size = std::fs::metadata(path).in_cache("read", path)?.len();
            if size != entry.size {
                return Err(Error::machine(format!(
                    "`{}` should have {} bytes and has {size}",
                    path.display(),
                    entry.size
                )));
            }
            let target = self.path(&entry.digest);
            std::fs::set_permissions(path, Permissions::from_mode(0o444)).in_cache("protect", path)?;
            if let Some(folder) = target.parent() {
                if !folder.is_dir() {
                    std::fs::create_dir_all(folder).in_cache("create", folder)?;
                    folders.insert(self.root.clone());
                }
                folders.insert(folder.to_path_buf());
            }
            std::fs::rename(path, &target).in_cache("rename", path)?;
        }
        for folder in &folders {
            disk::sync_dir(folder)?;
        }
        self.seen().extend(files.iter().map(|(_, entry)| (entry.digest, entry.size)));
        Ok(())
    }

    /// Whether the blob is there with its full length (invariant 6). A blob that was seen once counts as there.
    pub fn present(&self, entry: &FileEntry) -> bool {
        if self.seen().get(&entry.digest) == Some(&entry.size) {
            return true;
        }
        let is_there = self.is_whole(entry);
        if is_there {
            self.seen().insert(entry.digest, entry.size);
        }
        is_there
    }

    /// Whether the blob is there with its full length now, whatever was seen before.
    pub fn is_whole(&self, entry: &FileEntry) -> bool {
        self.length(&entry.digest) == Some(entry.size)
    }

    /// The length of the file that should be the blob of `digest`, if it is there.
    fn length(&self, digest: &Digest) -> Option<u64> {
        let folder = match self.folder.get() {
            Some(folder) => folder,
            None => {
                let opened = File::open(&self.root).ok()?;
                self.folder.get_or_init(|| opened)
            }
        };
        let digits = blake3::Hash::from_bytes(digest.0).to_hex();
        let mut name = [0u8; 66];
        name[..2].copy_from_slice(&digits.as_bytes()[..2]);
        name[2] = b'/';
        name[3..65].copy_from_slice(&digits.as_bytes()[2..]);
        let name = CStr::from_bytes_with_nul(&name).ok()?;
        let found = nix::sys::stat::fstatat(folder, name, AtFlags::empty()).ok()?;
        let is_file = SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG;
        is_file.then(|| u64::try_from(found.st_size).unwrap_or(0))
    }

    /// Reads the blob and compares its digest. Streams; safe to call from many threads.
    ///
    /// # Errors
    /// A blob that is there and cannot be opened or read.
    pub fn check(&self, entry: &FileEntry) -> Result<Condition> {
        let path = self.path(&entry.digest);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Condition::Missing),
            Err(error) => return Err(error).in_cache("open", &path),
        };
        if file.metadata().in_cache("read", &path)?.len() != entry.size {
            return Ok(Condition::WrongSize);
        }
        let digest = hash(&mut file).in_cache("read", &path)?;
        Ok(if digest == entry.digest { Condition::Good } else { Condition::Damaged })
    }

    /// Puts a damaged blob aside, where people can look at it: what names it is a miss from now on.
    ///
    /// # Errors
    /// What the disk says. A blob that is gone already is fine.
    pub fn set_aside(&self, digest: &Digest) -> Result<()> {
        self.seen().remove(digest);
        let (path, aside) = (self.path(digest), self.quarantine.join(digest.to_string()));
        match std::fs::create_dir_all(&self.quarantine).and_then(|()| std::fs::rename(&path, &aside)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error).in_cache("rename", &path),
            _ => Ok(()),
        }
    }

    /// Forgets which blobs were seen, because another process may have put one aside.
    pub fn look_again(&self) {
        self.seen().clear();
    }

    /// Removes a blob.
    ///
    /// # Errors
    /// What the disk says. A blob that is gone already is fine.
    pub fn remove(&self, digest: &Digest) -> Result<()> {
        self.seen().remove(digest);
        disk::remove(&self.path(digest))
    }

    /// All blobs with their sizes, sorted by digest. Walks the folders.
    ///
    /// # Errors
    /// What the disk says.
    pub fn list(&self) -> Result<Vec<(Digest, u64)>> {
        let mut blobs = Vec::new();
        for (folder, metadata) in disk::list(&self.root)? {
            if !metadata.is_dir() {
                continue;
            }
            for (name, metadata) in disk::list(&self.root.join(&folder))? {
                let name = format!("{}{}", folder.to_string_lossy(), name.to_string_lossy());
                // What is not called like a blob is not ours.
                if let Ok(digest) = name.parse() {
                    blobs.push((digest, metadata.len()));
                }
            }
        }
        blobs.sort_unstable();
        Ok(blobs)
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, DigestMap<u64>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The digest of all that `reader` gives, in pieces of 256 KiB.
pub(super) fn hash(reader: &mut impl Read) -> std::io::Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finalize().into()),
            Ok(n) => {
                hasher.update(&buffer[..n]);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(blobs: &Blobs, dir: &Path, content: &[u8]) -> FileEntry {
        let entry = FileEntry { name: "a".into(), digest: Digest::of(content), size: content.len() as u64 };
        let path = dir.join("fresh");
        std::fs::write(&path, content).unwrap();
        blobs.publish(&[(path, entry.clone())]).unwrap();
        entry
    }

    fn spoil(blobs: &Blobs, entry: &FileEntry, content: &[u8]) {
        let path = blobs.path(&entry.digest);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(path, content).unwrap();
    }

    #[test]
    fn published_blobs_are_read_only_and_listed() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::new(dir.path());
        for content in [b"one".as_slice(), b"", &[7; 300_000]] {
            let entry = publish(&blobs, dir.path(), content);
            let path = blobs.path(&entry.digest);
            assert_eq!(std::fs::read(&path).unwrap(), content);
            assert!(std::fs::metadata(&path).unwrap().permissions().readonly());
            assert!(blobs.present(&entry) && Blobs::new(dir.path()).present(&entry));
            assert_eq!(blobs.check(&entry).unwrap(), Condition::Good);
        }
        assert_eq!(blobs.list().unwrap().len(), 3);
    }

    #[test]
    fn a_file_of_another_length_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::new(dir.path());
        let path = dir.path().join("fresh");
        std::fs::write(&path, "three").unwrap();
        let entry = FileEntry { name: "a".into(), digest: Digest::of(b"two"), size: 3 };
        let error = blobs.publish(&[(path, entry.clone())]).unwrap_err();
        assert!(error.message().contains("should have 3 bytes and has 5"), "{error}");
        assert!(!blobs.present(&entry));
    }

    #[test]
    fn damage_is_told_apart_and_publishing_heals_it() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::new(dir.path());
        let entry = publish(&blobs, dir.path(), b"content");
        for (content, condition, is_present) in [
            (Some(b"conTent".as_slice()), Condition::Damaged, true),
            (Some(b"cont"), Condition::WrongSize, false),
            (Some(b""), Condition::WrongSize, false),
            (None, Condition::Missing, false),
        ] {
            match content {
                Some(content) => spoil(&blobs, &entry, content),
                None => std::fs::remove_file(blobs.path(&entry.digest)).unwrap(),
            }
            assert_eq!(blobs.check(&entry).unwrap(), condition);
            assert_eq!(Blobs::new(dir.path()).present(&entry), is_present);
            publish(&blobs, dir.path(), b"content");
            assert_eq!(blobs.check(&entry).unwrap(), Condition::Good);
        }
    }

    #[test]
    fn what_is_set_aside_is_a_miss() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::new(dir.path());
        let entry = publish(&blobs, dir.path(), b"content");
        blobs.set_aside(&entry.digest).unwrap();
        blobs.set_aside(&entry.digest).unwrap();
        assert!(!blobs.present(&entry));
        assert!(dir.path().join("quarantine").join(entry.digest.to_string()).is_file());
    }
}
