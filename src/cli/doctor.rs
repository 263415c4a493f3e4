//! `runner doctor`: what this build and this machine can do, and what to mend.
//!
//! Every line is a check that was made just now: the cache by writing, locking, linking and mapping a file in it, the
//! GPU by asking the build for it. Nothing is downloaded, and nothing is left behind.

use super::args::Global;
use super::project::{Project, Settings};
use crate::artifact::Files;
use crate::error::{Class, Error, IoExt, Result};
use crate::exec::{self, device, memory};
use crate::kernels::Isa;
use crate::report::style::Style;
use crate::report::{self, bytes, count};
use crate::store::layout::{self, Layout};
use crate::store::{Missing, Store};
use serde::Serialize;
use serde_json::{Value, json};
use std::fs::File;
use std::path::{Path, PathBuf};

/// Less memory than this makes even small trainings fail.
const LITTLE_MEMORY_MIB: u64 = 2048;

/// Less room than this is gone after a few packed datasets.
const LITTLE_ROOM: u64 = 2 << 30;

/// What a build for GPUs opens at run time, and what brings it.
const LIBRARIES: [(&str, &str); 2] = [("libcuda.so.1", "NVIDIA's driver"), ("libcudnn.so.9", "cuDNN 9")];

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// As it should be.
    Ok,
    /// Worth knowing; nothing is wrong.
    Note,
    /// Something will fail.
    Problem,
}

/// One line of the answer.
#[derive(Clone, Debug, Serialize)]
struct Check {
    name: &'static str,
    state: State,
    text: String,
    /// What to do about it; every problem has one.
    hint: Option<String>,
    /// The same for programs.
    facts: Value,
}

impl Check {
    fn ok(name: &'static str, text: String, facts: Value) -> Check {
        Check { name, state: State::Ok, text, hint: None, facts }
    }

    fn note(name: &'static str, text: String, hint: Option<String>, facts: Value) -> Check {
        Check { name, state: State::Note, text, hint, facts }
    }

    fn problem(name: &'static str, text: String, hint: String, facts: Value) -> Check {
        Check { name, state: State::Problem, text, hint: Some(hint), facts }
    }
}

/// Checks build and machine. The exit code is 0 without a problem, else the machine's.
///
/// # Errors
/// A malformed `runner.toml`.
pub fn doctor(global: &Global) -> Result<u8> {
    let project = Project::here()?;
    let checks = [
        kernels(&Isa::available()),
        threads(&project.settings),
        memory(memory::available_mib(), memory::total_mib()),
        cache(&project.cache_dir(global)),
        cuda(),
    ];
    let n_problems = checks.iter().filter(|check| check.state == State::Problem).count();
    if global.json {
        report::json_data(&json!({
            "schema": 1, "version": env!("CARGO_PKG_VERSION"), "target": target(), "features": features(),
            "checks": checks, "problems": n_problems,
        }));
    } else {
        report::data(&text(&checks, Style::for_stdout(global.color)));
    }
    Ok(if n_problems == 0 { 0 } else { Class::Machine.exit_code() })
}

fn target() -> String {
    format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS)
}

/// The optional parts that this build has.
fn features() -> Vec<&'static str> {
    let all = [("cuda", cfg!(feature = "cuda")), ("hub", cfg!(feature = "hub"))];
    all.into_iter().filter(|(_, is_on)| *is_on).map(|(name, _)| name).collect()
}

fn text(checks: &[Check], style: Style) -> String {
    let features = match features() {
        none if none.is_empty() => "no optional features".to_string(),
        some => format!("features: {}", some.join(", ")),
    };
    let mut text = format!("runner {}, {}, {features}\n\n", env!("CARGO_PKG_VERSION"), target());
    for check in checks {
        let word = match check.state {
            State::Ok => style.green("     ok"),
            State::Note => style.cyan("   note"),
            State::Problem => style.red("problem"),
        };
        text.push_str(&format!("{word}  {:<8} {}\n", check.name, check.text));
        if let Some(hint) = &check.hint {
            text.push_str(&format!("{:18}{} {hint}\n", "", style.cyan("hint:")));
        }
    }
    let n = checks.iter().filter(|check| check.state == State::Problem).count();
    text.push_str(&if n == 0 {
        "\nno problem found\n".to_string()
    } else {
        format!("\n{} found\n", count(n, "problem"))
    });
    text
}

/// Which instruction sets the kernels have here; the last is used.
fn kernels(available: &[Isa]) -> Check {
    let names: Vec<&str> = available.iter().map(|isa| isa.name()).collect();
    let used = names.last().copied().unwrap_or_default();
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map(|(_, name)| name.trim().to_string());
    let on = model.as_ref().map_or(String::new(), |name| format!(" on {name}"));
    let facts = json!({ "used": used, "available": names, "processor": model });
    if used == "portable" && cfg!(target_arch = "x86_64") {
        let hint = "a processor with AVX2 and FMA trains several times as fast; a virtual machine may be hiding them";
        return Check::note("kernels", format!("{used}: neither AVX2 nor AVX-512{on}"), Some(hint.to_string()), facts);
    }
    Check::ok("kernels", format!("{used} (available: {}){on}", names.join(", ")), facts)
}

/// What a run without `--jobs` and `--threads` uses.
fn threads(settings: &Settings) -> Check {
    let options = exec::Options::for_this_machine();
    let (jobs, threads) = (settings.jobs.unwrap_or(options.jobs), settings.threads.unwrap_or(options.threads));
    let facts = json!({ "cores": options.threads, "jobs": jobs, "threads": threads });
    let text =
        format!("{}; a run uses {} for {}", count(options.threads, "core"), count(threads, "thread"), jobs_text(jobs));
    if threads > options.threads {
        let hint = format!("set `threads = {}` in runner.toml, or leave it out", options.threads);
        return Check::note("threads", format!("{text}: more threads than cores"), Some(hint), facts);
    }
    Check::ok("threads", text, facts)
}

fn jobs_text(jobs: usize) -> String {
    if jobs == 1 { "one stage at a time".to_string() } else { format!("up to {jobs} stages at a time") }
}

fn memory(available: Option<u64>, total: Option<u64>) -> Check {
    let facts = json!({ "available_mib": available, "total_mib": total });
    let (Some(available), Some(total)) = (available, total) else {
        let text = "this system does not tell; stages are started without regard to it".to_string();
        return Check::note("memory", text, None, facts);
    };
    let text = format!("{} of {} available", bytes(available << 20), bytes(total << 20));
    if available < LITTLE_MEMORY_MIB {
        let hint = "end other programs, or train with a smaller `batch_size`".to_string();
        return Check::problem("memory", text, hint, facts);
    }
    Check::ok("memory", text, facts)
}

/// The folder of results: is it one, can it be used, and how much fits.
fn cache(dir: &Path) -> Check {
    let path = std::path::absolute(dir).unwrap_or_else(|_| dir.to_path_buf());
    let shown = path.display();
    let elsewhere = "choose another folder with `--cache DIR`, RUNNER_CACHE, or `cache` in runner.toml".to_string();
    let opened = Store::open(&path, Missing::Pretend).and_then(|store| layout::refuse_foreign(&path).map(|()| store));
    let store = match opened {
        Ok(store) => store,
        Err(error) => {
            let hint = error.hint_text().map_or(elsewhere, str::to_string);
            return Check::problem("cache", error.to_string(), hint, json!({ "path": path }));
        }
    };
    let is_there = path.join("cache.toml").exists();
    // A cache that is yet to be made will lie in the nearest folder that exists.
    let Some(place) = path.ancestors().find(|folder| folder.is_dir()) else {
        return Check::problem("cache", format!("`{shown}` lies in no folder"), elsewhere, json!({ "path": path }));
    };
    let system = file_system(place);
    // macOS counts blocks in 32 bits.
    #[allow(clippy::unnecessary_cast)]
    let free = nix::sys::statvfs::statvfs(place)
        .ok()
        .map(|found| found.blocks_available() as u64 * found.fragment_size() as u64);
    let probe = probe(if is_there { &path } else { place });
    let is_network = system.as_deref().is_some_and(is_network);
    let facts = json!({
        "path": path, "exists": is_there, "layout": store.layout(), "file_system": system, "free_bytes": free,
        "usable": probe.is_ok(), "network": is_network,
    });
    if let Err(error) = probe {
        return Check::problem("cache", format!("`{shown}` cannot be used: {error}"), elsewhere, facts);
    }
    let mut text = format!("{shown}{}", if is_there { "" } else { " (the first run makes it)" });
    text.push_str(&system.map_or(String::new(), |name| format!(", {name}")));
    text.push_str(&free.map_or(String::new(), |free| format!(", {} free", bytes(free))));
    if is_network && store.layout() == Layout::Local {
        let hint = format!(
            "if several machines use it, empty it and write `layout = \"shared\"` into `{}`",
            path.join("cache.toml").display()
        );
        return Check::note(
            "cache",
            format!("{text}: a network's, with the layout for one machine"),
            Some(hint),
            facts,
        );
    }
    if free.is_some_and(|free| free < LITTLE_ROOM) {
        let hint = "`runner gc PIPELINE...` deletes what the given pipelines do not need".to_string();
        return Check::problem("cache", format!("{text}: nearly full"), hint, facts);
    }
    text.push_str("; files can be written, locked, linked and mapped");
    Check::ok("cache", text, facts)
}

/// Does in `place`, in a folder that is gone afterwards, what a run does in a cache.
fn probe(place: &Path) -> Result<()> {
    let tmp = place.join("tmp");
    let place = if tmp.is_dir() { tmp.as_path() } else { place };
    let folder = tempfile::Builder::new().prefix("doctor-").tempdir_in(place).at("write to", place)?;
    let (file, other) = (folder.path().join("file"), folder.path().join("other"));
    let content = b"runner doctor";
    std::fs::write(&file, content).at("write", &file)?;
    let lock = File::open(&file).at("open", &file)?;
    lock.try_lock().map_err(|error| Error::machine(format!("cannot lock `{}`: {error}", file.display())))?;
    lock.sync_all().at("sync", &file)?;
    // Where there are no hard links, a shared cache renames instead.
    if std::fs::hard_link(&file, &other).is_err() {
        std::fs::copy(&file, &other).at("copy", &file)?;
    }
    let renamed = folder.path().join("renamed");
    std::fs::rename(&other, &renamed).at("rename", &other)?;
    let files = Files::new([("probe".to_string(), renamed)]);
    if files.map("probe")?[..] != content[..] {
        return Err(Error::machine(format!("a file mapped from `{}` does not hold what was written", place.display())));
    }
    Ok(())
}

/// The type of the file system that holds `path`, such as `ext4`.
fn file_system(path: &Path) -> Option<String> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    mount_of(&mounts, &path.canonicalize().ok()?)
}

/// Looks `path` up in the text of `/proc/self/mountinfo`: the longest mount point above it, the last of equals.
fn mount_of(mounts: &str, path: &Path) -> Option<String> {
    let entries = mounts.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        // Blanks in names are written as octal numbers.
        let point = before.split(' ').nth(4)?.replace("\\040", " ");
        path.starts_with(&point).then(|| (point.len(), after.split(' ').next().unwrap_or_default().to_string()))
    });
    entries.max_by_key(|(length, _)| *length).map(|(_, name)| name)
}

fn is_network(system: &str) -> bool {
    ["nfs", "nfs4", "cifs", "smb3", "9p", "lustre", "beegfs", "ceph", "gpfs", "fuse.sshfs"].contains(&system)
}

/// Whether stages can compute on a GPU, and what is missing if not.
fn cuda() -> Check {
    let devices = devices(Path::new("/proc/driver/nvidia/gpus"));
    let found: Vec<(&str, &str, Option<PathBuf>)> =
        LIBRARIES.into_iter().map(|(name, origin)| (name, origin, library(name))).collect();
    let libraries: Vec<Value> = found.iter().map(|(name, _, path)| json!({ "name": name, "path": path })).collect();
    let missing: Vec<String> = found
        .iter()
        .filter(|(.., path)| path.is_none())
        .map(|(name, origin, _)| format!("`{name}` of {origin}"))
        .collect();
    let answer = device::Choice::Cuda(0).check();
    let facts = json!({ "usable": answer.is_ok(), "devices": devices, "libraries": libraries });
    let machine = match &devices[..] {
        [] => "this machine has no NVIDIA GPU that its driver knows".to_string(),
        some => format!("this machine has {}", some.join(", ")),
    };
    match answer {
        Ok(_) => Check::ok("cuda", machine, facts),
        Err(error) if devices.is_empty() => Check::note("cuda", format!("{}; {machine}", reason(&error)), None, facts),
        Err(error) => {
            let hint = if missing.is_empty() {
                error.hint_text().unwrap_or("compute with `--device cpu`").to_string()
            } else {
                format!("not found: {}; install it, or compute with `--device cpu`", missing.join(", "))
            };
            Check::note("cuda", format!("{}; {machine}", reason(&error)), Some(hint), facts)
        }
    }
}

/// Why a device cannot be used, without the option that nobody wrote.
fn reason(error: &Error) -> String {
    let text = error.to_string();
    text.split_once(": ").map_or(text.clone(), |(_, reason)| reason.to_string())
}

/// The models of the GPUs that the driver lists.
fn devices(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut models: Vec<String> = entries
        .flatten()
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("information")).ok())
        .filter_map(|text| Some(text.lines().find_map(|line| line.strip_prefix("Model:"))?.trim().to_string()))
        .collect();
    models.sort();
    models
}

/// Where the loader would find a library whose file name begins with `name`: LD_LIBRARY_PATH, the loader's cache, and
/// the usual folders.
fn library(name: &str) -> Option<PathBuf> {
    let listed = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let usual = ["/usr/local/cuda/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib/wsl/lib"];
    let folders = std::env::split_paths(&listed).chain(usual.map(PathBuf::from));
    let in_cache = || {
        let cache = std::fs::read("/etc/ld.so.cache").ok()?;
        let paths = cache.split(|&byte| byte == 0).filter_map(|entry| std::str::from_utf8(entry).ok());
        paths.filter(|entry| entry.starts_with('/')).map(PathBuf::from).find(|path| is_library(path, name))
    };
    let in_folder = |folder: PathBuf| {
        let paths = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
        paths.filter(|path| is_library(path, name)).min()
    };
    folders.filter_map(in_folder).next().or_else(in_cache)
}

/// `libcudnn.so.9` and `libcudnn.so.9.1.0` for the former, but not `libcudnn.so.8`.
fn is_library(path: &Path, name: &str) -> bool {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    file.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_the_longest_point() {
        let mounts = "\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 21 0:25 / /tmp rw - tmpfs tmpfs rw
31 21 0:40 /export /home/my\\040data rw,nosuid - nfs4 server:/export rw
32 21 0:41 / /home/my rw - xfs /dev/sdb rw
";
        let check = |path: &str, expected: &str| {
            assert_eq!(mount_of(mounts, Path::new(path)).as_deref(), Some(expected), "{path}");
        };
        check("/etc/hosts", "ext4");
        check("/tmp/a/b", "tmpfs");
        check("/tmpfile", "ext4");
        check("/home/my data/cache", "nfs4");
        check("/home/my/cache", "xfs");
        assert_eq!(mount_of("nonsense", Path::new("/")), None);
        assert!(is_network("nfs4") && !is_network("ext4"));
    }

    #[test]
    fn libraries_are_told_apart() {
        let check = |path: &str, name: &str, expected: bool| {
            assert_eq!(is_library(Path::new(path), name), expected, "{path} {name}");
        };
        check("/usr/lib/libcuda.so.1", "libcuda.so.1", true);
        check("/opt/cudnn/lib/libcudnn.so.9.1.0", "libcudnn.so.9", true);
        check("/opt/cudnn/lib/libcudnn.so.8", "libcudnn.so.9", false);
        check("/usr/lib/libcudart.so.12", "libcuda.so.1", false);
    }

    #[test]
    fn little_memory_is_a_problem_and_none_known_is_not() {
        assert_eq!(memory(Some(100_000), Some(200_000)).state, State::Ok);
        assert_eq!(memory(None, None).state, State::Note);
        let check = memory(Some(512), Some(8000));
        assert_eq!((check.state, check.text.as_str()), (State::Problem, "536.9 MB of 8.4 GB available"));
        assert!(check.hint.is_some());
    }

    #[test]
    fn gpus_are_read_from_the_drivers_list() {
        let dir = tempfile::tempdir().unwrap();
        assert!(devices(&dir.path().join("nothing")).is_empty());
        let gpu = dir.path().join("0000:01:00.0");
        std::fs::create_dir(&gpu).unwrap();
        std::fs::write(gpu.join("information"), "Model: \t\t NVIDIA H100\nIRQ: 5\n").unwrap();
        assert_eq!(devices(dir.path()), ["NVIDIA H100"]);
    }

    #[test]
    fn every_kind_of_line_is_printed() {
        let checks = [
            Check::ok("kernels", "avx2 (available: portable, avx2)".into(), Value::Null),
            Check::note("cuda", "not here".into(), None, Value::Null),
            Check::problem("cache", "`/x` cannot be used".into(), "choose another".into(), Value::Null),
        ];
        let text = text(&checks, Style::PLAIN);
        let body = text.split_once("\n\n").unwrap().1;
        let expected = "     ok  kernels  avx2 (available: portable, avx2)
   note  cuda     not here
problem  cache    `/x` cannot be used
                  hint: choose another

1 problem found
";
        assert_eq!(body, expected);
    }
}
