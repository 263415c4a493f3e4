//! Fine-pruning: features that clean images do not use are removed, then the rest is fine-tuned.
//!
//! Liu, Dolan-Gavitt and Garg, "Fine-Pruning" (RAID 2018, arXiv:1805.12185). The features are the inputs of the linear
//! layer; each is the mean over positions of a channel of the last convolutional layer, and nothing else reads it, so
//! removing the one removes the other. The least active go first, in steps of 1 %, as in BackdoorBench
//! (`defense/fp.py`), while the accuracy stays within the bound.
//!
//! Differs from BackdoorBench: accuracy is measured on held-out clean images, and the last network inside the bound goes
//! on, not the first outside of it.

use super::repair::{Inputs, Pruned, Repair, fine_tuning};
use crate::error::{Error, Result};
use crate::nn::graph::Op;
use crate::nn::{Network, optim, predict, schedule};
use crate::param::{Count, Fraction, NonNegative, Positive, valid};
use crate::stage::{Context, Problem, Resources, Stage};
use crate::stages::train::fit::{Hooks, Step};
use crate::stages::train::recipe::{self, AugmentParams, Recipe};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Removes the features that clean images use least, and fine-tunes the others.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Share of the held-out accuracy that pruning may cost.
    pub max_drop: Fraction,
    /// Share of the clean split that is held out to measure it.
    pub held_out: Fraction,
    /// Passes over the rest of the clean split.
    pub epochs: Count,
    /// Images a step; the last step of an epoch takes what is left.
    pub batch_size: Count,
    /// The learning rate that the schedule starts from, or climbs to.
    pub learning_rate: Positive,
    /// Momentum of SGD.
    pub momentum: Fraction,
    /// Weight decay on every parameter.
    pub weight_decay: NonNegative,
    /// How the learning rate moves.
    pub schedule: schedule::Params,
    /// Random changes to the images.
    pub augment: AugmentParams,
}

impl Default for Params {
    fn default() -> Params {
        Params {
            max_drop: const { valid(Fraction::new(0.1)) },
            held_out: const { valid(Fraction::new(0.2)) },
            epochs: const { valid(Count::new(100)) },
            batch_size: const { valid(Count::new(256)) },
            learning_rate: const { valid(Positive::new(0.01)) },
            momentum: const { valid(Fraction::new(0.9)) },
            weight_decay: const { valid(NonNegative::new(5e-4)) },
            schedule: schedule::Params::default(),
            augment: AugmentParams::default(),
        }
    }
}

impl Params {
    fn recipe(&self) -> Recipe {
        Recipe {
            epochs: self.epochs.get(),
            batch_size: self.batch_size.get(),
            optimiser: optim::Config {
                kind: optim::Kind::Sgd,
                momentum: self.momentum.get(),
                nesterov: false,
                weight_decay: self.weight_decay.get(),
            },
            learning_rate: self.learning_rate.get(),
            schedule: self.schedule.clone(),
            augment: (&self.augment).into(),
            ..fine_tuning()
        }
    }
}

/// The stage.
pub struct FinePruning;

impl Stage for FinePruning {
    const NAME: &'static str = "purify/fine_pruning";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Pruned;

    fn draws(_: &Params) -> bool {
        true
    }

    fn check(params: &Params) -> Vec<Problem> {
        let mut problems = params.recipe().problems();
        problems.extend(super::repair::held_out_problem(params.held_out));
        problems
    }

    fn resources(params: &Params) -> Resources {
        recipe::resources(None, params.batch_size.get())
    }

    fn run(cx: &Context, params: Params, Inputs { model, clean }: Inputs) -> Result<Pruned> {
        let mut repair = Repair::begin(cx, model, &clean, params.held_out)?;
        let means = mean_features(&mut repair)?;
        let order = least_active(&means);
        let weight = linear_weight(&repair.network)?;
        let step = means.len().div_ceil(100);
        let candidates: Vec<f64> = (1..means.len()).step_by(step).map(|n| n as f64).collect();
        let about = ("n_features", "features removed from the linear layer's input, the least active first");
        let (chosen, pruning) = repair.prune(&candidates, params.max_drop, about, |n, parameters| {
            let removed = &order[..n as usize];
            clear(&mut parameters[weight.clone()], means.len(), removed);
            removed.len()
        })?;
        let n_removed = chosen.unwrap_or(0.0) as usize;
        let recipe = params.recipe();
        let mut hooks = Removed { weight, n_features: means.len(), features: order[..n_removed].to_vec() };
        repair.fit(&recipe, &mut hooks)?;
        cx.headline(format!("{n_removed} of {} features removed", means.len()));
        let summary = format!("{n_removed} of {} features removed, {}", means.len(), recipe.summary());
        let notes = vec![format!("{n_removed} of {} features removed", means.len())];
        Ok(Pruned { model: repair.end(FinePruning::NAME, &summary, notes), pruning })
    }
}

/// Mean of every input of the linear layer over the images to train on.
fn mean_features(repair: &mut Repair) -> Result<Vec<f64>> {
    let mut sums = Vec::new();
    let Repair { cx, images, rows, network, normalise, .. } = repair;
    predict::each_batch(network, images, rows, normalise, |network, _| {
        cx.check_stop()?;
        let (n_features, values) = network.representation("avgpool")?;
        sums.resize(n_features, 0.0);
        for image in values.chunks_exact(n_features) {
            sums.iter_mut().zip(image).for_each(|(sum, &value)| *sum += f64::from(value));
        }
        Ok(())
    })?;
    Ok(sums.into_iter().map(|sum| sum / rows.len() as f64).collect())
}

/// Features by activation, ascending; the first of equals first.
fn least_active(means: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..means.len()).collect();
    order.sort_by(|&a, &b| means[a].total_cmp(&means[b]));
    order
}

/// Where the linear layer's weight [K, features] lies.
fn linear_weight(network: &Network) -> Result<Range<usize>> {
    match network.graph().nodes.last().map(|node| &node.op) {
        Some(Op::Linear { weight, .. }) => Ok(weight.clone()),
        _ => Err(Error::stage("the network does not end in a linear layer")),
    }
}

/// Zeroes the columns `features` of `weight` [K, n_features].
fn clear(weight: &mut [f32], n_features: usize, features: &[usize]) {
    for row in weight.chunks_exact_mut(n_features) {
        features.iter().for_each(|&feature| row[feature] = 0.0);
    }
}

/// Keeps removed features removed.
struct Removed {
    weight: Range<usize>,
    n_features: usize,
    features: Vec<usize>,
}

impl Hooks for Removed {
    fn backward(&mut self, network: &mut Network, step: &Step) -> Result<()> {
        network.backward(step.grad_logits)?;
        // Without a gradient, weights that are 0 stay so.
        clear(&mut network.grads_mut()[self.weight.clone()], self.n_features, &self.features);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_active_go_first() {
        assert_eq!(least_active(&[0.3, 0.0, 2.0, 0.0, 0.1]), [1, 3, 4, 0, 2]);
        let mut weight = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        clear(&mut weight, 3, &[0, 2]);
        assert_eq!(weight, [0.0, 2.0, 0.0, 0.0, 5.0, 0.0]);
    }
}
