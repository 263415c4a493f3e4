//! Why a stage would run: its pre-image now against the one of the last run, down to the first cause above it.

use super::{bytes, count, duration};
use crate::error::Result;
use crate::exec::resolve::{Outlook, pre_image};
use crate::plan::Plan;
use crate::store::Store;
use crate::store::change::{Change, difference};
use crate::store::records::Record;
use serde::Serialize;
use std::collections::BTreeMap;

/// What a node's last run was made from.
pub struct Previous {
    records: BTreeMap<String, Record>,
}

impl Previous {
    /// Nothing is known.
    pub fn none() -> Previous {
        Previous { records: BTreeMap::new() }
    }

    /// The records of the last run of this pipeline under this profile, lost results included.
    ///
    /// # Errors
    /// An unreadable cache.
    pub fn of(plan: &Plan, store: &Store) -> Result<Previous> {
        let mut records = BTreeMap::new();
        let Some(run) = store.history().runs(&plan.identity)?.into_iter().next() else { return Ok(Previous::none()) };
        for (label, key) in run.keys {
            if let Some(record) = store.record(&key)? {
                records.insert(label, record);
            }
        }
        Ok(Previous { records })
    }

    /// The last record of the node `label`.
    pub fn record(&self, label: &str) -> Option<&Record> {
        self.records.get(label)
    }
}

/// What would happen to a node, and why.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Verdict {
    /// Its result is stored.
    Stored,
    /// It was never computed.
    New,
    /// It was computed, but its result is no longer in the cache.
    Lost,
    /// It was computed from something else.
    Changed {
        /// What changed.
        changes: Vec<Change>,
    },
    /// What it reads must be computed first; whether it runs depends on what comes out.
    Waits {
        /// The nodes it waits for.
        above: Vec<String>,
    },
    /// A file that it reads is missing.
    Blocked {
        /// What is wrong.
        problem: String,
    },
}

impl Verdict {
    /// The name for programs.
    pub fn name(&self) -> &'static str {
        match self {
            Verdict::Stored => "stored",
            Verdict::New => "new",
            Verdict::Lost => "lost",
            Verdict::Changed { .. } => "changed",
            Verdict::Waits { .. } => "waits",
            Verdict::Blocked { .. } => "blocked",
        }
    }

    /// One clause.
    pub fn because(&self) -> String {
        match self {
            Verdict::Stored => String::new(),
            Verdict::New => "never computed".to_string(),
            Verdict::Lost => "its result is no longer in the cache".to_string(),
            Verdict::Changed { changes } => changes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
            Verdict::Waits { above } => format!("after {}", above.join(", ")),
            Verdict::Blocked { problem } => problem.clone(),
        }
    }
}

/// Judges node `id`.
pub fn judge(plan: &Plan, outlook: &Outlook, previous: &Previous, store: &Store, id: usize) -> Verdict {
    let node = &plan.nodes[id];
    if outlook.hits[id].is_some() {
        return Verdict::Stored;
    }
    if let Some(problem) = &outlook.problems[id] {
        return Verdict::Blocked { problem: problem.clone() };
    }
    let Some(key) = outlook.keys[id] else {
        let above = plan.upstream(id).into_iter().filter(|&up| outlook.hits[up].is_none());
        return Verdict::Waits { above: above.map(|up| plan.nodes[up].label.clone()).collect() };
    };
    match previous.record(&node.label) {
        None => Verdict::New,
        Some(record) if record.key == key => Verdict::Lost,
        Some(record) => match pre_image(plan, id, &outlook.hits, store) {
            Ok(now) => Verdict::Changed { changes: difference(&record.pre_image, &now) },
            Err(error) => Verdict::Blocked { problem: error.to_string() },
        },
    }
}

/// Why one node would run, or what its stored result was made from.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    node: String,
    stage: &'static str,
    #[serde(flatten)]
    verdict: Verdict,
    /// The causes above it, nearest first: label and verdict.
    above: Vec<(String, Verdict)>,
    record: Option<Record>,
    /// For a stored result that differs from the last run's: what changed.
    since_last_run: Vec<Change>,
}

/// Explains node `id`.
///
/// # Errors
/// An unreadable cache.
pub fn explain(plan: &Plan, outlook: &Outlook, previous: &Previous, store: &Store, id: usize) -> Result<Explanation> {
    let node = &plan.nodes[id];
    let verdict = judge(plan, outlook, previous, store, id);
    let mut above = Vec::new();
    let mut queue = plan.upstream(id);
    let mut seen = queue.clone();
    while !queue.is_empty() {
        let up = queue.remove(0);
        let cause = judge(plan, outlook, previous, store, up);
        let changed = match (&cause, outlook.keys[up], previous.record(&plan.nodes[up].label)) {
            // Stored, but not from what the last run used: the change has been computed already.
            (Verdict::Stored, Some(key), Some(before)) if before.key != key => {
                let now = pre_image(plan, up, &outlook.hits, store)?;
                Some(Verdict::Changed { changes: difference(&before.pre_image, &now) })
            }
            (Verdict::Stored, _, _) => None,
            _ => Some(cause),
        };
        if let Some(cause) = changed {
            above.push((plan.nodes[up].label.clone(), cause));
            for next in plan.upstream(up) {
                if !seen.contains(&next) {
                    seen.push(next);
                    queue.push(next);
                }
            }
        }
    }
    let record = match outlook.keys[id] {
        Some(key) if outlook.hits[id].is_some() => store.record(&key)?,
        _ => None,
    };
    let since_last_run = match (&record, previous.record(&node.label)) {
        (Some(now), Some(before)) if now.key != before.key => difference(&before.pre_image, &now.pre_image),
        _ => Vec::new(),
    };
    Ok(Explanation { node: node.label.clone(), stage: node.entry.name, verdict, above, record, since_last_run })
}

impl Explanation {
    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |indent: usize, words: String| {
            text.push_str(&" ".repeat(indent));
            text.push_str(&words);
            text.push('\n');
        };
        let head = format!("{} ({})", self.node, self.stage);
        match (&self.verdict, &self.record) {
            (Verdict::Stored, Some(record)) => {
                line(0, format!("{head} is stored"));
                line(2, format!("key      {}", record.key));
                line(2, format!("made     {} in {}", when(record.created), duration(record.seconds)));
                line(2, format!("on       {}", origin(record)));
                line(2, format!("version  {}", record.pre_image.version));
                if let Some(seed) = record.pre_image.seed {
                    line(2, format!("seed     {seed}"));
                }
                for (port, inputs) in &record.pre_image.inputs {
                    for input in inputs {
                        line(2, format!("input    {port} = {}", input.digest.short()));
                    }
                }
                for output in &record.outputs {
                    line(2, format!("output   {} = {} ({})", output.port, output.digest.short(), output.kind));
                }
                for change in &self.since_last_run {
                    line(2, format!("since the last run: {change}"));
                }
            }
            (Verdict::Changed { changes }, _) => {
                line(0, format!("{head} would run, because"));
                for change in changes {
                    line(2, change.to_string());
                }
            }
            (Verdict::Waits { above }, _) => {
                line(0, format!("{head} may run: that depends on what comes out of {}", above.join(", ")));
            }
            (verdict, _) => line(0, format!("{head} would run: {}", verdict.because())),
        }
        for (label, cause) in &self.above {
            line(2, format!("`{label}`: {}", cause.because()));
        }
        text
    }
}

/// What computed a result, which is not part of its key: `cpu (avx2, f32), 2 threads, 312.0 MB at most, runner 0.1.0 x86_64`.
pub fn origin(record: &Record) -> String {
    let details: Vec<&str> =
        [&record.instructions, &record.precision].into_iter().flatten().map(String::as_str).collect();
    let mut parts = vec![if details.is_empty() {
        record.device.clone()
    } else {
        format!("{} ({})", record.device, details.join(", "))
    }];
    parts.push(count(record.threads, "thread"));
    parts.extend(record.peak_memory_mib.map(|mib| format!("{} at most", bytes(mib << 20))));
    parts.push(record.build.clone());
    parts.join(", ")
}

/// A Unix time as `2026-11-21 10:04 UTC`.
fn when(seconds: u64) -> String {
    let [year, month, day, hour, minute, _] = civil(seconds);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
}

/// A Unix time as year, month, day, hour, minute and second in UTC.
pub fn civil(seconds: u64) -> [u64; 6] {
    let days = (seconds / 86_400) as i64;
    // Civil from days (Hinnant): the era starts on 1 March 0000.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute) = (seconds % 86_400 / 3600, seconds % 3600 / 60);
    [year as u64, month as u64, day as u64, hour, minute, seconds % 60]
}

#[cfg(test)]
mod tests {
    use super::when;

    #[test]
    fn dates_are_civil() {
        assert_eq!(when(0), "1970-01-01 00:00 UTC");
        assert_eq!(when(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(when(1_795_255_440), "2026-11-21 10:04 UTC");
    }
}
