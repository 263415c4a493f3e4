//! The index where several machines share a cache: a write-once file per record, `records/ab/<62 more digits>.json`.
//!
//! A file is written under another name and hard-linked to its own, which fails if the name is taken: that holds on
//! NFS too. Each file is one JSON object with the record and a checksum of the record's bytes.

use super::{Fate, Hit, Index, Inserted, Record};
use crate::error::{Error, Result};
use crate::store::digest::Digest;
use crate::store::disk::{self, CacheIo, Durability};
use crate::store::warning::Warnings;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

const OPENING: &[u8] = br#"{"record":"#;
const MIDDLE: &[u8] = br#","checksum":""#;
const CLOSING: &[u8] = b"\"}\n";

/// The files of a cache.
pub struct Files {
    root: PathBuf,
    tmp: PathBuf,
    warnings: Warnings,
}

impl Files {
    /// The files in the cache at `root`; the folder need not exist.
    pub fn new(root: &Path, warnings: Warnings) -> Files {
        Files { root: root.join("records"), tmp: root.join("tmp"), warnings }
    }

    fn path(&self, key: &Digest) -> PathBuf {
        let name = key.to_string();
        self.root.join(&name[..2]).join(format!("{}.json", &name[2..]))
    }

    /// Deviations are told apart by their first artifact.
    fn deviation_path(&self, record: &Record) -> PathBuf {
        let outputs = serde_json::to_vec(&record.outputs).unwrap_or_default();
        self.path(&record.key).with_extension(format!("{}.deviation", Digest::of(&outputs).short()))
    }

    /// The record in the file at `path`; none if there is no file or it is damaged.
    fn read(&self, path: &Path, key: Option<&Digest>) -> Result<Option<Record>> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).in_cache("read", path),
        };
        let record = decode(&bytes).filter(|record| key.is_none_or(|key| record.key == *key));
        if record.is_none() {
            self.warnings.push(format!("`{}` is damaged and counts as missing", path.display()));
        }
        Ok(record)
    }

    /// Links a new file to `path`; false if the name is taken.
    fn publish(&self, path: &Path, record: &Record) -> Result<bool> {
        let fresh = self.tmp.join(format!("{}.new", disk::unique()));
        let done = disk::write_new(&fresh, &encode(record)?, Durability::Synced).and_then(|()| {
            match disk::with_parent(path, || std::fs::hard_link(&fresh, path)) {
                Ok(()) => Ok(true),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
                // A file system without hard links. Writers of one key hold its lock, so a rename does no harm.
                Err(error) if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::PermissionDenied) => {
                    std::fs::rename(&fresh, path).in_cache("rename", &fresh).map(|()| true)
                }
                Err(error) => Err(error).in_cache("link", path),
            }
        });
        // After a rename it is gone already.
        let _ = std::fs::remove_file(&fresh);
        if let (Ok(true), Some(parent)) = (&done, path.parent()) {
            disk::sync_dir(parent)?;
        }
        done
    }

    /// All files with the extension of `suffix`.
    fn paths(&self, suffix: &str) -> Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        for (folder, _) in disk::list(&self.root)? {
            let folder = self.root.join(folder);
            for (name, _) in disk::list(&folder)? {
                if name.to_string_lossy().ends_with(suffix) {
                    paths.push(folder.join(name));
                }
            }
        }
        paths.sort_unstable();
        Ok(paths)
    }

    /// The deviations of one key.
    fn deviation_paths(&self, key: &Digest) -> Result<Vec<PathBuf>> {
        let path = self.path(key);
        let (Some(folder), Some(stem)) = (path.parent(), path.file_stem()) else { return Ok(Vec::new()) };
        let stem = stem.to_string_lossy();
        let names = disk::list(folder)?.into_iter().map(|(name, _)| name);
        Ok(names
            .filter(|name| name.to_string_lossy().starts_with(&*stem) && name.to_string_lossy().ends_with(".deviation"))
            .map(|name| folder.join(name))
            .collect())
    }
}

fn encode(record: &Record) -> Result<Vec<u8>> {
    let record = serde_json::to_vec(record)?;
    let checksum = Digest::of(&record).to_string();
    Ok([OPENING, &record, MIDDLE, checksum.as_bytes(), CLOSING].concat())
}

fn decode(bytes: &[u8]) -> Option<Record> {
    let rest = bytes.strip_prefix(OPENING)?.strip_suffix(CLOSING)?;
    let (rest, checksum) = rest.split_at_checked(rest.len().checked_sub(64)?)?;
    let record = rest.strip_suffix(MIDDLE)?;
    if Digest::of(record).to_string().as_bytes() != checksum {
        return None;
    }
    serde_json::from_slice(record).ok()
}

impl Index for Files {
    fn hit(&self, key: &Digest) -> Result<Option<Hit>> {
        Ok(self.record(key)?.map(|record| record.hit()))
    }

    fn record(&self, key: &Digest) -> Result<Option<Record>> {
        self.read(&self.path(key), Some(key))
    }

    fn insert(&self, record: &Record, usable: &dyn Fn(&Hit) -> bool) -> Result<Inserted> {
        let path = self.path(&record.key);
        // A second round follows when the file that took the name turns out damaged, or gives way.
        for _ in 0..8 {
            if self.publish(&path, record)? {
                return Ok(Inserted { outputs: record.outputs.clone(), fate: Fate::New });
            }
            match self.record(&record.key)? {
                None => disk::remove(&path)?,
                Some(old) if old.has_outputs_of(record) => {
                    return Ok(Inserted { outputs: old.outputs, fate: Fate::Same });
                }
                Some(old) if usable(&old.hit()) => {
                    self.publish(&self.deviation_path(record), record)?;
                    return Ok(Inserted { outputs: old.outputs, fate: Fate::Deviates });
                }
                Some(old) => {
                    self.publish(&self.deviation_path(&old), &old)?;
                    disk::replace(&self.tmp, &path, &encode(record)?, Durability::Synced)?;
                    return Ok(Inserted { outputs: record.outputs.clone(), fate: Fate::Deviates });
                }
            }
        }
        Err(Error::machine(format!("cannot replace the damaged record `{}`", path.display())))
    }

    fn remove(&self, keys: &[Digest]) -> Result<()> {
        for key in keys {
            for path in self.deviation_paths(key)? {
                disk::remove(&path)?;
            }
            disk::remove(&self.path(key))?;
        }
        Ok(())
    }

    fn compact(&self) -> Result<()> {
        Ok(())
    }

    fn keys(&self) -> Result<Vec<Digest>> {
        let paths = self.paths(".json")?;
        let key = |path: &PathBuf| -> Option<Digest> {
            let (folder, stem) = (path.parent()?.file_name()?, path.file_stem()?);
            format!("{}{}", folder.to_str()?, stem.to_str()?).parse().ok()
        };
        Ok(paths.iter().filter_map(key).collect())
    }

    fn deviations(&self) -> Result<Vec<Record>> {
        let mut found = Vec::new();
        for path in self.paths(".deviation")? {
            found.extend(self.read(&path, None)?);
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::records::tests::record;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_damaged_file_is_a_miss_and_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path(), Warnings::default());
        files.insert(&record(1, 0), &|_| true).unwrap();
        let path = files.path(&record(1, 0).key);
        let good = std::fs::read(&path).unwrap();
        serde_json::from_slice::<serde_json::Value>(&good).unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        for (at, byte) in good.iter().enumerate() {
            file.write_at(&[byte ^ (1 << (at % 8))], at as u64).unwrap();
            assert_eq!(files.record(&record(1, 0).key).unwrap(), None, "flipped at {at}");
            file.write_at(&[*byte], at as u64).unwrap();
        }
        assert!(files.record(&record(1, 0).key).unwrap().is_some());
        for length in (0..good.len()).rev() {
            file.set_len(length as u64).unwrap();
            assert_eq!(files.record(&record(1, 0).key).unwrap(), None, "cut at {length}");
        }
        assert_eq!(files.insert(&record(1, 1), &|_| true).unwrap().fate, Fate::New);
        assert_eq!(files.record(&record(1, 0).key).unwrap(), Some(record(1, 1)));
        assert!(disk::list(&dir.path().join("tmp")).unwrap().is_empty());
    }
}
