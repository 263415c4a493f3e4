//! `runner verify` and `runner gc`.

use super::args::{GcArgs, Global, PipelineArgs, VerifyArgs};
use super::project::{self, Project};
use crate::config;
use crate::error::{Class, Result};
use crate::exec::resolve::Outlook;
use crate::report::style::Style;
use crate::report::{self, bytes, count};
use crate::store::gc::{Garbage, Policy};
use crate::store::verify::Repair;
use serde_json::json;

/// Re-hashes everything that records name.
///
/// # Errors
/// A cache that cannot be read, or not be mended.
pub fn verify(global: &Global, args: &VerifyArgs) -> Result<u8> {
    let store = Project::here()?.look(global)?;
    let repair = if args.keep || !store.writable() { Repair::No } else { Repair::Yes };
    let found = store.verify(repair)?;
    if global.json {
        report::json_data(&json!({
            "schema": 1, "records": found.n_records, "blobs": found.n_blobs, "bytes": found.bytes,
            "unreferenced_bytes": found.unreferenced_bytes,
            "problems": found.problems.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "deviations": found.deviations.iter().map(|record| record.key).collect::<Vec<_>>(),
        }));
    } else {
        let style = Style::for_stdout(global.color);
        for problem in &found.problems {
            report::data(&format!("{} {problem}", style.red("damaged:")));
        }
        for record in &found.deviations {
            report::data(&format!(
                "{} {} {} came out differently another time: the stage is not deterministic",
                style.yellow("deviates:"),
                record.key.short(),
                record.pre_image.stage
            ));
        }
        report::data(&format!(
            "checked {}, {}, {}: {}",
            count(found.n_records, "record"),
            count(found.n_blobs, "blob"),
            bytes(found.bytes),
            match (found.problems.len(), repair) {
                (0, _) => "all whole".to_string(),
                (n, Repair::Yes) => format!("{} set aside; the next run computes them again", count(n, "damaged file")),
                (n, Repair::No) => count(n, "damaged file"),
            }
        ));
        if found.unreferenced_bytes > 0 {
            report::data(&format!("{} belong to no record; `runner gc` frees them", bytes(found.unreferenced_bytes)));
        }
    }
    Ok(if found.problems.is_empty() { 0 } else { Class::Machine.exit_code() })
}

/// Deletes what the given pipelines do not need, in any profile; only says so unless asked.
///
/// # Errors
/// A bad pipeline: nothing is deleted on the strength of a file that cannot be read.
pub fn gc(global: &Global, args: &GcArgs) -> Result<u8> {
    let project = match args.pipelines.first() {
        Some(pipeline) => Project::of(pipeline)?,
        None => Project::here()?,
    };
    let store = project.look(global)?;
    let mut policy = Policy::default();
    for pipeline in &args.pipelines {
        let profiles = config::load(pipeline, &config::Options::default())?.profiles;
        for profile in std::iter::once(None).chain(profiles.into_iter().map(Some)) {
            let args = PipelineArgs { pipeline: pipeline.clone(), profile, set: Vec::new() };
            let plan = project::load(global, &args)?.plan;
            let outlook = Outlook::of(&plan, &store)?;
            policy.keep.extend((0..plan.nodes.len()).filter_map(|id| outlook.keys[id]));
        }
    }
    let garbage = if args.delete { store.collect(&policy)? } else { store.garbage(&policy)? };
    if global.json {
        report::json_data(&json!({
            "schema": 1, "deleted": args.delete, "bytes": garbage.bytes(),
            "records": garbage.records.iter().map(|record| record.key).collect::<Vec<_>>(),
            "blobs": garbage.blobs.len() + garbage.orphans.len(), "others": garbage.others.len(),
        }));
    } else {
        report::data(&text(&garbage, args.delete));
    }
    Ok(0)
}

fn text(garbage: &Garbage, deleted: bool) -> String {
    if garbage.is_empty() {
        return "nothing to delete".to_string();
    }
    let mut text = String::new();
    for record in &garbage.records {
        let headline = record.headline.as_deref().unwrap_or_default();
        text.push_str(format!("  {}  {:<24} {headline}", record.key.short(), record.pre_image.stage).trim_end());
        text.push('\n');
    }
    let what = format!(
        "{}, {}, {}: {}",
        count(garbage.records.len(), "result"),
        count(garbage.blobs.len() + garbage.orphans.len(), "blob"),
        count(garbage.others.len(), "other file"),
        bytes(garbage.bytes())
    );
    text.push_str(&if deleted {
        format!("deleted {what}\n")
    } else {
        format!("would delete {what}; `--delete` does it\n")
    });
    text
}
