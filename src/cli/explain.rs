//! `runner explain`.

use super::args::{ExplainArgs, Global};
use super::project;
use crate::error::Result;
use crate::exec::resolve::{self, Outlook};
use crate::report::{self, explain};

/// Says why a stage would run, or what its stored result was made from.
///
/// # Errors
/// A bad pipeline, an unknown stage, an unusable cache.
pub fn explain(global: &Global, args: &ExplainArgs) -> Result<u8> {
    let (loaded, store) = project::load_and_look(global, &args.pipeline)?;
    let ids: Vec<usize> =
        (0..loaded.plan.nodes.len()).filter(|&id| resolve::is_called(&loaded.plan.nodes[id], &args.stage)).collect();
    if ids.is_empty() {
        return Err(resolve::no_such_stage(&loaded.plan, &args.stage));
    }
    let outlook = Outlook::of(&loaded.plan, &store)?;
    let previous = explain::Previous::of(&loaded.plan, &store)?;
    let explanations = ids
        .iter()
        .map(|&id| explain::explain(&loaded.plan, &outlook, &previous, &store, id))
        .collect::<Result<Vec<_>>>()?;
    if global.json {
        report::json_data(&serde_json::json!({ "schema": 1, "explanations": explanations }));
    } else {
        let texts: Vec<String> = explanations.iter().map(explain::Explanation::text).collect();
        report::data(&texts.join("\n"));
    }
    Ok(0)
}
