//! Where an artifact is written: files in a scratch directory, hashed while they are written.

use super::FileEntry;
use crate::error::{IoExt, Result};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Collects the files of one artifact.
pub struct Sink {
    dir: PathBuf,
    files: Vec<FileEntry>,
}

impl Sink {
    /// A sink writing into `dir`, which must exist and be empty.
    pub fn new(dir: &Path) -> Sink {
        Sink { dir: dir.to_path_buf(), files: Vec::new() }
    }

    /// Writes the file `name` through `write`, sequentially, hashing on the way; flushed to the disk at the end.
    ///
    /// # Errors
    /// What `write` returns, or what the disk says.
    pub fn file(&mut self, name: &str, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
        let path = self.dir.join(name);
        let file = File::create_new(&path).at("create", &path)?;
        let mut hashing = Hashing { inner: file, hasher: blake3::Hasher::new(), size: 0 };
        {
            let mut buffered = BufWriter::with_capacity(1 << 18, &mut hashing);
            write(&mut buffered)?;
            buffered.flush().at("write", &path)?;
        }
        hashing.inner.sync_data().at("write", &path)?;
        self.files.push(FileEntry {
            name: name.to_string(),
            digest: hashing.hasher.finalize().into(),
            size: hashing.size,
        });
        Ok(())
    }

    /// Writes the file `name` from bytes in memory.
    ///
    /// # Errors
    /// What the disk says.
    pub fn bytes(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.file(name, |out| Ok(out.write_all(bytes)?))
    }

    /// Writes the file `name` as indented JSON with a final newline.
    ///
    /// # Errors
    /// What the disk says.
    pub fn json<T: serde::Serialize>(&mut self, name: &str, value: &T) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(value)?;
        text.push(b'\n');
        self.bytes(name, &text)
    }

    /// The files written, sorted by name.
    pub fn finish(mut self) -> Vec<FileEntry> {
        self.files.sort_by(|a, b| a.name.cmp(&b.name));
        self.files
    }
}

struct Hashing {
    inner: File,
    hasher: blake3::Hasher,
    size: u64,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
