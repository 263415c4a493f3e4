//! `runner plan` and `runner status`.

use super::args::{Global, PlanArgs};
use super::project;
use crate::error::Result;
use crate::exec::resolve::{Outlook, needed};
use crate::report::{self, outlook, style::Style};

/// Says what a run would do, and why.
///
/// # Errors
/// A bad pipeline or an unusable cache.
pub fn plan(global: &Global, args: &PlanArgs) -> Result<u8> {
    print(global, args, outlook::plan_text)
}

/// Says how every stage stands.
///
/// # Errors
/// A bad pipeline or an unusable cache.
pub fn status(global: &Global, args: &PlanArgs) -> Result<u8> {
    print(global, args, outlook::status_text)
}

fn print(global: &Global, args: &PlanArgs, text: fn(&[outlook::Row], Style) -> String) -> Result<u8> {
    let (loaded, store) = project::load_and_look(global, &args.pipeline)?;
    let needed = needed(&loaded.plan, &args.stages)?;
    let found = Outlook::of(&loaded.plan, &store)?;
    let rows = outlook::rows(&loaded.plan, &found, &store, &needed)?;
    if global.json {
        report::json_data(&outlook::json(&loaded.plan, &rows));
    } else {
        report::data(&text(&rows, Style::for_stdout(global.color)));
    }
    Ok(0)
}
