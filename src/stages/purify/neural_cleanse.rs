//! Neural Cleanse: reverse a trigger for every class, flag the outlier, and unlearn its trigger.
//!
//! Wang et al., "Neural Cleanse" (IEEE S&P 2019). For every class, the smallest patch that sends clean images to it
//! ([`trigger`]); a class whose patch is smaller than the others' by more than two robust deviations is flagged. The
//! model is then fine-tuned on the clean split, a share of which carries the flagged trigger with its true label. A model
//! without a flagged class is returned as it was; tables say so. The port `triggers` makes it a detector.
//!
//! Defaults are BackdoorBench's (`defense/nc.py`).

use super::repair::{Inputs, Repair, fine_tuning};
use crate::artifact::dataset::Pixels;
use crate::artifact::table::Column;
use crate::artifact::{Model, Split, Table};
use crate::error::Result;
use crate::nn::trigger::{self, Found, Search};
use crate::nn::{optim, schedule};
use crate::param::{Count, Fraction, NonNegative, Positive, valid};
use crate::stage::{Context, Problem, Resources, Stage};
use crate::stages::train::fit::{Fit, NoHooks};
use crate::stages::train::recipe::{self, AugmentParams, Recipe};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Anomaly indices above this are flagged (section IV.C of the paper).
const ANOMALOUS: f64 = 2.0;

/// Reverses a trigger for every class, and unlearns those of the classes that it flags.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Most passes over the clean split in the search for a class's trigger.
    pub search_epochs: Count,
    /// Adam's step in the search.
    pub search_rate: Positive,
    /// First weight of the mask's size.
    pub cost: Positive,
    /// Share of images that a trigger must send to its class.
    pub success: Fraction,
    /// Epochs in a row with enough success, or without, after which the cost moves.
    pub patience: Count,
    /// Epochs without a smaller mask that the search waits for.
    pub wait: Count,
    /// Share of the clean images that carry a flagged trigger while it is unlearnt.
    pub stamped: Fraction,
    /// Passes over the clean split while unlearning.
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
    /// Random changes to the images while unlearning.
    pub augment: AugmentParams,
}

impl Default for Params {
    fn default() -> Params {
        Params {
            search_epochs: const { valid(Count::new(80)) },
            search_rate: const { valid(Positive::new(0.1)) },
            cost: const { valid(Positive::new(1e-3)) },
            success: const { valid(Fraction::new(0.98)) },
            patience: const { valid(Count::new(5)) },
            wait: const { valid(Count::new(25)) },
            stamped: const { valid(Fraction::new(0.2)) },
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
    fn search(&self) -> Search {
        Search {
            epochs: self.search_epochs.get(),
            batch_size: self.batch_size.get(),
            rate: self.search_rate.get(),
            cost: self.cost.get(),
            success: self.success.get(),
            patience: self.patience.get(),
            wait: self.wait.get(),
        }
    }

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

crate::ports! {
    /// What it makes.
    pub struct Outputs => {
        /// The model without the flagged triggers, or as it was if no class is flagged.
        model: Model,
        /// One row a class: the size of its trigger, its anomaly index, and whether it is flagged.
        triggers: Table,
    }
}

/// The stage.
pub struct NeuralCleanse;

impl Stage for NeuralCleanse {
    const NAME: &'static str = "purify/neural_cleanse";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn draws(_: &Params) -> bool {
        true
    }

    fn check(params: &Params) -> Vec<Problem> {
        params.recipe().problems()
    }

    fn resources(params: &Params) -> Resources {
        recipe::resources(None, params.batch_size.get())
    }

    fn run(cx: &Context, params: Params, Inputs { model, clean }: Inputs) -> Result<Outputs> {
        let mut repair = Repair::begin(cx, model, &clean, Fraction::ZERO)?;
        let n_classes = clean.about.classes.len();
        let mut found = Vec::with_capacity(n_classes);
        for class in 0..n_classes {
            let source = (repair.images, &repair.rows[..], &repair.normalise);
            let stream = cx.rng("search").child(&class.to_string());
            let how = params.search();
            let one = trigger::search(&mut repair.network, source, class as i64, &how, &stream, || cx.check_stop())?;
            let told = format!("class {class}: size {:.1}, success {:.0} %", one.size, 100.0 * one.success);
            cx.progress(class as u64 + 1, n_classes as u64, "classes", told);
            found.push(one);
        }
        let sizes: Vec<f64> = found.iter().map(|found| found.size).collect();
        let indices = trigger::anomaly_indices(&sizes);
        let flagged: Vec<usize> =
            (0..n_classes).filter(|&c| indices[c].is_some_and(|index| index > ANOMALOUS)).collect();
        let names: Vec<&str> = flagged.iter().map(|&class| clean.about.classes[class].as_str()).collect();
        let recipe = params.recipe();
        let (summary, note) = if flagged.is_empty() {
            ("no class flagged, model unchanged".to_string(), "no class flagged, model unchanged".to_string())
        } else {
            let of_flagged: Vec<&Found> = flagged.iter().map(|&class| &found[class]).collect();
            let n_stamped = params.stamped.of(repair.rows.len());
            let chosen = cx.rng("stamped").pick(&repair.rows, n_stamped);
            let split = stamped(repair.images, &chosen, &of_flagged);
            let fit = Fit { cx, recipe: &recipe, split: &split, rows: &repair.rows, normalise: &repair.normalise };
            fit.run(&mut repair.network, &mut NoHooks)?;
            let note = format!("flagged {}", names.join(", "));
            (format!("{note}, {n_stamped} images stamped, {}", recipe.summary()), note)
        };
        cx.headline(note.clone());
        let triggers = table(&clean.about.classes, &found, &indices);
        Ok(Outputs { model: repair.end(NeuralCleanse::NAME, &summary, vec![note]), triggers })
    }
}

/// `images`, of which the rows `chosen` carry the triggers, in turn where there are several. Labels stay.
fn stamped(images: &Split, chosen: &[usize], triggers: &[&Found]) -> Split {
    let mut pixels = images.images().into_owned();
    let length = images.image_bytes();
    for (&row, found) in chosen.iter().zip(triggers.iter().cycle()) {
        found.trigger.stamp(&mut pixels[row * length..(row + 1) * length]);
    }
    Split { pixels: Pixels::Owned(Arc::new(pixels)), ..images.clone() }
}

fn table(classes: &[String], found: &[Found], indices: &[Option<f64>]) -> Table {
    let mut table = Table::new(vec![
        Column::new("class", "the class that the trigger sends images to"),
        Column::new("size", "sum of the trigger's mask over all pixels").digits(2),
        Column::new("success", "clean images that the trigger sends to the class").unit("%").digits(1),
        Column::new(
            "anomaly_index",
            "(median of sizes - size) / (1.4826 times the median absolute deviation); above 2: an outlier",
        )
        .digits(2),
        Column::new("flagged", "whether the class is taken for a backdoor's target"),
    ]);
    for ((class, found), index) in classes.iter().zip(found).zip(indices) {
        table.push(vec![
            class.as_str().into(),
            found.size.into(),
            (100.0 * found.success).into(),
            (*index).into(),
            index.is_some_and(|index| index > ANOMALOUS).into(),
        ]);
    }
    table
}
