//! What the system says about memory. Linux only: elsewhere nothing is known, and nothing is limited by it.

use std::path::Path;

/// The largest resident memory that this process has had, in MiB. Pages of mapped files count while they are in memory.
pub fn peak_mib() -> Option<u64> {
    number(&std::fs::read_to_string("/proc/self/status").ok()?, "VmHWM:").map(|kib| kib / 1024)
}

/// Starts the count of [`peak_mib`] again, where the system can.
pub fn forget_peak() {
    // Without it the peak is that of the process's whole life.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Whether fresh memory of this process, and of those that it starts, comes in pages of 2 MiB where the system would
/// give them: faster to fill, slower to begin.
pub fn use_huge_pages(yes: bool) {
    // Speed alone depends on it.
    #[cfg(target_os = "linux")]
    let _ = nix::sys::prctl::set_thp_disable(!yes);
    #[cfg(not(target_os = "linux"))]
    let _ = yes;
}

/// Memory that could be taken now without swapping, in MiB: the machine's, or what the container has left.
pub fn available_mib() -> Option<u64> {
    let machine = number(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")? / 1024;
    Some(container_left_mib().map_or(machine, |container| container.min(machine)))
}

/// The memory of the machine, in MiB.
pub fn total_mib() -> Option<u64> {
    number(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:").map(|kib| kib / 1024)
}

/// What is left of the limit of the control group (version 2) that this process is in, if it has one.
fn container_left_mib() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let folder = Path::new("/sys/fs/cgroup").join(group);
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
    // "max" stands for no limit, and is no number.
    let limit: u64 = read("memory.max")?.trim().parse().ok()?;
    let used: u64 = read("memory.current")?.trim().parse().ok()?;
    // Pages of files are given up when memory is short.
    let files = read("memory.stat").and_then(|text| number(&text, "inactive_file ")).unwrap_or(0);
    Some(limit.saturating_sub(used.saturating_sub(files)) >> 20)
}

/// The number behind `name` in lines such as `VmHWM:   1234 kB`.
fn number(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_system_are_understood() {
        let status = "Name:\trunner\nVmPeak:\t  9000 kB\nVmHWM:\t  204800 kB\nVmRSS:\t 100 kB\n";
        assert_eq!(number(status, "VmHWM:"), Some(204_800));
        assert_eq!(number(status, "VmSwap:"), None);
        assert_eq!(number("VmHWM:\tmany kB\n", "VmHWM:"), None);
    }

    /// A peak never falls, and memory that is touched is in it.
    #[test]
    #[cfg(target_os = "linux")]
    fn the_peak_follows_what_is_touched() {
        let before = peak_mib().unwrap();
        let touched = std::hint::black_box(vec![1u8; 64 << 20]);
        let during = peak_mib().unwrap();
        assert!(during >= 64, "{during} MiB with {} MiB in use", touched.len() >> 20);
        drop(touched);
        // Linux counts pages per core and sums them up now and then: a peak is exact to a fraction of a MiB.
        assert!(peak_mib().unwrap() + 1 >= during && during + 1 >= before);
        assert!(available_mib().unwrap() <= total_mib().unwrap());
    }
}
