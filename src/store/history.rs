//! What the last runs of each pipeline were: for every node the key it had, `runs/<name>-<16 digits>.json`.
//!
//! `explain` compares a node's key with the key it had before; `gc` can keep what recent runs made. One JSON line a
//! run, newest first, at most [`MOST`] of them; a run that changed nothing writes nothing, and finds that out by
//! reading the beginning of the first line.

use super::digest::Digest;
use super::disk::{self, CacheIo, Durability};
use crate::config::Identity;
use crate::error::Result;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Distinct runs kept per pipeline and profile.
pub const MOST: usize = 10;

/// The history of a cache.
pub struct History {
    dir: PathBuf,
    tmp: PathBuf,
}

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Digest of `keys`. First in the line, so that an unchanged run reads no further.
    digest: Digest,
    /// When it was first seen, in seconds since 1970.
    pub created: u64,
    /// Node labels and their keys. Nodes below a failure have none.
    pub keys: BTreeMap<String, Digest>,
}

impl History {
    /// The history of the cache at `root`.
    pub fn new(root: &Path) -> History {
        History { dir: root.join("runs"), tmp: root.join("tmp") }
    }

    fn path(&self, identity: &Identity) -> PathBuf {
        let mut hasher = blake3::Hasher::new_derive_key("runner 2026-11 pipeline and profile");
        let path = std::path::absolute(&identity.path).unwrap_or_else(|_| identity.path.clone());
        hasher.update(path.as_os_str().as_bytes());
        hasher.update(&[0]);
        hasher.update(identity.profile.as_deref().unwrap_or_default().as_bytes());
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let name: String = identity.name.chars().take(64).map(|c| if is_plain(c) { c } else { '-' }).collect();
        self.dir.join(format!("{name}-{}.json", &hasher.finalize().to_hex()[..16]))
    }

    /// Notes a run, unless the last one had the same keys; whether it had others. A run like an older one moves to the
    /// front.
    ///
    /// # Errors
    /// What the disk says.
    pub fn remember(&self, identity: &Identity, keys: &BTreeMap<String, Digest>) -> Result<bool> {
        let path = self.path(identity);
        let digest = digest(keys);
        let beginning = format!("{{\"digest\":\"{digest}\"");
        let mut read = vec![0; beginning.len()];
        if File::open(&path).and_then(|mut file| file.read_exact(&mut read)).is_ok() && read == beginning.as_bytes() {
            return Ok(false);
        }
        let run = Run { digest, created: disk::unix_seconds(), keys: keys.clone() };
        let older = self.lines(&path)?;
        let mut text = serde_json::to_string(&run)?;
        text.push('\n');
        for line in older.lines().filter(|line| !line.starts_with(&beginning)).take(MOST - 1) {
            text.push_str(line);
            text.push('\n');
        }
        disk::replace(&self.tmp, &path, text.as_bytes(), Durability::Lazy)?;
        Ok(true)
    }

    /// The last runs of a pipeline, newest first. Lines that cannot be read are left out.
    ///
    /// # Errors
    /// What the disk says.
    pub fn runs(&self, identity: &Identity) -> Result<Vec<Run>> {
        Ok(self.lines(&self.path(identity))?.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    /// The key that the node `label` had before it had `key`: that of the newest run in which it differs.
    ///
    /// # Errors
    /// What the disk says.
    pub fn previous(&self, identity: &Identity, label: &str, key: &Digest) -> Result<Option<Digest>> {
        let text = self.lines(&self.path(identity))?;
        let keys = text.lines().filter_map(|line| serde_json::from_str::<Run>(line).ok()?.keys.remove(label));
        Ok(keys.into_iter().find(|old| old != key))
    }

    /// The keys of all remembered runs of all pipelines.
    ///
    /// # Errors
    /// What the disk says.
    pub fn all_keys(&self) -> Result<BTreeSet<Digest>> {
        let mut keys = BTreeSet::new();
        for (name, _) in disk::list(&self.dir)? {
            let text = self.lines(&self.dir.join(name))?;
            keys.extend(
                text.lines()
                    .filter_map(|line| serde_json::from_str::<Run>(line).ok())
                    .flat_map(|r| r.keys.into_values()),
            );
        }
        Ok(keys)
    }

    fn lines(&self, path: &Path) -> Result<String> {
        match std::fs::read(path) {
            Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(error).in_cache("read", path),
        }
    }
}

fn digest(keys: &BTreeMap<String, Digest>) -> Digest {
    let mut bytes = Vec::with_capacity(keys.len() * 64);
    for (label, key) in keys {
        bytes.extend_from_slice(&(label.len() as u64).to_le_bytes());
        bytes.extend_from_slice(label.as_bytes());
        bytes.extend_from_slice(&key.0);
    }
    Digest::of(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(profile: Option<&str>) -> Identity {
        Identity {
            name: "a/b c".into(),
            path: "pipelines/a.toml".into(),
            profile: profile.map(Into::into),
            overrides: vec![],
        }
    }

    fn keys(variant: u8) -> BTreeMap<String, Digest> {
        BTreeMap::from([("a".to_string(), Digest([0; 32])), ("b[rate=\"x\"]".to_string(), Digest([variant; 32]))])
    }

    #[test]
    fn distinct_runs_are_kept_newest_first() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::new(dir.path());
        for variant in [1, 2, 2, 1, 3] {
            history.remember(&identity(None), &keys(variant)).unwrap();
        }
        let runs: Vec<_> = history.runs(&identity(None)).unwrap().into_iter().map(|run| run.keys).collect();
        assert_eq!(runs, [keys(3), keys(1), keys(2)]);
        assert!(history.runs(&identity(Some("quick"))).unwrap().is_empty());
        for variant in 10..30 {
            history.remember(&identity(None), &keys(variant)).unwrap();
        }
        assert_eq!(history.runs(&identity(None)).unwrap().len(), MOST);
        assert_eq!(history.all_keys().unwrap().len(), MOST + 1);
    }

    #[test]
    fn the_previous_key_is_the_last_other_one() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::new(dir.path());
        let previous =
            |label: &str, variant: u8| history.previous(&identity(None), label, &Digest([variant; 32])).unwrap();
        assert_eq!(previous("a", 0), None);
        for variant in [1, 2] {
            history.remember(&identity(None), &keys(variant)).unwrap();
        }
        let label = "b[rate=\"x\"]";
        assert_eq!(previous(label, 2), Some(Digest([1; 32])));
        assert_eq!(previous(label, 3), Some(Digest([2; 32])));
        assert_eq!(previous("a", 0), None);
        assert_eq!(previous("unknown", 0), None);
    }

    #[test]
    fn an_unchanged_run_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::new(dir.path());
        let path = history.path(&identity(None));
        history.remember(&identity(None), &keys(1)).unwrap();
        let before = std::fs::metadata(&path).unwrap();
        history.remember(&identity(None), &keys(1)).unwrap();
        use std::os::unix::fs::MetadataExt;
        assert_eq!(before.ino(), std::fs::metadata(&path).unwrap().ino());
    }

    #[test]
    fn damaged_lines_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::new(dir.path());
        for variant in [1, 2] {
            history.remember(&identity(None), &keys(variant)).unwrap();
        }
        let path = history.path(&identity(None));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[3] = 0xFF;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(history.runs(&identity(None)).unwrap().len(), 1);
        history.remember(&identity(None), &keys(3)).unwrap();
        assert_eq!(
            history.previous(&identity(None), "b[rate=\"x\"]", &Digest([3; 32])).unwrap(),
            Some(Digest([1; 32]))
        );
    }
}
