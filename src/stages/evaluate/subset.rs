//! The batches that a loss is looked at on: clean test images, and triggered ones.
//!
//! Curvature depends on the batch. On triggered images with the attacker's label a backdoored model is content and a
//! purified one is not; with their true label it is the other way round.

use super::backdoor::{point_cell, shown};
use crate::artifact::table::{Cell, Column};
use crate::artifact::{Model, Packed, Split};
use crate::error::{Error, Result};
use crate::nn::augment::Normalise;
use crate::nn::batch_loss::BatchLoss;
use crate::param::Count;
use crate::stage::{Context, Named, Problem};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which images, with which labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Subset {
    /// Clean test images, with their labels.
    Clean,
    /// Triggered test images, with the label that the attacker wants; those left out whose class it is.
    Poisoned,
    /// The same images, with their true labels: what a purified model should say.
    Robust,
}

impl Subset {
    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Subset::Clean => "clean",
            Subset::Poisoned => "poisoned",
            Subset::Robust => "robust",
        }
    }
}

/// What is wrong with a list of subsets.
pub fn problem(subsets: &[Subset]) -> Option<Problem> {
    let is_twice = (1..subsets.len()).any(|i| subsets[..i].contains(&subsets[i]));
    let (message, hint) = match subsets {
        [] => ("must not be empty", "leave it out for clean and poisoned images"),
        _ if is_twice => ("a subset is listed twice", "remove one of them"),
        _ => return None,
    };
    Some(Problem { parameter: "subsets", message: message.into(), hint: Some(hint.into()) })
}

/// The images of a subset: the same for every model.
pub struct Chosen<'a> {
    /// The subset.
    pub subset: Subset,
    split: &'a Split,
    rows: Vec<usize>,
    labels: Vec<i64>,
}

impl<'a> Chosen<'a> {
    /// At most `n` images, drawn from the stream `images/clean` or `images/triggered`.
    ///
    /// # Errors
    /// A subset that the dataset does not have.
    pub fn draw(cx: &Context, dataset: &'a Packed, subset: Subset, n: Count) -> Result<Chosen<'a>> {
        let (split, stream) = match (subset, &dataset.triggered) {
            (Subset::Clean, _) => (&dataset.test, "images/clean"),
            (_, Some(triggered)) => (triggered, "images/triggered"),
            (_, None) => {
                let message = format!("the dataset is not poisoned, so it has no `{}` images", subset.name());
                return Err(Error::user(message).hint("set `subsets = [\"clean\"]`, or give a poisoned dataset"));
            }
        };
        let counts = |&row: &usize| subset == Subset::Clean || split.label[row] != split.true_label[row];
        let candidates: Vec<usize> = (0..split.len()).filter(counts).collect();
        let rows = cx.rng(stream).pick(&candidates, n.get());
        if rows.is_empty() {
            return Err(Error::user(format!("the dataset has no test images for the subset `{}`", subset.name())));
        }
        let label = |&row: &usize| if subset == Subset::Robust { split.true_label[row] } else { split.label[row] };
        let labels = rows.iter().map(label).collect();
        Ok(Chosen { subset, split, rows, labels })
    }

    /// Number of images.
    pub fn n(&self) -> usize {
        self.rows.len()
    }

    /// Where they come from.
    pub fn split(&self) -> &Split {
        self.split
    }

    /// The loss on them.
    ///
    /// # Errors
    /// See [`BatchLoss::of_split`].
    pub fn loss(&self, normalise: &Normalise) -> Result<BatchLoss> {
        BatchLoss::of_split(self.split, &self.rows, self.labels.clone(), normalise)
    }
}

/// The first columns of a table with rows about models on subsets, and their cells.
pub struct Who {
    keys: Vec<String>,
}

impl Who {
    /// Of these models.
    pub fn of(models: &[Named<Model>]) -> Who {
        let mut keys: Vec<String> = models.iter().flat_map(|model| model.point.keys().cloned()).collect();
        keys.sort_unstable();
        keys.dedup();
        Who { keys }
    }

    /// Model, keys of the matrix, subset.
    pub fn columns(&self) -> Vec<Column> {
        let mut columns = vec![Column::new("model", "the stage that made the model")];
        columns.extend(self.keys.iter().map(|key| Column::new(key, "value in the matrix")));
        columns.push(Column::new("subset", "the test images, see the notes"));
        columns
    }

    /// The cells of a row.
    pub fn cells(&self, model: &Named<Model>, subset: Subset) -> Vec<Cell> {
        let mut cells = vec![Cell::from(shown(&model.name))];
        cells.extend(self.keys.iter().map(|key| model.point.get(key).map_or(Cell::None, point_cell)));
        cells.push(subset.name().into());
        cells
    }
}

/// What the subsets are, a line each (invariant 10).
pub fn notes(chosen: &[Chosen]) -> Vec<String> {
    let note = |chosen: &Chosen| {
        let what = match chosen.subset {
            Subset::Clean => "clean test images with their labels",
            Subset::Poisoned => "triggered test images with the attacker's label, none of whose class it is",
            Subset::Robust => "triggered test images with their true labels, none of the class that the attacker wants",
        };
        format!("{}: {} {what}", chosen.subset.name(), chosen.n())
    };
    let mut notes: Vec<String> = chosen.iter().map(note).collect();
    notes.push("the loss is the mean cross-entropy, with running statistics and without in-network noise".into());
    notes
}

/// Small models and datasets, for the tests of stages that measure losses.
#[cfg(test)]
pub(super) mod example {
    use super::*;
    use crate::artifact::dataset::{About, LabelRule, Role};
    use crate::artifact::model::ModelInfo;
    use crate::kernels::reference::values;
    use crate::nn::{Architecture, Config, Network};
    use crate::rng::Streams;

    pub(in crate::stages::evaluate) const SIDE: usize = 8;

    /// `n` test images of three classes, every one of them triggered for class 0.
    pub(in crate::stages::evaluate) fn dataset(n: usize) -> Packed {
        let pixels: Vec<u8> =
            values(3, n * SIDE * SIDE * 3).iter().map(|v| (127.0 + 120.0 * v).round() as u8).collect();
        let test = Split::clean((SIDE, SIDE), pixels, (0..n as i64).map(|i| i % 3).collect()).unwrap();
        let label = test.label.iter().map(|&class| LabelRule::AllToOne { target: 0 }.wanted(class, 3)).collect();
        let triggered = Split { label, role: vec![Role::Backdoor; n], ..test.clone() };
        let classes = ["a", "b", "c"].map(String::from).to_vec();
        let about = About { classes, mean: [0.5; 3], std: [0.25; 3], ..About::default() };
        Packed { about, train: test.clone(), test, triggered: Some(triggered) }
    }

    /// A model; with `scale`, its first convolution is so many times as large and the normalisation behind it takes that
    /// back: another point in weight space, the same function.
    pub(in crate::stages::evaluate) fn model(scale: f32) -> Named<Model> {
        let architecture = Architecture::Resnet8;
        let config = Config { architecture, n_classes: 3, size: (SIDE, SIDE), sigma_xt: 0.0, sigma_ty: 0.0 };
        let mut network = Network::new(&config).unwrap();
        network.init(&Streams::new(4, "test").stream("init"));
        // Away from 1 and 0, where scales and shifts begin.
        let noise = values(9, network.n_parameters());
        network.params_mut().iter_mut().zip(noise).for_each(|(p, n)| *p += 0.05 * n);
        let mut weights = network.weights();
        for (name, factor) in [("conv1.weight", scale), ("bn1.running_mean", scale), ("bn1.running_var", scale * scale)]
        {
            weights.get_mut(name).unwrap().values.iter_mut().for_each(|value| *value *= factor);
        }
        let info = ModelInfo {
            architecture: architecture.name().into(),
            n_classes: 3,
            size: (SIDE, SIDE),
            mean: [0.5; 3],
            std: [0.25; 3],
            sigma_xt: 0.0,
            sigma_ty: 0.0,
            data: About::default(),
            history: Vec::new(),
            chosen_by_test: false,
            notes: Vec::new(),
            defence: None,
        };
        Named { name: format!("scaled_{scale}.model"), point: Default::default(), value: Model { info, weights } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(dataset: &Packed, subset: Subset, n: usize) -> Result<(Vec<usize>, Vec<i64>)> {
        let cx = Context::for_test(0, "evaluate/hessian");
        Chosen::draw(&cx, dataset, subset, Count::new(n).unwrap()).map(|chosen| (chosen.rows, chosen.labels))
    }

    #[test]
    fn triggered_images_leave_the_wanted_class_out() {
        let dataset = example::dataset(30);
        let (rows, labels) = chosen(&dataset, Subset::Poisoned, 100).unwrap();
        assert_eq!(rows.len(), 20);
        assert!(rows.iter().all(|row| row % 3 != 0) && labels.iter().all(|&label| label == 0));
        let (same, labels) = chosen(&dataset, Subset::Robust, 100).unwrap();
        assert!(same == rows && same.iter().zip(&labels).all(|(&row, &label)| label == row as i64 % 3));
        let (rows, labels) = chosen(&dataset, Subset::Clean, 12).unwrap();
        assert!(rows.len() == 12 && rows.iter().zip(&labels).all(|(&row, &label)| label == row as i64 % 3));
        assert_eq!(rows, chosen(&dataset, Subset::Clean, 12).unwrap().0);
    }

    #[test]
    fn what_is_not_there_is_named() {
        let clean = Packed { triggered: None, ..example::dataset(6) };
        let error = chosen(&clean, Subset::Robust, 5).unwrap_err();
        assert_eq!(error.message(), "the dataset is not poisoned, so it has no `robust` images");
        assert!(problem(&[]).is_some() && problem(&[Subset::Clean, Subset::Clean]).is_some());
        assert!(problem(&[Subset::Robust, Subset::Clean]).is_none());
    }
}
