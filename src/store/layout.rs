//! A cache on the disk: what lies where, and how a new one is made.
//!
//! ```text
//! cache.toml          version and layout
//! README.md           what this is, for people who find it
//! CACHEDIR.TAG        backup programs leave the folder out
//! blobs/ab/cdef...    content under its digest, read-only
//! records.log         what was computed: layout "local"
//! records/ab/...json  what was computed: layout "shared"
//! runs/               keys of each pipeline's last runs
//! sources.json        digests of files outside the cache
//! checkpoints/        half-done stages
//! logs/               what workers said
//! locks/  tmp/        what is being computed now
//! quarantine/         damaged blobs, put aside by `verify`
//! gc.lock             held shared by runs, exclusively by gc
//! ```

use super::disk::{self, CacheIo, Durability};
use crate::error::{Error, IoExt, Result};
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::path::Path;

/// The version of everything in the cache. Another version is not read.
const VERSION: u32 = 1;

/// Folders that a running stage expects.
pub const FOLDERS: [&str; 6] = ["blobs", "checkpoints", "locks", "logs", "runs", "tmp"];

/// How records are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// One log, for a cache on a disk of this machine.
    #[default]
    Local,
    /// A file per record, for a cache on a file system that several machines share.
    Shared,
}

/// The content of `cache.toml`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    #[serde(default = "version")]
    version: u32,
    #[serde(default)]
    layout: Layout,
}

fn version() -> u32 {
    VERSION
}

const TAG: &str =
    "Signature: 8a477f597d28d172789f06886806bc55\n# Made by `runner`: everything here can be computed again.\n";

const CACHE_TOML: &str = "\
version = 1
# \"local\": one log of records, for a disk of this machine.
# \"shared\": a file per record, for a file system that several machines write to (NFS and the like).
# To change it, empty the cache first: records of the other layout are not seen.
layout = \"local\"
";

const README: &str = "\
# The cache of `runner`

What stages computed, so that nothing is computed twice. Everything here can be computed again; delete the folder to
start afresh, or let `runner gc` remove what no pipeline needs.

- `blobs/`: the files of artifacts, each under the BLAKE3 digest of its content, read-only
- `records.log`, or `records/` in a shared cache: which key gave which artifacts, with everything that made up the key
- `runs/`: the keys of each pipeline's last runs
- `sources.json`: digests of files outside the cache
- `checkpoints/`, `logs/`: of stages that are half done, and of workers
- `locks/`, `tmp/`: what is being computed now
- `quarantine/`: damaged blobs that `runner verify` put aside

`runner verify` checks everything. `cache.toml` says how records are kept.
";

/// The layout of the cache at `root`; none if there is no cache.
///
/// # Errors
/// A `cache.toml` that cannot be read, or of another version.
pub fn read(root: &Path) -> Result<Option<Layout>> {
    let path = root.join("cache.toml");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == ErrorKind::NotADirectory => {
            return Err(Error::user(format!("expected a folder for the cache at `{}`, found a file", root.display()))
                .hint("choose a folder with `--cache DIR` or RUNNER_CACHE"));
        }
        Err(error) => return Err(error).at("read", &path),
    };
    let config: Config = toml::from_str(&text).map_err(|error| {
        Error::user(format!("`{}`: {}", path.display(), error.message()))
            .hint("it holds `version = 1` and `layout = \"local\"` or `layout = \"shared\"`")
    })?;
    if config.version != VERSION {
        return Err(Error::user(format!(
            "the cache at `{}` has version {}, expected {VERSION}",
            root.display(),
            config.version
        ))
        .hint("choose another folder with `--cache DIR` or RUNNER_CACHE, or delete this one"));
    }
    Ok(Some(config.layout))
}

/// Makes a cache at `root`, or completes one. Several processes may do so at once.
///
/// # Errors
/// A folder that holds something else, or what the disk says.
pub fn create(root: &Path) -> Result<()> {
    refuse_foreign(root)?;
    for folder in FOLDERS {
        let folder = root.join(folder);
        std::fs::create_dir_all(&folder).in_cache("create", &folder)?;
    }
    let tmp = root.join("tmp");
    // `cache.toml` last: where it is, the rest is.
    for (name, text) in [("gc.lock", ""), ("README.md", README), ("CACHEDIR.TAG", TAG), ("cache.toml", CACHE_TOML)] {
        let path = root.join(name);
        if !path.exists() {
            disk::replace(&tmp, &path, text.as_bytes(), Durability::Lazy)?;
        }
    }
    disk::sync_dir(root)
}

/// A mistyped `--cache` must not fill somebody's home.
///
/// # Errors
/// A folder that holds something else than a cache.
pub fn refuse_foreign(root: &Path) -> Result<()> {
    let names: Vec<String> =
        disk::list(root)?.into_iter().map(|(name, _)| name.to_string_lossy().into_owned()).collect();
    if names.iter().any(|name| name == "cache.toml" || name == "CACHEDIR.TAG") {
        return Ok(());
    }
    let ours = ["README.md", "lost+found", "gc.lock", "sources.json"];
    let foreign =
        |name: &&String| !name.starts_with('.') && !ours.contains(&name.as_str()) && !FOLDERS.contains(&name.as_str());
    match names.iter().find(foreign) {
        None => Ok(()),
        Some(name) => Err(Error::user(format!("`{}` is not a cache: it holds `{name}`", root.display()))
            .hint("choose a new or empty folder with `--cache DIR` or RUNNER_CACHE")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_cache_explains_itself_and_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("deep/cache");
        assert_eq!(read(&root).unwrap(), None);
        create(&root).unwrap();
        assert_eq!(read(&root).unwrap(), Some(Layout::Local));
        std::fs::write(root.join("README.md"), "mine").unwrap();
        std::fs::write(root.join("cache.toml"), "layout = \"shared\"").unwrap();
        create(&root).unwrap();
        assert_eq!(read(&root).unwrap(), Some(Layout::Shared));
        assert_eq!(std::fs::read_to_string(root.join("README.md")).unwrap(), "mine");
    }

    #[test]
    fn a_folder_with_other_things_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(".gitignore"), "").unwrap();
        std::fs::write(dir.path().join("README.md"), "").unwrap();
        std::fs::write(dir.path().join("thesis.tex"), "").unwrap();
        let error = create(dir.path()).unwrap_err();
        assert!(error.message().contains("is not a cache: it holds `thesis.tex`"), "{error}");
        std::fs::remove_file(dir.path().join("thesis.tex")).unwrap();
        create(dir.path()).unwrap();
    }

    #[test]
    fn a_bad_cache_toml_is_the_users_to_mend() {
        let dir = tempfile::tempdir().unwrap();
        for (text, part) in [
            ("layout = \"global\"", "unknown variant `global`"),
            ("lay = 1", "unknown field `lay`"),
            ("version = 2", "has version 2, expected 1"),
            ("[", "cache.toml"),
        ] {
            std::fs::write(dir.path().join("cache.toml"), text).unwrap();
            let error = read(dir.path()).unwrap_err();
            assert!(error.class() == crate::error::Class::User && error.message().contains(part), "{error}");
        }
    }
}
