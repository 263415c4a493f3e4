//! `runner logs`.

use super::args::{Global, LogsArgs};
use super::project;
use crate::error::{Error, Result};
use crate::exec::resolve::{self, Outlook};
use crate::report;

/// Shows what the worker of a stage logged, at its last attempt under the present key.
///
/// # Errors
/// A bad pipeline, an unknown stage, a stage that was never started.
pub fn logs(global: &Global, args: &LogsArgs) -> Result<u8> {
    let (loaded, store) = project::load_and_look(global, &args.pipeline)?;
    let outlook = Outlook::of(&loaded.plan, &store)?;
    let mut found = false;
    for (id, node) in loaded.plan.nodes.iter().enumerate() {
        if !resolve::is_called(node, &args.stage) {
            continue;
        }
        found = true;
        let Some(key) = outlook.keys[id] else {
            return Err(Error::user(format!("`{}` waits for results above it and was never started", node.label)));
        };
        let path = store.log_path(&key);
        match std::fs::read_to_string(&path) {
            Ok(text) if text.is_empty() => report::note(&format!("{}: the worker logged nothing", node.label)),
            Ok(text) => report::data(&text),
            Err(_) => {
                return Err(Error::user(format!("there is no log of `{}`", node.label))
                    .hint("its result may have come with the cache, or it has not been started"));
            }
        }
    }
    if found { Ok(0) } else { Err(resolve::no_such_stage(&loaded.plan, &args.stage)) }
}
