//! The store when processes die, compete, and run out of room. The test binary starts itself as the other process:
//! `child` does what the environment variable [`TASK`] says.
//!
//! The full disk is a small tmpfs and the read-only cache a bind mount, both in a mount namespace of the child's own
//! (`unshare`, as root or in a user namespace). Where the system allows neither, those two tests say so and pass; the
//! limit on the size of files, which needs no rights, cuts writes in the middle everywhere.
#![allow(clippy::unwrap_used)]

use runner::artifact::Table;
use runner::artifact::table::{Cell, Column};
use runner::error::{Class, Error, Result};
use runner::stage::Outputs;
use runner::store::gc::Policy;
use runner::store::key::PreImage;
use runner::store::records::{Inserted, Record};
use runner::store::verify::Repair;
use runner::store::{Missing, Store};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

const TASK: &str = "RUNNER_TEST_STORE_TASK";
const DIR: &str = "RUNNER_TEST_STORE_DIR";

fn pre_image(n: u64) -> PreImage {
    PreImage {
        stage: "test/echo".into(),
        version: 1,
        params: serde_json::json!({ "value": n }),
        seed: None,
        inputs: BTreeMap::new(),
        sources: vec![],
    }
}

/// Does what a worker does: writes some `size` bytes, publishes, inserts.
fn put(store: &Store, n: u64, size: usize) -> Result<Inserted> {
    let mut table = Table::new(vec![Column::new("value", "")]);
    table.push(vec![Cell::from(n as usize)]);
    table.push(vec![Cell::Text("x".repeat(size))]);
    let scratch = store.scratch()?;
    let outputs = store.publish(&table.save(scratch.path())?)?;
    let pre_image = pre_image(n);
    store.insert(&Record {
        key: pre_image.key(),
        pre_image,
        outputs,
        seconds: 0.0,
        peak_memory_mib: None,
        headline: None,
        device: "cpu".into(),
        threads: 1,
        instructions: Some("avx2".into()),
        precision: None,
        build: "test".into(),
        created: 1_700_000_000,
    })
}

fn has(store: &Store, n: u64) -> bool {
    match store.lookup(&pre_image(n).key()).unwrap() {
        Some(record) => {
            assert_eq!(record.pre_image, pre_image(n), "a wrong record");
            true
        }
        None => false,
    }
}

fn open(dir: &Path) -> Store {
    Store::open(dir, Missing::Create).unwrap()
}

/// `sh -c before`, then the child, which does `task` in `dir`.
fn child_after(before: &str, task: &str, dir: &Path) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("{before} exec \"$@\"")).arg("sh");
    command.arg(std::env::current_exe().unwrap());
    command.args(["--exact", "store_faults::child", "--nocapture", "--test-threads=1"]);
    command.env(TASK, task).env(DIR, dir);
    command
}

fn run(mut command: Command) {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let is_done = output.status.success() && text(&output.stdout).lines().any(|line| line == "done");
    assert!(is_done, "{}\n{}", text(&output.stdout), text(&output.stderr));
}

/// The other process. Does nothing in a usual test run.
#[test]
fn child() {
    let (Ok(task), Ok(dir)) = (std::env::var(TASK), std::env::var(DIR)) else { return };
    let dir = Path::new(&dir);
    match task.as_str() {
        "endless" => child_endless(dir),
        "compete" => child_compete(dir),
        "until-full" => child_until_full(dir),
        "full-disk" => child_full_disk(dir),
        "read-only" => child_read_only(dir),
        other => panic!("unknown task {other}"),
    }
    say("done");
}

fn say(line: impl std::fmt::Display) {
    // Not `println!`: each line must be out before the next instruction, which may be the last.
    let mut out = std::io::stdout().lock();
    // The harness has begun a line.
    writeln!(out, "\n{line}").and_then(|()| out.flush()).unwrap();
}

fn child_endless(dir: &Path) {
    let store = open(dir);
    let _run = store.enter_run(&AtomicBool::new(false)).unwrap();
    for n in (0..).filter(|&n| !has(&store, n)) {
        put(&store, n, 2000).unwrap();
        say(format!("stored {n}"));
    }
}

#[test]
fn kill_minus_nine_at_any_moment_loses_nothing_that_was_stored() {
    for layout in ["local", "shared"] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cache.toml"), format!("layout = \"{layout}\"")).unwrap();
        open(dir.path());
        let mut stored = Vec::new();
        for round in 0..15u64 {
            let mut child = child_after("", "endless", dir.path()).stdout(Stdio::piped()).spawn().unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let mut note = |line: &str| stored.extend(line.strip_prefix("stored ").and_then(|n| n.parse::<u64>().ok()));
            // From the first record on, some 0 to 20 ms, in steps that do not repeat.
            for line in lines.by_ref().map_while(|line| line.ok()) {
                note(&line);
                if line.starts_with("stored") {
                    break;
                }
            }
            std::thread::sleep(Duration::from_micros(round * 7919 % 20_000));
            child.kill().unwrap();
            child.wait().unwrap();
            lines.map_while(|line| line.ok()).for_each(|line| note(&line));
            let store = open(dir.path());
            assert!(stored.iter().all(|&n| has(&store, n)), "a stored record is lost in round {round}");
            let found = store.verify(Repair::No).unwrap();
            assert!(found.problems.is_empty() && found.deviations.is_empty(), "{:?}", found.problems);
        }
        let store = open(dir.path());
        drop(store.enter_run(&AtomicBool::new(false)).unwrap());
        assert!(stored.len() >= 15);
        put(&store, 1_000_000, 10).unwrap();
        assert!(stored.iter().all(|&n| has(&store, n)) && has(&store, 1_000_000));
        let left = std::fs::read_dir(dir.path().join("tmp")).unwrap().map(|entry| entry.unwrap().path());
        // Files on their way to an atomic replacement are kept for an hour.
        assert!(left.into_iter().all(|path| path.extension().is_some_and(|e| e == "new")));
    }
}

fn child_compete(dir: &Path) {
    let (store, stop) = (open(dir), AtomicBool::new(false));
    let _run = store.enter_run(&stop).unwrap();
    for n in 0..20 {
        if has(&store, n) {
            continue;
        }
        let _lock = store.locks().lock_with(&pre_image(n).key(), &stop, |_| {}).unwrap();
        // Somebody may have stored it while we waited.
        if !has(&store, n) {
            put(&store, n, 10).unwrap();
            say(format!("computed {n}"));
        }
    }
}

#[test]
fn four_processes_compute_each_key_once_and_lose_nothing() {
    for layout in ["local", "shared"] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cache.toml"), format!("layout = \"{layout}\"")).unwrap();
        let spawn = |_| child_after("", "compete", dir.path()).stdout(Stdio::piped()).spawn().unwrap();
        let children: Vec<_> = (0..4).map(spawn).collect();
        let mut computed = Vec::new();
        for child in children {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
            let text = String::from_utf8(output.stdout).unwrap();
            computed.extend(text.lines().filter_map(|line| line.strip_prefix("computed ")?.parse::<u64>().ok()));
        }
        computed.sort_unstable();
        assert_eq!(computed, (0..20).collect::<Vec<u64>>());
        let store = open(dir.path());
        assert!((0..20).all(|n| has(&store, n)));
        assert!(store.verify(Repair::No).unwrap().problems.is_empty());
    }
}

/// Stores until that fails; then everything before must be there. Returns how many there are, and the error.
fn fill(store: &Store, size: usize) -> (u64, Error) {
    for n in 0..100_000 {
        if let Err(error) = put(store, n, size) {
            assert_eq!(error.class(), Class::Machine, "{error}");
            assert!((0..n).all(|n| has(store, n)), "a record is lost");
            return (n, error);
        }
    }
    panic!("it never filled up");
}

fn child_until_full(dir: &Path) {
    let (n, error) = fill(&open(dir), 10);
    assert!(error.message().contains("records.log"), "{error}");
    say(format!("full at {n}"));
}

#[test]
fn a_write_cut_in_the_middle_leaves_a_usable_cache() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path());
    // Files of at most 8 blocks (of 512 or 1024 bytes): the log of records meets the limit within an entry. Ignoring
    // the signal makes the write fail instead.
    let output = child_after("ulimit -f 8; trap '' XFSZ;", "until-full", dir.path()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let n: u64 = text.lines().find_map(|line| line.strip_prefix("full at ")?.parse().ok()).unwrap();
    let length = std::fs::metadata(dir.path().join("records.log")).unwrap().len();
    assert!(n > 2 && length.is_multiple_of(512), "{n} records in {length} bytes: no write was cut");
    let store = open(dir.path());
    assert!((0..n).all(|n| has(&store, n)) && !has(&store, n));
    put(&store, n, 10).unwrap();
    assert!((0..=n).all(|n| has(&store, n)) && open(dir.path()).verify(Repair::No).unwrap().problems.is_empty());
}

/// How to enter a mount namespace here, if at all.
fn namespace() -> Option<&'static str> {
    let works = |unshare: &str| {
        let test = format!("{unshare} sh -c 'mount -t tmpfs none /tmp'");
        Command::new("sh").args(["-c", &test]).output().is_ok_and(|output| output.status.success())
    };
    let found = ["unshare -m", "unshare -Urm"].into_iter().find(|unshare| works(unshare));
    if found.is_none() {
        println!("not tested: this system lets us mount nothing");
    }
    found
}

/// The child in a mount namespace of its own, after `mount`, in which `$DIR` is the folder.
fn mounted(unshare: &str, mount: &str, task: &str, dir: &Path) -> Command {
    let before = format!("[ -n \"$INSIDE\" ] || INSIDE=1 exec {unshare} sh -c \"$OUTER\" sh \"$@\";");
    let mut command = child_after(&before, task, dir);
    command.env("OUTER", format!("{} && exec \"$@\"", mount.replace("$DIR", &format!("'{}'", dir.display()))));
    command
}

#[test]
fn a_full_disk_gives_an_error_and_leaves_a_usable_cache() {
    let Some(unshare) = namespace() else { return };
    let dir = tempfile::tempdir().unwrap();
    run(mounted(unshare, "mount -t tmpfs -o size=1m none $DIR", "full-disk", dir.path()));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the child filled another disk");
}

fn child_full_disk(dir: &Path) {
    // Large blobs, so that these fill the disk; then ever smaller ones, so that the log meets the end too.
    for size in [20_000, 10] {
        let store = open(dir);
        let (n, error) = fill(&store, size);
        assert!(error.hint_text().is_some_and(|hint| hint.contains("free some space")), "{error:?}");
        assert!(n > 5, "{n}");
        let _ = std::fs::write(dir.join("filler"), vec![0; 1 << 20]);
        let store = open(dir);
        assert!((0..n).all(|n| has(&store, n)), "a record is lost");
        assert!(store.verify(Repair::No).unwrap().problems.is_empty());
        // Not a byte is free, and still it can be emptied.
        store.collect(&Policy::default()).unwrap();
        assert!((0..n).all(|n| !has(&store, n)));
        std::fs::remove_file(dir.join("filler")).unwrap();
        put(&store, 1, size).unwrap();
        assert!(has(&store, 1) && has(&open(dir), 1));
        store.collect(&Policy::default()).unwrap();
    }
}

#[test]
fn a_read_only_cache_is_read() {
    let Some(unshare) = namespace() else { return };
    let dir = tempfile::tempdir().unwrap();
    put(&open(dir.path()), 1, 10).unwrap();
    run(mounted(unshare, "mount --bind $DIR $DIR && mount -o remount,ro,bind $DIR", "read-only", dir.path()));
}

fn child_read_only(dir: &Path) {
    let store = open(dir);
    assert!(!store.writable());
    let _run = store.enter_run(&AtomicBool::new(false)).unwrap();
    assert!(has(&store, 1) && !has(&store, 2));
    assert!(store.verify(Repair::No).unwrap().problems.is_empty());
    assert_eq!(store.garbage(&Policy::default()).unwrap().records.len(), 1);
    let source = std::env::current_exe().unwrap();
    assert_eq!(store.sources().digest(&source).unwrap(), store.sources().digest(&source).unwrap());
    let errors = [
        put(&store, 2, 10).map(drop).unwrap_err(),
        store.collect(&Policy::default()).map(drop).unwrap_err(),
        store.verify(Repair::Yes).map(drop).unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.class(), Class::Machine);
        assert!(error.hint_text().is_some_and(|hint| hint.contains("--cache")), "{error:?}");
    }
    let error = Store::open(&dir.join("new"), Missing::Create).map(drop).unwrap_err();
    assert!(error.message().contains("cannot create"), "{error}");
}
