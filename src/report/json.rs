//! A run as JSON lines on standard output: one object an event, each with `"schema": 1`.

use crate::events::Event;
use crate::exec::{Observer, Outcome, RunEvent, Summary};
use crate::plan::Plan;
use serde_json::{Value, json};

/// Writes to standard output.
pub struct JsonLines<'a> {
    plan: &'a Plan,
}

impl<'a> JsonLines<'a> {
    /// A reporter for a run of `plan`.
    pub fn new(plan: &'a Plan) -> JsonLines<'a> {
        JsonLines { plan }
    }

    fn write(&self, node: Option<usize>, mut object: Value) {
        object["schema"] = json!(1);
        if let Some(node) = node {
            object["node"] = json!(self.plan.nodes[node].label);
            object["stage"] = json!(self.plan.nodes[node].entry.name);
        }
        super::data(&object.to_string());
    }

    /// The last line.
    pub fn finish(&mut self, summary: &Summary) {
        self.write(
            None,
            json!({
                "event": "finished",
                "ran": summary.count(&Outcome::Stored),
                "cached": summary.count(&Outcome::Cached),
                "failed": summary.count(&Outcome::Failed),
                "skipped": summary.count(&Outcome::Skipped),
                "interrupted": summary.interrupted,
            }),
        );
    }
}

impl Observer for JsonLines<'_> {
    fn notice(&mut self, message: &str) {
        self.write(None, json!({ "event": "warning", "message": message }));
    }

    fn event(&mut self, node: usize, event: &RunEvent) {
        let object = match event {
            RunEvent::Cached { key, hit } => {
                json!({ "event": "cached", "key": key, "outputs": outputs(&hit.outputs) })
            }
            RunEvent::Started { key, threads } => json!({ "event": "started", "key": key, "threads": threads }),
            // The scheduler's own "started" and "stored" say more.
            RunEvent::Worker(Event::Started { resumed: false } | Event::Stored { .. }) => return,
            RunEvent::Worker(Event::Started { resumed: true }) => json!({ "event": "resumed" }),
            RunEvent::Worker(event) => serde_json::to_value(event).unwrap_or_default(),
            RunEvent::Stored { key, hit, seconds, by_other } => json!({
                "event": "stored",
                "key": key,
                "seconds": seconds,
                "by_other": by_other,
                "headline": hit.headline,
                "peak_memory_mib": hit.peak_memory_mib,
                "outputs": outputs(&hit.outputs),
            }),
            RunEvent::Failed { message, hint, log } => {
                json!({ "event": "failed", "message": message, "hint": hint, "log": log })
            }
            RunEvent::Damaged { message } => json!({ "event": "damaged", "message": message }),
            RunEvent::Skipped { because } => json!({ "event": "skipped", "because": because }),
            RunEvent::Interrupted => json!({ "event": "interrupted" }),
        };
        self.write(Some(node), object);
    }
}

/// Output digests by port.
fn outputs(outputs: &[crate::store::records::OutputRecord]) -> Value {
    outputs
        .iter()
        .map(|o| (o.port.clone(), json!({ "kind": o.kind, "digest": o.digest })))
        .collect::<serde_json::Map<_, _>>()
        .into()
}
