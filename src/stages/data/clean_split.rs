//! Sets clean training images aside for a defender.
//!
//! Published defences assume a few clean images: 5 % of the training set in BackdoorBench, 1 % in FIP and RNP. The
//! split is an artifact of its own, so that all defences of a comparison get the same images. `remainder` holds the
//! other training images: poison it, instead of the whole dataset, for a defender whose images the attacker's
//! training set does not contain.

use crate::artifact::{CleanSplit, Dataset};
use crate::error::{Error, Result};
use crate::param::{Count, Fraction};
use crate::rng::Stream;
use crate::stage::{Context, Problem, Resources, Stage};
use crate::stages::poison::selection::check_clean;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Sets clean training images aside for a defender.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// How many images.
    pub size: Option<Count>,
    /// Which share of the training images, rounded down; 0.05 if neither this nor `size` is given.
    pub share: Option<Fraction>,
    /// Whether every class gives the same number of images. What does not divide goes to the first classes, one
    /// image each; a class with too few images gives all of them.
    pub balanced: bool,
}

/// BackdoorBench's `ratio` of clean data for every defence.
const SHARE: Fraction = match Fraction::new(0.05) {
    Some(share) => share,
    None => Fraction::ONE,
};

crate::ports! {
    /// What is split.
    pub struct Inputs {
        /// A clean dataset.
        dataset: Dataset,
    }
}

crate::ports! {
    /// The two parts.
    pub struct Outputs => {
        /// The images set aside.
        split: CleanSplit,
        /// The other training images, with the whole test set.
        remainder: Dataset,
    }
}

/// The stage.
pub struct Split;

impl Stage for Split {
    const NAME: &'static str = "data/clean_split";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn draws(_: &Params) -> bool {
        true
    }

    fn check(params: &Params) -> Vec<Problem> {
        match (params.size, params.share) {
            (Some(_), Some(_)) => vec![Problem {
                parameter: "share",
                message: "stands beside `size`".into(),
                hint: Some("give one of them".into()),
            }],
            (None, Some(share)) if share.get() == 0.0 => vec![Problem {
                parameter: "share",
                message: "must be above 0".into(),
                hint: Some("a defence needs at least one image".into()),
            }],
            _ => Vec::new(),
        }
    }

    fn resources(_: &Params) -> Resources {
        Resources { parallel: false, gpu: false, memory_mib: 512 }
    }

    fn run(cx: &Context, params: Params, inputs: Inputs) -> Result<Outputs> {
        let dataset = inputs.dataset;
        check_clean(&dataset)?;
        let n = dataset.train.len();
        let size = match params.size {
            Some(size) => size.get(),
            None => params.share.unwrap_or(SHARE).of(n),
        };
        if size == 0 || size > n {
            return Err(Error::user(format!("{size} clean images asked for, and the training set has {n}"))
                .hint("set `size`, or another `share`"));
        }
        let stream = cx.rng("clean-split");
        let rows = if params.balanced {
            balanced_rows(&dataset.train.true_label, dataset.about.classes.len(), size, &stream)
        } else {
            stream.at(0).pick(&(0..n).collect::<Vec<_>>(), size)
        };

        let mut is_aside = vec![false; n];
        for &row in &rows {
            is_aside[row] = true;
        }
        let others: Vec<usize> = (0..n).filter(|&row| !is_aside[row]).collect();
        cx.headline(format!("{} images set aside, {} left", rows.len(), others.len()));
        let split = CleanSplit::of(&dataset, &rows);
        Ok(Outputs { split, remainder: Dataset { train: dataset.train.select(&others), ..dataset } })
    }
}

/// `size` rows, as evenly over the classes as they allow, ascending. Class c draws from sub-stream c.
fn balanced_rows(classes: &[i64], n_classes: usize, size: usize, stream: &Stream) -> Vec<usize> {
    let mut members = vec![Vec::new(); n_classes];
    for (row, &class) in classes.iter().enumerate() {
        members[class as usize].push(row);
    }
    let available: Vec<usize> = members.iter().map(Vec::len).collect();
    let mut rows = Vec::with_capacity(size);
    for (class, n) in even_shares(size, &available).into_iter().enumerate() {
        rows.extend(stream.at(class as u64).pick(&members[class], n));
    }
    rows.sort_unstable();
    rows
}

/// Splits `total`, at most the sum of `available`, into parts as equal as possible, each at most what is available.
fn even_shares(total: usize, available: &[usize]) -> Vec<usize> {
    let mut shares = vec![0; available.len()];
    let mut left = total;
    while left > 0 {
        let open: Vec<usize> = (0..shares.len()).filter(|&class| shares[class] < available[class]).collect();
        if open.is_empty() {
            break;
        }
        // At least one each, so that the rest goes to the first ones.
        let step = (left / open.len()).max(1);
        for class in open {
            let more = step.min(available[class] - shares[class]).min(left);
            shares[class] += more;
            left -= more;
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stages::poison::selection::tests::dataset;

    fn run(params: Params, dataset: Dataset) -> Result<Outputs> {
        Split::run(&Context::for_test(3, Split::NAME), params, Inputs { dataset })
    }

    fn sized(size: usize, balanced: bool) -> Params {
        Params { size: Count::new(size), share: None, balanced }
    }

    #[test]
    fn the_parts_are_disjoint_and_complete() {
        for balanced in [false, true] {
            let whole = dataset(100, 10, 5, (2, 2));
            let Outputs { split, remainder } = run(sized(20, balanced), whole.clone()).unwrap();
            assert_eq!((split.images.len(), remainder.train.len()), (20, 80));
            let mut index: Vec<i64> = split.images.index.iter().chain(&remainder.train.index).copied().collect();
            index.sort_unstable();
            assert_eq!(index, (0..100).collect::<Vec<_>>());
            for (i, &index) in split.images.index.iter().enumerate() {
                assert_eq!(split.images.image(i), whole.train.image(index as usize));
                assert_eq!(split.images.label[i], whole.train.label[index as usize]);
            }
            assert_eq!(remainder.test.images(), whole.test.images());
            let n_of_class = |class| split.images.label.iter().filter(|&&label| label == class).count();
            assert!(!balanced || (0..5).all(|class| n_of_class(class) == 4));
        }
    }

    #[test]
    fn sizes() {
        let n = |params: Params| run(params, dataset(60, 4, 3, (1, 1))).map(|made| made.split.images.len());
        assert_eq!(n(Params::default()).unwrap(), 3);
        assert_eq!(n(Params { share: Fraction::new(0.1), ..Params::default() }).unwrap(), 6);
        assert_eq!(n(sized(60, true)).unwrap(), 60);
        let error = n(sized(61, false)).unwrap_err().to_string();
        assert_eq!(error, "61 clean images asked for, and the training set has 60");
        assert!(n(Params { share: Fraction::new(0.001), ..Params::default() }).is_err());
    }

    #[test]
    fn shares_are_even() {
        let check =
            |total, available: &[usize], expected: &[usize]| assert_eq!(even_shares(total, available), expected);
        check(10, &[9, 9], &[5, 5]);
        check(11, &[9, 9, 9], &[4, 4, 3]);
        check(10, &[1, 9, 9], &[1, 5, 4]);
        check(3, &[0, 2, 2], &[0, 2, 1]);
        check(2, &[9, 9, 9], &[1, 1, 0]);
        check(12, &[1, 2, 9], &[1, 2, 9]);
    }

    #[test]
    fn poisoned_datasets_are_refused() {
        let cx = Context::for_test(0, "poison/badnet");
        let inputs = crate::stages::poison::badnet::Inputs { clean: dataset(20, 4, 2, (8, 8)) };
        let poisoned = crate::stages::poison::badnet::BadNet::run(&cx, Default::default(), inputs).unwrap();
        let error = run(sized(2, false), poisoned).map(|_| ()).unwrap_err().to_string();
        assert_eq!(error, "expected a clean dataset, and `fake` is poisoned (`badnet`)");
    }

    #[test]
    fn size_and_share_exclude_each_other() {
        let both = Params { share: Fraction::new(0.1), ..sized(3, false) };
        assert_eq!(Split::check(&both).len(), 1);
        assert_eq!(Split::check(&Params { share: Fraction::new(0.0), ..Params::default() }).len(), 1);
        assert!(Split::check(&sized(3, true)).is_empty());
    }
}
