//! Where things are: the project's root, its configuration, its cache, and the plan of a pipeline.

use super::args::{Global, PipelineArgs};
use crate::config;
use crate::error::{Error, IoExt, Result};
use crate::plan::{self, Plan};
use crate::report::style::Style;
use crate::store::{Missing, Store};
use serde::Deserialize;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// `runner.toml` at the project's root; everything in it is optional.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The cache directory, relative to this file.
    pub cache: Option<PathBuf>,
    /// Stages that may run side by side.
    pub jobs: Option<usize>,
    /// Threads that running stages share.
    pub threads: Option<usize>,
    /// Where to compute.
    pub device: Option<String>,
}

/// A project: the folder that holds `pipelines/`, `cache/` and `results/`.
pub struct Project {
    /// The folder.
    pub root: PathBuf,
    /// Its settings.
    pub settings: Settings,
}

/// A pipeline with its plan and its project.
pub struct Loaded {
    /// The project that the pipeline file lies in.
    pub project: Project,
    /// The plan. It lives as long as the process: taking a thousand stages apart at the end would be wasted time.
    pub plan: ManuallyDrop<Plan>,
}

/// Loads and plans a pipeline.
///
/// # Errors
/// Whatever is wrong with the pipeline, all at once, or with `runner.toml`.
pub fn load(global: &Global, args: &PipelineArgs) -> Result<Loaded> {
    let style = Style::for_stderr(global.color).is_on();
    let options = config::Options { profile: args.profile.clone(), set: args.set.clone(), style };
    let plan = ManuallyDrop::new(plan::plan_file(&args.pipeline, &options)?);
    Ok(Loaded { project: Project::of(&args.pipeline)?, plan })
}

/// [`load`] and [`Project::look`] at once: the cache is opened, and looked at, while the pipeline is planned.
///
/// # Errors
/// As both.
pub fn load_and_look(global: &Global, args: &PipelineArgs) -> Result<(Loaded, Store)> {
    let is_planned = AtomicBool::new(false);
    let (loaded, store) = std::thread::scope(|scope| {
        let look = scope.spawn(|| {
            let store = Project::of(&args.pipeline)?.look(global)?;
            store.warm(&is_planned);
            Ok(store)
        });
        let loaded = load(global, args);
        is_planned.store(true, Ordering::Relaxed);
        let store: Result<Store> = look.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (loaded, store)
    });
    Ok((loaded?, store?))
}

impl Project {
    /// The project of a pipeline file: the nearest folder above it with `runner.toml`, `cache/` or `.git`; the
    /// current folder if there is none.
    ///
    /// # Errors
    /// A malformed `runner.toml`.
    pub fn of(pipeline: &Path) -> Result<Project> {
        let absolute = std::path::absolute(pipeline).map_err(Error::from)?;
        Project::above(absolute.parent().unwrap_or(&absolute))
    }

    /// The project of the current folder.
    ///
    /// # Errors
    /// A malformed `runner.toml`.
    pub fn here() -> Result<Project> {
        Project::above(&std::env::current_dir().map_err(Error::from)?)
    }

    fn above(dir: &Path) -> Result<Project> {
        let is_root = |dir: &&Path| ["runner.toml", "cache", ".git"].iter().any(|name| dir.join(name).exists());
        let root = match dir.ancestors().find(is_root) {
            Some(root) => root.to_path_buf(),
            None => std::env::current_dir().map_err(Error::from)?,
        };
        let file = root.join("runner.toml");
        let settings = if file.exists() {
            let text = std::fs::read_to_string(&file).at("read", &file)?;
            toml::from_str(&text).map_err(|error| Error::user(format!("{}: {error}", file.display())))?
        } else {
            Settings::default()
        };
        Ok(Project { root, settings })
    }

    /// The cache directory: `--cache` or RUNNER_CACHE, `runner.toml`, `cache/` at the root.
    pub fn cache_dir(&self, global: &Global) -> PathBuf {
        match (&global.cache, &self.settings.cache) {
            (Some(dir), _) => dir.clone(),
            (None, Some(dir)) => self.root.join(dir),
            (None, None) => self.root.join("cache"),
        }
    }

    /// Opens the cache for looking; one that is not there is empty.
    ///
    /// # Errors
    /// A cache that cannot be read.
    pub fn look(&self, global: &Global) -> Result<Store> {
        Store::open(&self.cache_dir(global), Missing::Pretend)
    }

    /// Opens the cache, making it if it is not there.
    ///
    /// # Errors
    /// A cache that cannot be made or read.
    pub fn store(&self, global: &Global) -> Result<Store> {
        Store::open(&self.cache_dir(global), Missing::Create)
    }
}
