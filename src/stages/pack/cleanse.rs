//! Leaves the training images out that a detector takes for poisoned, so that a classifier can be trained on the
//! others: the second half of data defences such as activation clustering (Chen et al. 2018, section 5) and spectral
//! signatures (Tran et al. 2018, algorithm 1).
//!
//! Test images stay as they are. Which images go is the detector's word alone; roles stay with the images that are
//! left, for the tables.

use crate::artifact::beton::format;
use crate::artifact::dataset::Role;
use crate::artifact::packed::Packing;
use crate::artifact::table::Cell;
use crate::artifact::{Dataset, Packed, Table};
use crate::error::{Error, Result};
use crate::stage::{Context, Resources, Stage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Leaves the training images out that a detector takes for poisoned.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {}

crate::ports! {
    /// What is cleansed, and of what.
    pub struct Inputs {
        /// The packed images that were judged.
        dataset: Packed,
        /// The output `samples` of a detector that judged training images.
        samples: Table,
    }
}

/// The stage.
pub struct Cleanse;

impl Stage for Cleanse {
    const NAME: &'static str = "pack/cleanse";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Packing;

    fn resources(_: &Params) -> Resources {
        Resources { parallel: false, gpu: false, memory_mib: 512 }
    }

    fn run(cx: &Context, _: Params, Inputs { dataset, samples }: Inputs) -> Result<Packing> {
        let Packed { mut about, train, test, triggered } = dataset;
        let is_suspect = suspects(&samples, &train.index)?;
        let kept: Vec<usize> = (0..train.len()).filter(|&row| !is_suspect[row]).collect();
        if kept.is_empty() {
            return Err(Error::stage("every training image is a suspect, so none is left"));
        }
        let n = train.len();
        let train = train.select(&kept);
        if let Some(attack) = &mut about.attack {
            let count = |role: Role| train.role.iter().filter(|&&other| other == role).count();
            (attack.n_backdoor, attack.n_cover) = (count(Role::Backdoor), count(Role::Cover));
        }
        cx.headline(format!("{} of {n} training images left out", n - kept.len()));
        Ok(Packing { dataset: Dataset { about, train, test, triggered }, page_size: format::PAGE_SIZE })
    }
}

/// Whether each training image is a suspect; `index` are the indices of the training images.
fn suspects(samples: &Table, index: &[i64]) -> Result<Vec<bool>> {
    let made = |error: Error| error.hint("bind the output `samples` of a detector, such as `clusters.samples`");
    let column = |name: &str| samples.column(name).map_err(made);
    let (images, row, own, verdict) = (column("images")?, column("row")?, column("index")?, column("is_suspect")?);
    let mut is_suspect = vec![false; index.len()];
    for cells in &samples.rows {
        if cells[images].text() != Some("training") {
            return Err(made(Error::user("the detector judged test images, and training images are left out")));
        }
        let at = cells[row].number().map(|row| row as usize).filter(|&row| row < index.len());
        let Some(at) = at.filter(|&at| cells[own].number() == Some(index[at] as f64)) else {
            return Err(Error::user("the detector judged other training images than those of `dataset`")
                .hint("give both stages the same packed dataset"));
        };
        is_suspect[at] = cells[verdict] == Cell::Bool(true);
    }
    Ok(is_suspect)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stages::evaluate::detection::tests::small;
    use crate::stages::evaluate::detection::{Verdict, samples};

    fn judged(rows: &[usize], dataset: &Packed, part: &str) -> Table {
        let verdicts: Vec<Verdict> = rows.iter().map(|row| Verdict { score: 0.0, is_suspect: row % 10 < 3 }).collect();
        samples(&dataset.train, part, rows, &verdicts, "none")
    }

    fn run(dataset: Packed, samples: Table) -> Result<Packing> {
        Cleanse::run(&Context::for_test(0, Cleanse::NAME), Params {}, Inputs { dataset, samples })
    }

    #[test]
    fn suspects_are_left_out() {
        let dataset = small().1;
        let all: Vec<usize> = (0..60).collect();
        let made = run(dataset.clone(), judged(&all, &dataset, "training")).unwrap().dataset;
        let expected: Vec<i64> = (0..60).filter(|row| row % 10 >= 3).collect();
        assert_eq!(made.train.index, expected);
        // Rows 0, 10, ... are backdoors and suspects; 5, 15, ... covers and none.
        assert_eq!(made.train.role.iter().filter(|&&role| role == Role::Backdoor).count(), 0);
        assert_eq!(made.train.role.iter().filter(|&&role| role == Role::Cover).count(), 6);
        assert_eq!(made.train.image(0), dataset.train.image(3));
        assert_eq!((made.test.len(), made.triggered.unwrap().len()), (12, 12));
        // What was not judged stays.
        let made = run(dataset.clone(), judged(&[0, 1, 7], &dataset, "training")).unwrap().dataset;
        assert_eq!(made.train.index, (2..60).collect::<Vec<i64>>());
    }

    #[test]
    fn what_was_judged_must_fit() {
        let dataset = small().1;
        let check = |samples: Table, message: &str| {
            let error = run(dataset.clone(), samples).map(|_| ()).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        };
        check(judged(&[3], &dataset, "test"), "the detector judged test images");
        let mut moved = dataset.clone();
        moved.train.index.rotate_left(1);
        check(judged(&[3], &moved, "training"), "the detector judged other training images");
        check(Table::default(), "the table has no column `images`");
        let three = Packed { train: dataset.train.select(&[0, 1, 2]), ..dataset.clone() };
        let error = run(three.clone(), judged(&[0, 1, 2], &three, "training")).map(|_| ()).unwrap_err();
        assert_eq!(error.to_string(), "every training image is a suspect, so none is left");
    }
}
