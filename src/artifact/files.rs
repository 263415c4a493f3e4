//! The files of an artifact, for reading.

use crate::error::{Error, IoExt, Result};
use memmap2::Mmap;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Names and paths of an artifact's files.
#[derive(Clone, Debug, Default)]
pub struct Files {
    paths: BTreeMap<String, PathBuf>,
}

impl Files {
    /// From (name, path) pairs.
    pub fn new(paths: impl IntoIterator<Item = (String, PathBuf)>) -> Files {
        Files { paths: paths.into_iter().collect() }
    }

    /// All files of a directory; for tests and for artifacts that a user hands in.
    ///
    /// # Errors
    /// An unreadable directory.
    pub fn of_directory(dir: &Path) -> Result<Files> {
        let mut paths = BTreeMap::new();
        for entry in std::fs::read_dir(dir).at("read", dir)? {
            let entry = entry.at("read", dir)?;
            paths.insert(entry.file_name().to_string_lossy().into_owned(), entry.path());
        }
        Ok(Files { paths })
    }

    /// Whether there is a file `name`.
    pub fn has(&self, name: &str) -> bool {
        self.paths.contains_key(name)
    }

    /// The path of the file `name`.
    ///
    /// # Errors
    /// If the artifact has no such file.
    pub fn path(&self, name: &str) -> Result<&Path> {
        match self.paths.get(name) {
            Some(path) => Ok(path),
            None => Err(Error::machine(format!("the artifact has no file `{name}`"))),
        }
    }

    /// The file `name`, memory-mapped. Blobs are never modified (invariant 5), which is what makes this sound.
    ///
    /// # Errors
    /// A missing or unreadable file.
    #[allow(unsafe_code)]
    pub fn map(&self, name: &str) -> Result<Arc<Mmap>> {
        let path = self.path(name)?;
        let file = File::open(path).at("open", path)?;
        // SAFETY: a blob is write-once and published by rename; nobody truncates or writes it while it is mapped.
        let map = unsafe { Mmap::map(&file) }.at("map", path)?;
        Ok(Arc::new(map))
    }

    /// The file `name`, read whole.
    ///
    /// # Errors
    /// A missing or unreadable file.
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.path(name)?;
        std::fs::read(path).at("read", path)
    }

    /// The file `name`, decoded from JSON.
    ///
    /// # Errors
    /// A missing, unreadable or malformed file.
    pub fn json<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        serde_json::from_slice(&self.read(name)?)
            .map_err(|error| Error::from(error).context(format!("reading `{name}`")))
    }
}
