//! Faults, for real: `kill -9` at random moments, flipped bytes, truncated blobs, a full disk, a read-only cache.

use crate::harness::{Project, kill_9, nodes};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// A diamond with stages that take a moment, draw, and keep checkpoints.
const DIAMOND: &str = r#"
name = "diamond"

[stages.top]
stage = "test/echo"
random = true
steps = 4

[stages.left]
stage = "test/echo"
from = { tables = "top" }
value = 1.5
steps = 4

[stages.right]
stage = "test/echo"
from = { tables = "top" }
random = true
steps = 4

[stages.bottom]
stage = "test/echo"
from = { tables = ["left", "right"] }
steps = 4
"#;

/// A small deterministic generator for moments; nothing scientific hangs on it.
fn moments(mut state: u64) -> impl Iterator<Item = u64> {
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    })
}

#[test]
fn kill_9_at_any_moment_loses_nothing_but_time() {
    let undisturbed = Project::new();
    undisturbed.write("p.toml", DIAMOND).ok(&["run", "p.toml"]);
    let expected = undisturbed.digests("p.toml", &[]);
    for moment in moments(1).take(20) {
        let project = Project::new();
        project.write("p.toml", DIAMOND);
        let mut child = project.spawn(&["run", "p.toml", "--jobs", "2"]);
        std::thread::park_timeout(Duration::from_micros(moment % 250_000));
        if moment % 2 == 0 {
            kill_9(&mut child);
        } else {
            // A worker instead of the scheduler: its stage fails, the rest goes on.
            let _ = Command::new("pkill").args(["-9", "-P", &child.id().to_string()]).status();
            child.wait().unwrap();
        }
        project.ok(&["run", "p.toml"]);
        project.ok(&["verify"]);
        assert_eq!(project.digests("p.toml", &[]), expected);
    }
}

#[test]
fn a_flipped_byte_in_any_blob_is_found_and_repaired() {
    let project = Project::new();
    project.write("p.toml", DIAMOND).ok(&["run", "p.toml"]);
    let expected = project.digests("p.toml", &[]);
    for blob in project.blobs() {
        damage(&blob, |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        });
        let found = project.runner(&["verify"]);
        assert_eq!(found.code, 3, "{}\n{}", found.out, found.err);
        project.ok(&["run", "p.toml"]);
        project.ok(&["verify"]);
        assert_eq!(project.digests("p.toml", &[]), expected);
    }
}

#[test]
fn a_damaged_input_is_repaired_by_the_run_that_meets_it() {
    let project = Project::new();
    project.write("p.toml", DIAMOND).ok(&["run", "p.toml", "left"]);
    for blob in project.blobs() {
        damage(&blob, |bytes| bytes[0] ^= 0x80);
    }
    let events = project.run_json("p.toml", &[]);
    assert!(!nodes(&events, "damaged").is_empty());
    assert!(nodes(&events, "failed").is_empty());
    let undisturbed = Project::new();
    undisturbed.write("p.toml", DIAMOND).ok(&["run", "p.toml"]);
    // What nobody read may still be damaged: `verify` finds it.
    project.runner(&["verify"]);
    project.ok(&["run", "p.toml"]);
    assert_eq!(project.digests("p.toml", &[]), undisturbed.digests("p.toml", &[]));
}

#[test]
fn a_truncated_blob_is_a_miss() {
    let project = Project::new();
    project.write("p.toml", DIAMOND).ok(&["run", "p.toml"]);
    let expected = project.digests("p.toml", &[]);
    for blob in project.blobs() {
        damage(&blob, |bytes| bytes.truncate(bytes.len() / 2));
    }
    project.ok(&["run", "p.toml"]);
    assert_eq!(project.digests("p.toml", &[]), expected);
    project.ok(&["verify"]);
}

fn damage(path: &Path, change: impl Fn(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// A small file system of its own, if this process may mount one (root, as in CI).
struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    fn mount(options: &str) -> Option<SmallDisk> {
        let dir = tempfile::TempDir::new().unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(dir.path()).output().ok()?;
        mounted.status.success().then_some(SmallDisk { dir })
    }

    fn remount(&self, options: &str) {
        let status = Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(self.dir.path()).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.dir.path()).status();
    }
}

#[test]
fn a_full_disk_is_an_error_and_leaves_a_usable_cache() {
    let Some(disk) = SmallDisk::mount("size=3m") else {
        eprintln!("not root: the full disk is tested where tests may mount a tmpfs");
        return;
    };
    let text = r#"
name = "full"
[stages.small]
stage = "test/echo"
[stages.clean]
stage = "data/cifar10"
subset = "embedded"
"#;
    let project = Project::with_cache(disk.dir.path());
    project.write("p.toml", text);
    let ran = project.runner(&["run", "p.toml"]);
    assert_eq!(ran.code, 3, "{}\n{}", ran.out, ran.err);
    assert!(ran.err.contains("No space left on device") && ran.err.contains("runner gc"), "{}", ran.err);
    project.ok(&["verify"]);
    assert_eq!(nodes(&project.run_json("p.toml", &["small"]), "cached"), ["small"]);
    disk.remount("size=64m");
    project.ok(&["run", "p.toml"]);
    project.ok(&["verify"]);
}

#[test]
fn a_read_only_cache_serves_hits_and_refuses_work_with_a_way_out() {
    let Some(disk) = SmallDisk::mount("size=8m") else {
        eprintln!("not root: the read-only cache is tested where tests may mount a tmpfs");
        return;
    };
    let project = Project::with_cache(disk.dir.path());
    project.write("p.toml", DIAMOND).ok(&["run", "p.toml"]);
    disk.remount("ro");
    let events = project.run_json("p.toml", &[]);
    assert_eq!(nodes(&events, "cached").len(), 4);
    let ran = project.runner(&["run", "p.toml", "--set", "stages.top.value=3.0"]);
    assert_eq!(ran.code, 3, "{}\n{}", ran.out, ran.err);
    assert!(ran.err.contains("--cache"), "{}", ran.err);
}
