//! Spectral signatures: poisoned images stand out along the direction in which their class varies most.
//!
//! Tran, Li, Madry, "Spectral Signatures in Backdoor Attacks", NeurIPS 2018, arXiv:1811.00636, algorithm 1. Per
//! assigned label: representations R before the classifying layer, minus their mean; v is the top right singular vector
//! of R; the score of an image is `<v, r>^2`, and the `remove` share of the class with the largest scores are the
//! suspects. The paper removes 1.5 epsilon, epsilon being an upper bound on the poisoned share of a class; 0.15 in
//! BackdoorBench.
//!
//! Differs from BackdoorBench's code: there v meets representations without their mean taken off, so that the score is
//! mostly the mean's; here it is taken off, as in the paper.

use super::detection::{Scores, Verdict, blinded, by_label, open, representations, samples, select};
use crate::artifact::table::{Cell, Column};
use crate::artifact::{Model, Packed, Table};
use crate::embedding::pca::Pca;
use crate::error::Result;
use crate::nn::predict;
use crate::param::{Fraction, valid};
use crate::stage::{Context, Resources, Stage};
use crate::stages::train::recipe;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Takes the images that stand out most along the first principal component of their class for poisoned (spectral
/// signatures).
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The layer whose representations are looked at, averaged over positions.
    pub layer: String,
    /// Share of each class that is taken for poisoned; the number is rounded down.
    pub remove: Fraction,
}

impl Default for Params {
    fn default() -> Params {
        Params { layer: "avgpool".into(), remove: const { valid(Fraction::new(0.15)) } }
    }
}

crate::ports! {
    /// What is judged, and through which model.
    pub struct Inputs {
        /// A model that was trained on the dataset.
        model: Model,
        /// The training images are judged; their roles are read only to count the verdicts.
        dataset: Packed,
    }
}

crate::ports! {
    /// What comes out.
    pub struct Outputs => {
        /// How many poisoned images are suspects, and how many others.
        scores: Table,
        /// How far each class varies along its first direction.
        classes: Table,
        /// A row for each training image: its score, and whether it is a suspect.
        samples: Table,
    }
}

/// The stage.
pub struct SpectralSignatures;

impl Stage for SpectralSignatures {
    const NAME: &'static str = "evaluate/spectral_signatures";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn resources(_: &Params) -> Resources {
        recipe::resources(None, predict::BATCH)
    }

    fn run(cx: &Context, params: Params, Inputs { model, dataset }: Inputs) -> Result<Outputs> {
        let seen = blinded(&dataset.train);
        let about = &dataset.about;
        let (mut network, normalise) = open(cx, &model, about, &seen)?;
        let (width, points) = representations(cx, (&mut network, &normalise), &seen, &params.layer)?;
        let mut verdicts = vec![Verdict { score: 0.0, is_suspect: false }; seen.len()];
        let mut classes = Table::new(vec![
            Column::new("class", "by assigned label"),
            Column::new("name", "of the class"),
            Column::new("n_images", "training images of that label"),
            Column::new("n_suspects", "those taken for poisoned"),
            Column::new("first_share", "share of the class's variance along its first principal component")
                .unit("%")
                .digits(1),
        ]);
        for (class, rows) in by_label(&seen, about.classes.len()).iter().enumerate() {
            cx.check_stop()?;
            let signature = Signature::of(&select(&points, width, rows), width)?;
            let of_class = signature.verdicts(params.remove);
            classes.push(vec![
                class.into(),
                about.classes[class].as_str().into(),
                rows.len().into(),
                of_class.iter().filter(|verdict| verdict.is_suspect).count().into(),
                signature.first_share.map_or(Cell::None, |share| (100.0 * share).into()),
            ]);
            rows.iter().zip(of_class).for_each(|(&row, verdict)| verdicts[row] = verdict);
            cx.progress(class as u64 + 1, about.classes.len() as u64, "classes", "decomposed");
        }
        let scores = Scores::count(&verdicts, &dataset.train.role)?;
        cx.headline(scores.headline());
        let all: Vec<usize> = (0..seen.len()).collect();
        let definition = "squared projection of the centred representation on its class's first singular vector";
        Ok(Outputs {
            scores: scores.table(SpectralSignatures::NAME, "training", about),
            classes,
            samples: samples(&dataset.train, "training", &all, &verdicts, definition),
        })
    }
}

/// A class along its first direction.
struct Signature {
    /// <v, r>^2 of every image.
    scores: Vec<f64>,
    /// Share of the variance along v; none if nothing varies.
    first_share: Option<f64>,
}

impl Signature {
    /// Of `points`, [n, width].
    fn of(points: &[f32], width: usize) -> Result<Signature> {
        let pca = Pca::fit(points, width, 1)?;
        let scores = pca.scores(points, 1).iter().map(|&along| f64::from(along).powi(2)).collect();
        Ok(Signature { scores, first_share: pca.variances.first().map(|first| first / pca.total_variance) })
    }

    /// The largest scores are the suspects; the first of equals.
    fn verdicts(&self, remove: Fraction) -> Vec<Verdict> {
        let mut order: Vec<usize> = (0..self.scores.len()).collect();
        order.sort_by(|&a, &b| self.scores[b].total_cmp(&self.scores[a]));
        let mut verdicts: Vec<Verdict> =
            self.scores.iter().map(|&score| Verdict { score, is_suspect: false }).collect();
        let n = remove.of(self.scores.len());
        order[..n].iter().for_each(|&i| verdicts[i].is_suspect = true);
        verdicts
    }
}

#[cfg(test)]
mod tests {
    use super::super::detection::tests::{shuffled, small, verdicts};
    use super::*;
    use crate::rng::Streams;

    fn suspects(points: &[f32], width: usize, remove: f64) -> Vec<usize> {
        let verdicts = Signature::of(points, width).unwrap().verdicts(Fraction::new(remove).unwrap());
        (0..verdicts.len()).filter(|&i| verdicts[i].is_suspect).collect()
    }

    /// (100, 50) + t (3, 4) / 5, t = -1, -1, -1, -1, 4: v = (3, 4) / 5, scores 1, 1, 1, 1, 16, all variance along it.
    /// Without centring the mean would decide: <v, mean> = 100, so 99^2 to 104^2.
    #[test]
    fn scores_by_hand() {
        let points: Vec<f32> =
            [-1.0, -1.0, 4.0, -1.0, -1.0].iter().flat_map(|t| [100.0 + 0.6 * t, 50.0 + 0.8 * t]).collect();
        let signature = Signature::of(&points, 2).unwrap();
        for (found, expected) in signature.scores.iter().zip([1.0, 1.0, 16.0, 1.0, 1.0]) {
            assert!((found - expected).abs() < 1e-3, "{found}, {expected}");
        }
        assert!((signature.first_share.unwrap() - 1.0).abs() < 1e-6);
        assert_eq!(suspects(&points, 2, 0.2), [2]);
        assert_eq!(suspects(&points, 2, 0.0), [0; 0]);
        assert_eq!(suspects(&points, 2, 1.0), [0, 1, 2, 3, 4]);
    }

    /// 90 clean points with deviation 1 and 10 that lie 12 away: 90 of 100 removed in the right order.
    #[test]
    fn a_shifted_tenth_stands_out() {
        let mut points = Streams::new(1, "evaluate/test").stream("points").normals(100 * 16, 1.0);
        for point in points.chunks_exact_mut(16).step_by(10) {
            point[3] += 12.0;
        }
        assert_eq!(suspects(&points, 16, 0.1), (0..100).step_by(10).collect::<Vec<_>>());
        let wider = suspects(&points, 16, 0.15);
        assert!(wider.len() == 15 && (0..100).step_by(10).all(|i| wider.contains(&i)));
    }

    #[test]
    fn classes_that_do_not_vary() {
        let check = |points: &[f32], n: usize| {
            let signature = Signature::of(points, 2).unwrap();
            assert_eq!((signature.scores, signature.first_share), (vec![0.0; n], None));
        };
        check(&[], 0);
        check(&[1.0, 2.0], 1);
        check(&[1.0, 2.0, 1.0, 2.0], 2);
    }

    #[test]
    fn verdicts_do_not_depend_on_roles() {
        let run = |dataset: Packed| {
            let cx = Context::for_test(0, SpectralSignatures::NAME);
            SpectralSignatures::run(&cx, Params::default(), Inputs { model: small().0, dataset }).unwrap()
        };
        let (one, other) = (run(small().1), run(shuffled(small().1)));
        assert_eq!(verdicts(&one.samples), verdicts(&other.samples));
        assert_ne!(one.scores, other.scores);
        // 15 % of 28, 16 and 16 images.
        let n = one.samples.column("is_suspect").unwrap();
        assert_eq!(one.samples.rows.iter().filter(|row| row[n] == Cell::Bool(true)).count(), 4 + 2 + 2);
    }
}
