//! Counts the images of packed data. Its one use is to have a typed input, a required parameter and an output that
//! may stay empty, so that the planner's messages about those can be tested.

use crate::artifact::table::Column;
use crate::artifact::{Packed, Table};
use crate::error::Result;
use crate::stage::{Context, Resources, Stage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Counts packed images; for tests of the runner.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// What to call the data in the tables.
    #[schemars(length(min = 1))]
    pub title: String,
    /// Whether to count class by class, too.
    #[serde(default)]
    pub detail: bool,
}

crate::ports! {
    /// What is counted.
    pub struct Inputs {
        /// Packed images.
        packed: Packed,
    }
}

crate::ports! {
    /// What was counted.
    pub struct Outputs => {
        /// Images in all.
        total: Table,
        /// Images of each class; empty unless `detail` is set.
        detail: Table,
    }
}

/// The stage.
pub struct Sink;

impl Stage for Sink {
    const NAME: &'static str = "test/sink";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn absent(params: &Params) -> Vec<(&'static str, &'static str)> {
        if params.detail { Vec::new() } else { vec![("detail", "set `detail = true`")] }
    }

    fn resources(_: &Params) -> Resources {
        Resources { parallel: false, gpu: false, memory_mib: 16 }
    }

    fn run(_: &Context, params: Params, inputs: Inputs) -> Result<Outputs> {
        let labels = &inputs.packed.train.label;
        let mut total = Table::new(vec![Column::new("title", "as asked"), Column::new("n_images", "training images")]);
        total.push(vec![params.title.into(), labels.len().into()]);
        let mut detail = Table::new(vec![Column::new("class", "label"), Column::new("n_images", "training images")]);
        for class in 0..inputs.packed.about.classes.len() {
            let n_images = labels.iter().filter(|label| usize::try_from(**label) == Ok(class)).count();
            detail.push(vec![class.into(), n_images.into()]);
        }
        if !params.detail {
            detail.rows.clear();
        }
        Ok(Outputs { total, detail })
    }
}
