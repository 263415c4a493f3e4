//! What the system says of this process. Linux only; elsewhere there are no numbers.

use std::fs;

/// CPU time of all threads, in seconds.
pub fn cpu_seconds() -> Option<f64> {
    let mut nanoseconds = 0.0;
    for task in fs::read_dir("/proc/self/task").ok()?.flatten() {
        // A thread that has just ended is no longer there.
        let Ok(text) = fs::read_to_string(task.path().join("schedstat")) else { continue };
        nanoseconds += text.split_whitespace().next()?.parse::<f64>().ok()?;
    }
    Some(nanoseconds * 1e-9)
}
