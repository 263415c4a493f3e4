//! Digests of files and folders outside the cache.
//!
//! Hashing everything at every run would cost what reading it costs, so `sources.json` remembers what was hashed. A
//! digest is trusted again only if size, modification time, change time and inode are what they were, *and* the latest
//! of these times lies clearly before the hash was taken: a file rewritten at equal size within one tick of the clock
//! looks unchanged ("racily clean", git's old problem).

use super::blobs;
use super::digest::Digest;
use super::disk::{self, Durability};
use crate::error::{Error, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Paths that are remembered; the oldest go first.
const MOST: usize = 1000;
/// How often hashing starts again when a source changes meanwhile.
const ATTEMPTS: usize = 3;

/// What is remembered of sources.
pub struct Sources {
    path: PathBuf,
    tmp: PathBuf,
    /// How far before the hash the latest change must lie.
    margin: Duration,
    remembered: Mutex<Option<Remembered>>,
}

/// The content of `sources.json`.
#[derive(Default, Serialize, Deserialize)]
struct Remembered {
    sources: BTreeMap<String, Entry>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Entry {
    /// Digest of names, sizes, times and inodes.
    stamp: Digest,
    /// When the hash was begun, in nanoseconds since 1970.
    taken: i64,
    /// Digest of the content.
    digest: Digest,
}

/// What the file system says of a source without reading it.
struct Look {
    /// The files, sorted by relative name; for a file, itself under the empty name.
    files: Vec<(Vec<u8>, PathBuf)>,
    is_folder: bool,
    stamp: Digest,
    /// The latest change, in nanoseconds since 1970.
    latest: i64,
}

impl Sources {
    /// What the cache at `root` remembers. `margin`: 10 ms on a local disk, 2 s where clocks of other machines count.
    pub fn new(root: &Path, margin: Duration) -> Sources {
        Sources { path: root.join("sources.json"), tmp: root.join("tmp"), margin, remembered: Mutex::default() }
    }

    /// The digest of the file or folder at `path`. A folder's covers the relative names and the contents of all files
    /// below it, empty folders excepted; symbolic links are followed.
    ///
    /// # Errors
    /// The user's, naming the path: it does not exist, cannot be read, or is something else than a file or folder.
    pub fn digest(&self, path: &Path) -> Result<Digest> {
        let absolute = std::path::absolute(path).map_err(|error| unreadable(path, &error))?;
        // A name that JSON cannot hold is hashed every time.
        let name = absolute.to_str();
        let mut look = Look::at(path)?;
        let known = name.and_then(|name| self.remembered().as_ref().and_then(|r| r.sources.get(name).cloned()));
        if let Some(known) = known
            && known.stamp == look.stamp
            && self.is_settled(&look, known.taken)
        {
            return Ok(known.digest);
        }
        for _ in 0..ATTEMPTS {
            let taken = disk::unix_nanos();
            let digest = look.hash()?;
            let again = Look::at(path)?;
            if again.stamp == look.stamp {
                if let Some(name) = name
                    && self.is_settled(&again, taken)
                {
                    self.remember(name, Entry { stamp: again.stamp, taken, digest });
                }
                return Ok(digest);
            }
            look = again;
        }
        Err(Error::user(format!("`{}` keeps changing while it is read", path.display()))
            .hint("run again when nothing writes to it"))
    }

    fn is_settled(&self, look: &Look, taken: i64) -> bool {
        let margin = i64::try_from(self.margin.as_nanos()).unwrap_or(i64::MAX);
        look.latest.saturating_add(margin) < taken
    }

    fn remembered(&self) -> MutexGuard<'_, Option<Remembered>> {
        let mut guard = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if guard.is_none() {
            // A damaged file costs hashing, nothing else.
            let read = std::fs::read(&self.path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
            *guard = Some(read.unwrap_or_default());
        }
        guard
    }

    fn remember(&self, name: &str, entry: Entry) {
        let mut guard = self.remembered();
        let Some(remembered) = guard.as_mut() else { return };
        let sources = &mut remembered.sources;
        sources.insert(name.to_string(), entry);
        while sources.len() > MOST {
            let Some(oldest) = sources.iter().min_by_key(|(_, entry)| entry.taken).map(|(name, _)| name.clone()) else {
                break;
            };
            sources.remove(&oldest);
        }
        // A plan makes no cache. One that cannot be written remembers nothing; two writers at once lose one memory.
        if !self.path.parent().is_some_and(Path::is_dir) {
            return;
        }
        if let Ok(bytes) = serde_json::to_vec(remembered) {
            let _ = disk::replace(&self.tmp, &self.path, &bytes, Durability::Lazy);
        }
    }
}

impl Look {
    fn at(path: &Path) -> Result<Look> {
        let metadata = std::fs::metadata(path).map_err(|error| unreadable(path, &error))?;
        let is_folder = metadata.is_dir();
        let mut found = Vec::new();
        if is_folder {
            walk(path, &mut Vec::new(), &mut vec![(metadata.dev(), metadata.ino())], &mut found)?;
            found.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        } else {
            check_regular(path, &metadata)?;
            found.push((Vec::new(), path.to_path_buf(), metadata));
        }
        let mut stamp = blake3::Hasher::new_derive_key("runner 2026-11 stamp of a source");
        let mut latest = i64::MIN;
        for (name, _, metadata) in &found {
            let (modified, changed) = (
                metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec()),
                metadata.ctime().saturating_mul(1_000_000_000).saturating_add(metadata.ctime_nsec()),
            );
            latest = latest.max(modified).max(changed);
            stamp.update(&(name.len() as u64).to_le_bytes());
            stamp.update(name);
            stamp.update(&metadata.len().to_le_bytes());
            stamp.update(&modified.to_le_bytes());
            stamp.update(&changed.to_le_bytes());
            stamp.update(&metadata.ino().to_le_bytes());
        }
        stamp.update(&[u8::from(is_folder)]);
        let files = found.into_iter().map(|(name, path, _)| (name, path)).collect();
        Ok(Look { files, is_folder, stamp: stamp.finalize().into(), latest })
    }

    fn hash(&self) -> Result<Digest> {
        let digests: Vec<Digest> = self
            .files
            .par_iter()
            .map(|(_, path)| {
                File::open(path).and_then(|mut file| blobs::hash(&mut file)).map_err(|error| unreadable(path, &error))
            })
            .collect::<Result<_>>()?;
        if let (false, [digest]) = (self.is_folder, digests.as_slice()) {
            return Ok(*digest);
        }
        let mut hasher = blake3::Hasher::new_derive_key("runner 2026-11 folder");
        for ((name, _), digest) in self.files.iter().zip(&digests) {
            hasher.update(&(name.len() as u64).to_le_bytes());
            hasher.update(name);
            hasher.update(&digest.0);
        }
        Ok(hasher.finalize().into())
    }
}

type Found = Vec<(Vec<u8>, PathBuf, Metadata)>;

/// `above` holds the folders on the way down, by device and inode: a link back to one of them is a loop.
fn walk(dir: &Path, prefix: &mut Vec<u8>, above: &mut Vec<(u64, u64)>, found: &mut Found) -> Result<()> {
    for entry in std::fs::read_dir(dir).map_err(|error| unreadable(dir, &error))? {
        let entry = entry.map_err(|error| unreadable(dir, &error))?;
        let path = entry.path();
        let metadata = std::fs::metadata(&path).map_err(|error| unreadable(&path, &error))?;
        let length = prefix.len();
        prefix.extend_from_slice(entry.file_name().as_bytes());
        if metadata.is_dir() {
            let id = (metadata.dev(), metadata.ino());
            if above.contains(&id) {
                return Err(Error::user(format!("`{}` links back to a folder that contains it", path.display())));
            }
            prefix.push(b'/');
            above.push(id);
            walk(&path, prefix, above, found)?;
            above.pop();
        } else {
            check_regular(&path, &metadata)?;
            found.push((prefix.clone(), path, metadata));
        }
        prefix.truncate(length);
    }
    Ok(())
}

fn check_regular(path: &Path, metadata: &Metadata) -> Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    Err(Error::user(format!("expected a file or a folder at `{}`, found something else", path.display())))
}

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::NotFound => {
            Error::user(format!("expected a file or a folder at `{}`, found nothing", path.display()))
                .hint("relative paths start at the folder in which the command runs; check the spelling")
        }
        kind => Error::user(format!("cannot read `{}`: {kind}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    const MARGIN: Duration = Duration::from_millis(10);

    struct Case {
        dir: tempfile::TempDir,
    }

    impl Case {
        fn new() -> Case {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir(dir.path().join("cache")).unwrap();
            Case { dir }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn write(&self, name: &str, text: &str) {
            let path = self.path(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }

        fn digest(&self, name: &str, margin: Duration) -> Result<Digest> {
            Sources::new(&self.path("cache"), margin).digest(&self.path(name))
        }
    }

    #[test]
    fn a_files_digest_is_that_of_its_content() {
        let case = Case::new();
        case.write("a", "content");
        assert_eq!(case.digest("a", MARGIN).unwrap(), Digest::of(b"content"));
    }

    #[test]
    fn a_folders_digest_covers_names_and_contents() {
        let case = Case::new();
        for (file, text) in [("x/a", "1"), ("x/b/c", "2"), ("y/b/c", "2"), ("y/a", "1")] {
            case.write(file, text);
        }
        let digest = |name: &str| case.digest(name, MARGIN).unwrap();
        let before = digest("x");
        assert_eq!(before, digest("y"));
        case.write("y/a", "3");
        assert_ne!(before, digest("y"));
        case.write("y/a", "1");
        assert_eq!(before, digest("y"));
        std::fs::rename(case.path("y/a"), case.path("y/d")).unwrap();
        assert_ne!(before, digest("y"));
        case.write("z/a", "12");
        assert_ne!(before, digest("z"));
        assert_ne!(digest("z"), digest("z/a"));
    }

    #[test]
    fn a_settled_file_is_trusted_by_its_stamp() {
        let case = Case::new();
        case.write("a", "content");
        // With no margin at all, the file is settled once the clock has ticked.
        while disk::nanos(SystemTime::now()) <= Look::at(&case.path("a")).unwrap().latest {}
        let digest = case.digest("a", Duration::ZERO).unwrap();
        let memory = case.path("cache/sources.json");
        let text = std::fs::read_to_string(&memory).unwrap();
        let forged = text.replace(&digest.to_string(), &Digest([5; 32]).to_string());
        assert_ne!(text, forged);
        std::fs::write(&memory, &forged).unwrap();
        assert_eq!(case.digest("a", Duration::ZERO).unwrap(), Digest([5; 32]), "the stamp was not used");
        // Under a wide margin the same memory does not count.
        assert_eq!(case.digest("a", Duration::from_secs(3600)).unwrap(), digest);
    }

    #[test]
    fn a_racily_clean_file_is_hashed_again() {
        let case = Case::new();
        for text in ["one", "two", "six"] {
            case.write("a", text);
            // As if nothing but the content had changed.
            std::fs::File::options().write(true).open(case.path("a")).unwrap().set_modified(SystemTime::now()).unwrap();
            assert_eq!(case.digest("a", MARGIN).unwrap(), Digest::of(text.as_bytes()));
        }
        assert!(!case.path("cache/sources.json").exists(), "a fresh file was remembered");
    }

    #[test]
    fn a_damaged_memory_costs_hashing_only() {
        let case = Case::new();
        case.write("a", "content");
        for text in ["", "{", "[]", "{\"sources\":3}", "\u{0}"] {
            case.write("cache/sources.json", text);
            assert_eq!(case.digest("a", Duration::ZERO).unwrap(), Digest::of(b"content"));
        }
    }

    #[test]
    fn what_cannot_be_read_is_the_users_to_mend() {
        let case = Case::new();
        case.write("folder/a", "1");
        std::os::unix::fs::symlink("nowhere", case.path("folder/dangling")).unwrap();
        case.write("loop/a", "1");
        std::os::unix::fs::symlink("../loop", case.path("loop/again")).unwrap();
        for (name, part) in [
            ("missing", "missing`, found nothing"),
            ("folder", "folder/dangling`, found nothing"),
            ("loop", "loop/again` links back"),
        ] {
            let error = case.digest(name, MARGIN).unwrap_err();
            assert_eq!(error.class(), crate::error::Class::User);
            assert!(error.message().contains(part), "{error}");
        }
        let error = Sources::new(&case.path("cache"), MARGIN).digest(Path::new("/dev/null")).unwrap_err();
        assert!(error.message().contains("found something else"), "{error}");
    }
}
