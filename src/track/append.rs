//! A file that only grows, by whole records.
//!
//! It is opened for every append and not kept open: a matrix of a thousand combinations has a thousand files, and a
//! process may hold about as many. Nothing is buffered, so a reader sees a record as soon as it is written, and a run
//! that is killed leaves whole records behind.

use crate::error::{IoExt, Result};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The file.
#[derive(Debug)]
pub struct Appender {
    path: PathBuf,
}

impl Appender {
    /// A new file that begins with `start`.
    ///
    /// # Errors
    /// If there is one, or what the disk says.
    pub fn create(path: PathBuf, start: &[u8]) -> Result<Appender> {
        File::create_new(&path).and_then(|mut file| file.write_all(start)).at("create", &path)?;
        Ok(Appender { path })
    }

    /// A file that may be there.
    ///
    /// # Errors
    /// What the disk says.
    pub fn open(path: PathBuf) -> Result<Appender> {
        OpenOptions::new().create(true).append(true).open(&path).at("open", &path)?;
        Ok(Appender { path })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes whole records behind the others. If that fails, what was written of them is taken away again.
    ///
    /// # Errors
    /// What the disk says.
    pub fn append(&self, bytes: &[u8]) -> Result<()> {
        let mut file = OpenOptions::new().append(true).open(&self.path).at("append to", &self.path)?;
        let before = file.metadata().at("look at", &self.path)?.len();
        let written = file.write_all(bytes);
        if written.is_err() {
            // Readers also skip a torn record at the end: this is for the tidy.
            let _ = file.set_len(before);
        }
        written.at("append to", &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_does_not_fit_leaves_no_trace() {
        let dir = tempfile::tempdir().unwrap();
        let file = Appender::create(dir.path().join("log"), b"ab").unwrap();
        file.append(b"cd").unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), b"abcd");
        assert!(Appender::create(dir.path().join("log"), b"").is_err());
        Appender::open(dir.path().join("log")).unwrap().append(b"e").unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), b"abcde");
        // A device that is always full.
        let full = Appender::open("/dev/full".into()).unwrap();
        assert!(full.append(b"x").unwrap_err().message().starts_with("cannot append to `/dev/full`: No space left"));
    }
}
