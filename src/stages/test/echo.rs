//! A table with one row: a value, and how many rows came in. Can be slow, fail, or crash on request, so that tests
//! and benches of the runner can drive a stage whose behaviour they know.

use crate::artifact::Table;
use crate::artifact::table::{Cell, Column};
use crate::error::{Error, Result};
use crate::param::{Count, Fraction, Positive};
use crate::stage::{Context, Named, Problem, Resources, Stage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Repeats a value; for tests of the runner.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The value of the row.
    pub value: f64,
    /// Whether a random number stands beside it.
    pub random: bool,
    /// How long to take, in steps of 10 ms; each step is checkpointed.
    pub steps: u64,
    /// How to end.
    pub end: End,
    /// A share that does nothing.
    pub share: Fraction,
    /// A number above zero that does nothing, if there is one.
    pub limit: Option<Positive>,
    /// Whole numbers that do nothing.
    pub items: Vec<u32>,
    /// A range that does nothing.
    pub range: Range,
}

impl Default for Params {
    fn default() -> Params {
        Params {
            value: 0.0,
            random: false,
            steps: 0,
            end: End::Well,
            share: Fraction::ONE,
            limit: None,
            items: Vec::new(),
            range: Range::default(),
        }
    }
}

/// Two ends and what lies between.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Range {
    /// The lower end.
    pub low: f64,
    /// The upper end, not below the lower.
    pub high: f64,
    /// How many parts it has.
    pub parts: Count,
}

impl Default for Range {
    fn default() -> Range {
        Range { low: 0.0, high: 1.0, parts: Count::ONE }
    }
}

/// How the stage ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// With its table.
    #[default]
    Well,
    /// With an error.
    Error,
    /// With a panic.
    Panic,
    /// With an abort of the process, as an out-of-memory kill would.
    Abort,
}

crate::ports! {
    /// What came in.
    pub struct Inputs {
        /// Any tables.
        tables: Option<Vec<Named<Table>>>,
    }
}

/// The stage.
pub struct Echo;

impl Stage for Echo {
    const NAME: &'static str = "test/echo";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Table;

    fn draws(params: &Params) -> bool {
        params.random
    }

    fn check(params: &Params) -> Vec<Problem> {
        if params.range.low <= params.range.high {
            return Vec::new();
        }
        let Range { low, high, .. } = params.range;
        vec![Problem {
            parameter: "range.low",
            message: format!("is {low}, above `range.high`, which is {high}"),
            hint: Some("swap `range.low` and `range.high`".into()),
        }]
    }

    fn resources(_: &Params) -> Resources {
        Resources { parallel: false, gpu: false, memory_mib: 16 }
    }

    fn run(cx: &Context, params: Params, inputs: Inputs) -> Result<Table> {
        let mut done = cx.checkpoint.load().and_then(|b| Some(u64::from_le_bytes(b.try_into().ok()?))).unwrap_or(0);
        while done < params.steps {
            cx.check_stop()?;
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(10) {
                std::hint::spin_loop();
            }
            done += 1;
            cx.checkpoint.save(&done.to_le_bytes())?;
            cx.progress(done, params.steps, "steps", "");
            cx.metrics("loop", "step", done, [("share_done".to_string(), done as f64 / params.steps as f64)]);
        }
        match params.end {
            End::Well => {}
            End::Error => return Err(Error::stage("this stage was asked to fail").hint("set `end = \"well\"`")),
            End::Panic => panic!("this stage was asked to panic"),
            End::Abort => std::process::abort(),
        }
        let mut table = Table::new(vec![
            Column::new("value", "as asked"),
            Column::new("n_rows", "rows that came in"),
            Column::new("random", "a uniform draw"),
        ]);
        let n_rows: usize = inputs.tables.iter().flatten().map(|t| t.value.rows.len()).sum();
        let random = if params.random { Cell::from(cx.rng("echo").uniform()) } else { Cell::None };
        table.push(vec![params.value.into(), n_rows.into(), random]);
        Ok(table)
    }
}
