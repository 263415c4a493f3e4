//! CLP: channels that can amplify too much are removed, without any data.
//!
//! Zheng et al., "Data-free Backdoor Removal based on Channel Lipschitzness" (ECCV 2022, arXiv:2208.03111). In every
//! layer, channels whose Lipschitz bound ([`lipschitz`]) exceeds the layer's mean by more than `u` standard deviations
//! lose scale and shift of their normalisation.
//!
//! It takes a clean split as every defence does, so that it stands in their place in a pipeline, and looks at nothing but
//! its number of classes.

use super::repair::{Inputs, Repair};
use crate::artifact::table::Column;
use crate::artifact::{Model, Table};
use crate::error::Result;
use crate::nn::lipschitz::{self, Bounds};
use crate::param::{Fraction, NonNegative, valid};
use crate::stage::{Context, Resources, Stage};
use crate::stages::train::recipe;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Removes the channels with the largest Lipschitz bounds; looks at no image.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Standard deviations above the layer's mean from which a channel goes; the paper takes 3 for CIFAR-10.
    pub u: NonNegative,
}

impl Default for Params {
    fn default() -> Params {
        Params { u: const { valid(NonNegative::new(3.0)) } }
    }
}

crate::ports! {
    /// What it makes.
    pub struct Outputs => {
        /// The pruned model.
        model: Model,
        /// One row a layer: its channels, their bounds, and how many went.
        bounds: Table,
    }
}

/// The stage.
pub struct Clp;

impl Stage for Clp {
    const NAME: &'static str = "purify/clp";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn resources(_: &Params) -> Resources {
        Resources { parallel: false, gpu: false, ..recipe::resources(None, 1) }
    }

    fn run(cx: &Context, params: Params, Inputs { model, clean }: Inputs) -> Result<Outputs> {
        let mut repair = Repair::begin(cx, model, &clean, Fraction::ZERO)?;
        let network = &mut repair.network;
        let layers = lipschitz::bounds(network.graph(), network.params(), network.buffers())?;
        let mut table = Table::new(vec![
            Column::new("layer", "the normalisation"),
            Column::new("n_channels", "its channels"),
            Column::new("mean", "mean of the channels' bounds").digits(3),
            Column::new("deviation", "standard deviation of the channels' bounds").digits(3),
            Column::new("largest", "largest of the channels' bounds").digits(3),
            Column::new("n_pruned", "channels removed"),
        ]);
        let mut n_pruned = 0;
        for Bounds { gamma, beta, bounds } in layers {
            let (mean, deviation) = moments(&bounds);
            let limit = mean + params.u.get() * deviation;
            let beyond: Vec<usize> = (0..bounds.len()).filter(|&k| bounds[k] > limit).collect();
            for k in &beyond {
                network.params_mut()[gamma.start + k] = 0.0;
                network.params_mut()[beta.start + k] = 0.0;
            }
            n_pruned += beyond.len();
            let name = network.graph().parameters.iter().find(|t| t.range == gamma).map_or("", |t| &t.name);
            let largest = bounds.iter().copied().fold(0.0, f64::max);
            table.push(vec![
                name.trim_end_matches(".weight").into(),
                bounds.len().into(),
                mean.into(),
                deviation.into(),
                largest.into(),
                beyond.len().into(),
            ]);
        }
        cx.headline(format!("{n_pruned} channels removed"));
        let summary = format!("looked at none, u {}, {n_pruned} channels removed", params.u.get());
        let notes =
            vec![format!("{n_pruned} channels more than {} deviations above their layer's mean", params.u.get())];
        Ok(Outputs { model: repair.end(Clp::NAME, &summary, notes), bounds: table })
    }
}

/// Mean, and standard deviation over n - 1, as the released code has it; 0 for a single value.
fn moments(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (mean, if values.len() > 1 { (squares / (n - 1.0)).sqrt() } else { 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deviations_are_those_of_a_sample() {
        assert_eq!(moments(&[1.0, 2.0, 3.0, 6.0]), (3.0, (14.0f64 / 3.0).sqrt()));
        assert_eq!(moments(&[4.0]), (4.0, 0.0));
    }
}
