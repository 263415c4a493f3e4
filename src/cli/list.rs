//! `runner list`: the stages, family by family.

use crate::plan::catalogue::{self, FAMILIES, Info};
use serde_json::{Value, json};

/// Stages with a line each, under their families.
pub fn text() -> String {
    let width = catalogue::visible().map(|info| info.entry.name.len()).max().unwrap_or(0);
    let mut out = String::new();
    let mut family = "";
    for info in catalogue::visible() {
        if info.entry.family() != family {
            family = info.entry.family();
            let separator = if out.is_empty() { "" } else { "\n" };
            out.push_str(&format!("{separator}{family}: {}\n", purpose(family)));
        }
        out.push_str(format!("  {:width$}  {}", info.entry.name, info.summary()).trim_end());
        out.push('\n');
    }
    out.push_str("\n`runner describe STAGE` explains one\n");
    out
}

/// The same as a list of objects `{stage, family, version, summary}`.
pub fn json() -> Value {
    catalogue::visible().map(row).collect()
}

fn row(info: &'static Info) -> Value {
    json!({
        "stage": info.entry.name,
        "family": info.entry.family(),
        "version": info.entry.version,
        "summary": info.summary(),
    })
}

fn purpose(family: &str) -> &'static str {
    FAMILIES.iter().find(|(name, _)| *name == family).map_or("", |(_, purpose)| purpose)
}

#[cfg(test)]
mod tests {
    #[test]
    fn test_stages_are_hidden() {
        assert!(!super::text().contains("test/"));
        assert!(super::json().as_array().is_some_and(|rows| rows.iter().all(|row| row["family"] != "test")));
    }
}
