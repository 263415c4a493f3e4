//! What a run would do: for `plan` and `status`.

use super::explain::{Previous, Verdict, judge};
use super::style::Style;
use super::{count, duration};
use crate::error::Result;
use crate::exec::resolve::Outlook;
use crate::plan::Plan;
use crate::store::Store;
use serde_json::{Value, json};

/// A node and what would happen to it.
pub struct Row {
    label: String,
    stage: &'static str,
    verdict: Verdict,
    key: Option<String>,
    /// How long it took when it was computed last.
    seconds: Option<f64>,
    /// The most memory that it took then, in MiB.
    peak_memory_mib: Option<u64>,
    headline: Option<String>,
}

/// Judges every needed node.
///
/// # Errors
/// An unreadable cache.
pub fn rows(plan: &Plan, outlook: &Outlook, store: &Store, needed: &[bool]) -> Result<Vec<Row>> {
    // The last run is only asked about nodes that are not stored: a plan of hits reads no history.
    let all_stored = (0..plan.nodes.len()).all(|id| !needed[id] || outlook.hits[id].is_some());
    let previous = if all_stored { Previous::none() } else { Previous::of(plan, store)? };
    let mut rows = Vec::new();
    for (id, node) in plan.nodes.iter().enumerate().filter(|(id, _)| needed[*id]) {
        let hit = outlook.hits[id].as_ref();
        let before = previous.record(&node.label);
        rows.push(Row {
            label: node.label.clone(),
            stage: node.entry.name,
            verdict: judge(plan, outlook, &previous, store, id),
            key: outlook.keys[id].map(|key| key.short()),
            seconds: hit.map(|h| h.seconds).or(before.map(|r| r.seconds)),
            peak_memory_mib: hit.map_or(before.and_then(|r| r.peak_memory_mib), |h| h.peak_memory_mib),
            headline: hit.and_then(|h| h.headline.clone()),
        });
    }
    Ok(rows)
}

fn table(rows: &[Row], style: Style, word: impl Fn(&Verdict) -> &'static str) -> String {
    let width = rows.iter().map(|row| row.label.chars().count()).max().unwrap_or(0).min(40);
    let mut text = String::new();
    for row in rows {
        let word = word(&row.verdict);
        let padded = format!("{word:>8}");
        let painted = match row.verdict {
            Verdict::Stored => style.green(&padded),
            Verdict::Blocked { .. } => style.red(&padded),
            _ => style.yellow(&padded),
        };
        let why = match &row.verdict {
            Verdict::Stored => row.headline.clone().unwrap_or_default(),
            other => other.because(),
        };
        let line = format!(
            "{painted}  {:width$}  {}  {:8}  {why}",
            row.label,
            style.dim(&format!("{:<22}", row.stage)),
            row.key.as_deref().unwrap_or(""),
        );
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// What a run would do.
pub fn plan_text(rows: &[Row], style: Style) -> String {
    let mut text = table(rows, style, |verdict| match verdict {
        Verdict::Stored => "cached",
        Verdict::Blocked { .. } => "blocked",
        Verdict::Waits { .. } => "may run",
        _ => "run",
    });
    let n_cached = rows.iter().filter(|row| matches!(row.verdict, Verdict::Stored)).count();
    let to_run: Vec<&Row> = rows.iter().filter(|row| !matches!(row.verdict, Verdict::Stored)).collect();
    text.push_str(&format!("{}: {n_cached} cached, {} to run", count(rows.len(), "stage"), to_run.len()));
    let known: f64 = to_run.iter().filter_map(|row| row.seconds).sum();
    if known > 0.0 {
        text.push_str(&format!(", about {} going by the last run", duration(known)));
    }
    text.push('\n');
    text
}

/// How every stage stands.
pub fn status_text(rows: &[Row], style: Style) -> String {
    table(rows, style, |verdict| match verdict {
        Verdict::Stored => "fresh",
        Verdict::Blocked { .. } => "blocked",
        Verdict::Changed { .. } => "stale",
        Verdict::Waits { .. } => "waits",
        Verdict::New => "missing",
        Verdict::Lost => "lost",
    })
}

/// The same for programs.
pub fn json(plan: &Plan, rows: &[Row]) -> Value {
    let nodes: Vec<Value> = rows
        .iter()
        .map(|row| {
            json!({
                "node": row.label, "stage": row.stage, "state": row.verdict.name(), "because": row.verdict.because(),
                "key": row.key, "seconds": row.seconds,
                "peak_memory_mib": row.peak_memory_mib, "headline": row.headline,
            })
        })
        .collect();
    json!({ "schema": 1, "pipeline": plan.identity.name, "profile": plan.identity.profile, "nodes": nodes })
}
