//! What a half-done stage leaves for its next attempt.
//!
//! One file per key, written beside and renamed, with a digest in front: a torn or damaged checkpoint is no
//! checkpoint. A stage that resumes must end with the same bytes as one that was never interrupted.

use crate::error::{IoExt, Result};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A checkpoint slot.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    path: Option<PathBuf>,
}

const MAGIC: &[u8; 8] = b"runnerC1";

impl Checkpoint {
    /// A slot that keeps nothing.
    pub fn none() -> Checkpoint {
        Checkpoint { path: None }
    }

    /// The slot at `path`; its directory must exist.
    pub fn at(path: &Path) -> Checkpoint {
        Checkpoint { path: Some(path.to_path_buf()) }
    }

    /// What was saved last, if it is whole.
    pub fn load(&self) -> Option<Vec<u8>> {
        let bytes = std::fs::read(self.path.as_ref()?).ok()?;
        let (magic, rest) = bytes.split_at_checked(8)?;
        let (digest, body) = rest.split_at_checked(32)?;
        (magic == MAGIC && blake3::hash(body).as_bytes() == digest).then(|| body.to_vec())
    }

    /// Saves `body` in place of what was there, atomically.
    ///
    /// # Errors
    /// What the disk says.
    pub fn save(&self, body: &[u8]) -> Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let fresh = path.with_extension("new");
        let mut file = File::create(&fresh).at("create", &fresh)?;
        let write = |file: &mut File| -> std::io::Result<()> {
            file.write_all(MAGIC)?;
            file.write_all(blake3::hash(body).as_bytes())?;
            file.write_all(body)?;
            file.sync_data()
        };
        write(&mut file).at("write", &fresh)?;
        std::fs::rename(&fresh, path).at("rename", &fresh)
    }

    /// Forgets it.
    pub fn clear(&self) {
        if let Some(path) = &self.path {
            // Nothing to do about a file that will not go: the key is stored, so it is never read again.
            let _ = std::fs::remove_file(path);
            let _ = std::fs::remove_file(path.with_extension("new"));
        }
    }
}
