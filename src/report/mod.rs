//! Everything that people and programs read: the only place that prints (invariant 12).
//!
//! Data (tables, plans, JSON) goes to standard output; progress, warnings and errors go to standard error.

pub mod compare;
pub mod explain;
pub mod json;
pub mod outlook;
pub mod published;
pub mod results;
pub mod run_time;
pub mod style;
pub mod table;
pub mod terminal;

use crate::error::Error;
use std::io::Write;
use style::Style;

/// Writes data to standard output. A reader that has gone away (`| head`) is no error.
pub fn data(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    if !text.ends_with('\n') {
        let _ = out.write_all(b"\n");
    }
    let _ = out.flush();
}

/// Writes a value to standard output as indented JSON.
pub fn json_data(value: &serde_json::Value) {
    data(&serde_json::to_string_pretty(value).unwrap_or_default());
}

/// Writes one line to standard error.
pub fn note(text: &str) {
    let mut out = std::io::stderr().lock();
    let _ = writeln!(out, "{text}");
}

/// Tells a person what went wrong, and a way out.
pub fn error(error: &Error, style: Style) {
    if error.is_rendered() {
        note(error.message().trim_end());
    } else {
        note(&format!("{} {error}", style.red("error:")));
    }
    if let Some(hint) = error.hint_text() {
        note(&format!("\n{} {hint}", style.cyan("hint:")));
    }
}

/// Seconds as people say them: `0.41 s`, `12.3 s`, `4m 05s`, `2h 03m`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    if seconds < 9.995 {
        format!("{seconds:.2} s")
    } else if seconds < 99.95 {
        format!("{seconds:.1} s")
    } else if whole < 3600 {
        format!("{}m {:02}s", whole / 60, whole % 60)
    } else {
        format!("{}h {:02}m", whole / 3600, whole % 3600 / 60)
    }
}

/// Bytes as people say them: `812 B`, `4.2 MB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 999.5 && unit < UNITS.len() - 1 {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// `1 stage`, `2 stages`.
pub fn count(n: usize, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_read_well() {
        let rows = [(0.004, "0.00 s"), (0.41, "0.41 s"), (12.34, "12.3 s"), (99.97, "1m 40s"), (3725.0, "1h 02m")];
        for (seconds, text) in rows {
            assert_eq!(duration(seconds), text);
        }
        for (n, text) in [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (4_200_000, "4.2 MB")] {
            assert_eq!(bytes(n), text);
        }
        assert_eq!((count(1, "stage"), count(0, "stage")), ("1 stage".into(), "0 stages".into()));
    }
}
