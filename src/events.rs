//! What happens during a run, as data: the interface between the scheduler, its workers and the reporter.
//!
//! A worker writes its [`Event`]s as JSON lines on standard output. The scheduler wraps them into [`RunEvent`](crate::exec::RunEvent)s,
//! which `report` turns into a terminal display or JSON lines. Nothing else prints (invariant 12).

use crate::store::digest::Digest;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a worker says while it runs one stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// Another process computes the same key; the worker waits for it.
    Waiting,
    /// The stage starts to compute (`resumed`: from a checkpoint).
    Started {
        /// Whether it goes on from a checkpoint.
        resumed: bool,
    },
    /// How far it is.
    Progress {
        /// Units done.
        done: u64,
        /// Units in all.
        total: u64,
        /// What a unit is: `epochs`, `critics`.
        unit: String,
        /// One line of numbers.
        headline: String,
    },
    /// Numbers at a place on an axis, for those who follow a run while it goes on.
    Metrics {
        /// What the numbers belong to. If the stage has a table port of this name, its rows along `axis` are the same
        /// numbers, told while they come to be.
        series: String,
        /// What `at` counts: `epoch`, `step`.
        axis: String,
        /// Where on the axis.
        at: u64,
        /// Finite numbers by name.
        values: BTreeMap<String, f64>,
    },
    /// Something a user should know about the result.
    Warning {
        /// The text.
        message: String,
    },
    /// The number to print beside the finished stage.
    Headline {
        /// The text.
        text: String,
    },
    /// The outputs are stored.
    Stored {
        /// Output digests by port.
        outputs: BTreeMap<String, Digest>,
        /// Whether another process had stored them meanwhile.
        by_other: bool,
    },
    /// An input is not what its digest says; it has been set aside.
    Damaged {
        /// What was found.
        message: String,
    },
    /// The stage failed.
    Failed {
        /// The error.
        message: String,
        /// What to do about it.
        hint: Option<String>,
        /// Whose fault: `stage`, `user`, `machine`, `interrupted`.
        class: String,
    },
}
