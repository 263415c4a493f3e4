//! Activation clustering: the images of a class fall into two clusters when some of them are poisoned.
//!
//! Chen et al., "Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering", 2018, arXiv:1811.03728.
//! Per assigned label: representations before the classifying layer, their principal components, 2-means. The smaller
//! cluster holds the suspects
//!
//! * in every class (`smaller`, which takes up to half of every class for poisoned),
//! * where it is smaller than `size_threshold` of the class (`relative-size`), or
//! * where the mean silhouette of the two clusters exceeds `silhouette_threshold` (`silhouette`; the paper saw 0.10 to
//!   0.15 between clean and poisoned classes).
//!
//! Differs from the paper: principal components instead of independent ones, which span the same space. The clusters
//! are over the whole class; BackdoorBench's defence clusters each mini-batch by itself, numbers clusters anew in each,
//! and never reduces the dimension, which fits the chance-level rows of its leaderboard.

use super::detection::{Scores, Verdict, blinded, by_label, open, representations, samples, select};
use crate::artifact::table::Column;
use crate::artifact::{Model, Packed, Table};
use crate::embedding::pca::Pca;
use crate::embedding::silhouette;
use crate::error::Result;
use crate::nn::predict;
use crate::param::{Count, Fraction, valid};
use crate::rng::Stream;
use crate::stage::{Context, Resources, Stage};
use crate::stages::train::recipe;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Takes the smaller of two clusters of a class's representations for poisoned (activation clustering).
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The layer whose representations are clustered, averaged over positions.
    pub layer: String,
    /// Principal components that are kept, at most.
    pub components: Count,
    /// In which classes the smaller cluster is taken for poisoned.
    pub rule: Rule,
    /// With `relative-size`: largest share of the class.
    pub size_threshold: Fraction,
    /// With `silhouette`: least mean silhouette.
    pub silhouette_threshold: Fraction,
    /// Starts of 2-means; the clustering with the least sum of squared distances counts.
    pub restarts: Count,
}

/// In which classes the smaller cluster is taken for poisoned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// In all of them.
    Smaller,
    /// Where it is small.
    RelativeSize,
    /// Where the clusters lie apart.
    Silhouette,
}

impl Default for Params {
    fn default() -> Params {
        Params {
            layer: "avgpool".into(),
            components: const { valid(Count::new(10)) },
            rule: Rule::Smaller,
            // The default of the Adversarial Robustness Toolbox.
            size_threshold: const { valid(Fraction::new(0.35)) },
            silhouette_threshold: const { valid(Fraction::new(0.15)) },
            restarts: const { valid(Count::new(10)) },
        }
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
        /// The two clusters of every class.
        classes: Table,
        /// A row for each training image: its score, and whether it is a suspect.
        samples: Table,
    }
}

/// The stage.
pub struct ActivationClustering;

impl Stage for ActivationClustering {
    const NAME: &'static str = "evaluate/activation_clustering";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn draws(_: &Params) -> bool {
        true
    }

    fn resources(_: &Params) -> Resources {
        recipe::resources(None, predict::BATCH)
    }

    fn run(cx: &Context, params: Params, Inputs { model, dataset }: Inputs) -> Result<Outputs> {
        let seen = blinded(&dataset.train);
        let about = &dataset.about;
        let (mut network, normalise) = open(cx, &model, about, &seen)?;
        let (width, points) = representations(cx, (&mut network, &normalise), &seen, &params.layer)?;
        let mut verdicts = vec![Verdict { score: 0.0, is_suspect: false }; seen.len()];
        let mut classes = classes_table(&params);
        for (class, rows) in by_label(&seen, about.classes.len()).iter().enumerate() {
            cx.check_stop()?;
            let stream = cx.rng("starts").child(&class.to_string());
            let clusters = Clusters::of(&select(&points, width, rows), width, &params, &stream)?;
            let is_flagged = clusters.is_flagged(&params);
            for (&row, &is_smaller) in rows.iter().zip(&clusters.is_smaller) {
                let share = if is_smaller { clusters.share() } else { 1.0 - clusters.share() };
                verdicts[row] = Verdict { score: 1.0 - share, is_suspect: is_flagged && is_smaller };
            }
            classes.push(vec![
                class.into(),
                about.classes[class].as_str().into(),
                rows.len().into(),
                (100.0 * clusters.share()).into(),
                clusters.silhouette.into(),
                is_flagged.into(),
            ]);
            cx.progress(class as u64 + 1, about.classes.len() as u64, "classes", "clustered");
        }
        let scores = Scores::count(&verdicts, &dataset.train.role)?;
        cx.headline(scores.headline());
        let all: Vec<usize> = (0..seen.len()).collect();
        let definition = "share of the class in the other cluster: above 0.5 in the smaller one";
        Ok(Outputs {
            scores: scores.table(ActivationClustering::NAME, "training", about),
            classes,
            samples: samples(&dataset.train, "training", &all, &verdicts, definition),
        })
    }
}

fn classes_table(params: &Params) -> Table {
    let flagged = match params.rule {
        Rule::Smaller => "always, if there are two clusters".to_string(),
        Rule::RelativeSize => format!("if it has less than {} % of the class", 100.0 * params.size_threshold.get()),
        Rule::Silhouette => format!("if the mean silhouette exceeds {}", params.silhouette_threshold.get()),
    };
    Table::new(vec![
        Column::new("class", "by assigned label"),
        Column::new("name", "of the class"),
        Column::new("n_images", "training images of that label"),
        Column::new("smaller_share", "images in the smaller of two clusters").unit("%").digits(1),
        Column::new("silhouette", "mean silhouette of the two clusters, in the space that was clustered").digits(3),
        Column::new("is_flagged", &format!("whether the smaller cluster is taken for poisoned: {flagged}")),
    ])
}

/// Two clusters of a class.
#[derive(Clone, Debug)]
struct Clusters {
    /// Whether each image lies in the smaller cluster; among equals, the one without the first image.
    is_smaller: Vec<bool>,
    /// The mean silhouette; none if there are not two clusters.
    silhouette: Option<f64>,
}

impl Clusters {
    /// Of `points`, [n, width].
    fn of(points: &[f32], width: usize, params: &Params, stream: &Stream) -> Result<Clusters> {
        let n = points.len() / width.max(1);
        let pca = Pca::fit(points, width, params.components.get())?;
        let kept = pca.variances.len();
        if n < 2 || kept == 0 {
            return Ok(Clusters { is_smaller: vec![false; n], silhouette: None });
        }
        let scores = pca.scores(points, kept);
        let mut best: Option<(f64, Vec<bool>)> = None;
        for start in 0..params.restarts.get() {
            let found = two_means(&scores, kept, &mut stream.at(start as u64));
            if best.as_ref().is_none_or(|best| found.0 < best.0) {
                best = Some(found);
            }
        }
        let mut is_smaller = best.map_or_else(|| vec![false; n], |(_, is_second)| is_second);
        let n_marked = is_smaller.iter().filter(|&&is_marked| is_marked).count();
        if 2 * n_marked > n || (2 * n_marked == n && is_smaller[0]) {
            is_smaller.iter_mut().for_each(|is_marked| *is_marked = !*is_marked);
        }
        let groups: Vec<usize> = is_smaller.iter().map(|&is_marked| usize::from(is_marked)).collect();
        let silhouettes = silhouette::silhouettes(&scores, kept, &[&groups]).pop().flatten();
        let silhouette = silhouettes.map(|all| all.iter().sum::<f64>() / all.len() as f64);
        Ok(Clusters { is_smaller, silhouette })
    }

    /// Share of the smaller cluster.
    fn share(&self) -> f64 {
        self.is_smaller.iter().filter(|&&is_marked| is_marked).count() as f64 / self.is_smaller.len().max(1) as f64
    }

    fn is_flagged(&self, params: &Params) -> bool {
        let share = self.share();
        let is_met = match params.rule {
            Rule::Smaller => true,
            Rule::RelativeSize => share < params.size_threshold.get(),
            Rule::Silhouette => self.silhouette.is_some_and(|value| value > params.silhouette_threshold.get()),
        };
        share > 0.0 && is_met
    }
}

/// Rounds of 2-means at most; it ends when no point moves, after a dozen as a rule.
const ROUNDS: usize = 300;

/// Lloyd's algorithm for two clusters from a k-means++ start (Arthur & Vassilvitskii 2007): the sum of squared
/// distances to the centres, and whether each point lies in the second cluster.
fn two_means(points: &[f32], width: usize, stream: &mut Stream) -> (f64, Vec<bool>) {
    let n = points.len() / width;
    let point = |i: usize| &points[i * width..(i + 1) * width];
    let distance = |i: usize, centre: &[f64]| -> f64 {
        point(i).iter().zip(centre).map(|(&value, centre)| (f64::from(value) - centre).powi(2)).sum()
    };
    let centre = |i: usize| -> Vec<f64> { point(i).iter().copied().map(f64::from).collect() };
    let first = centre(stream.below(n as u64) as usize);
    let weights: Vec<f64> = (0..n).map(|i| distance(i, &first)).collect();
    let mut left = stream.uniform() * weights.iter().sum::<f64>();
    let second = weights.iter().position(|&weight| {
        left -= weight;
        weight > 0.0 && left < 0.0
    });
    let farthest = || (0..n).fold(0, |best, i| if weights[i] > weights[best] { i } else { best });
    let mut centres = [first, centre(second.unwrap_or_else(farthest))];
    let mut is_second = vec![false; n];
    let mut sum = f64::INFINITY;
    for _ in 0..ROUNDS {
        let nearest: Vec<(f64, bool)> = (0..n)
            .map(|i| {
                let (a, b) = (distance(i, &centres[0]), distance(i, &centres[1]));
                if b < a { (b, true) } else { (a, false) }
            })
            .collect();
        sum = nearest.iter().map(|(distance, _)| distance).sum();
        let moved: Vec<bool> = nearest.into_iter().map(|(_, is_second)| is_second).collect();
        let is_settled = moved == is_second;
        is_second = moved;
        for (number, centre) in centres.iter_mut().enumerate() {
            let members = (0..n).filter(|&i| usize::from(is_second[i]) == number);
            let n_members = members.clone().count();
            if n_members > 0 {
                centre.fill(0.0);
                members.for_each(|i| centre.iter_mut().zip(point(i)).for_each(|(c, &v)| *c += f64::from(v)));
                centre.iter_mut().for_each(|value| *value /= n_members as f64);
            }
        }
        if is_settled {
            break;
        }
    }
    (sum, is_second)
}

#[cfg(test)]
mod tests {
    use super::super::detection::tests::{shuffled, small, verdicts};
    use super::*;
    use crate::rng::Streams;

    fn stream() -> Stream {
        Streams::new(0, "evaluate/test").stream("starts")
    }

    /// Two clouds in 20 dimensions, of `sizes` points and standard deviation 1, `distance` apart; in turn as long as
    /// both have points.
    fn clouds(sizes: (usize, usize), distance: f32) -> (Vec<f32>, Vec<bool>) {
        let n = sizes.0 + sizes.1;
        let mut points = Streams::new(3, "evaluate/test").stream("points").normals(20 * n, 1.0);
        let is_other: Vec<bool> = (0..n).map(|i| i % 2 == 1 && i / 2 < sizes.1).collect();
        for (point, _) in points.chunks_exact_mut(20).zip(&is_other).filter(|(_, is_other)| **is_other) {
            point.iter_mut().for_each(|value| *value += distance / 20f32.sqrt());
        }
        (points, is_other)
    }

    #[test]
    fn two_clouds_are_told_apart() {
        let check = |sizes: (usize, usize)| {
            let (points, is_other) = clouds(sizes, 12.0);
            let clusters = Clusters::of(&points, 20, &Params::default(), &stream()).unwrap();
            assert_eq!(clusters.is_smaller, is_other, "{sizes:?}");
            assert!((clusters.share() - sizes.1 as f64 / (sizes.0 + sizes.1) as f64).abs() < 1e-12);
            clusters
        };
        let clusters = check((90, 10));
        let flagged = |rule: Rule, size: f64, silhouette: f64| {
            let (size_threshold, silhouette_threshold) =
                (Fraction::new(size).unwrap(), Fraction::new(silhouette).unwrap());
            clusters.is_flagged(&Params { rule, size_threshold, silhouette_threshold, ..Params::default() })
        };
        assert!(flagged(Rule::Smaller, 0.0, 1.0));
        assert!(flagged(Rule::RelativeSize, 0.11, 1.0) && !flagged(Rule::RelativeSize, 0.1, 0.0));
        let value = clusters.silhouette.unwrap();
        assert!(flagged(Rule::Silhouette, 0.0, value - 0.01) && !flagged(Rule::Silhouette, 1.0, value + 0.01));
        check((50, 50));
        check((52, 48));
    }

    #[test]
    fn one_cloud_has_a_low_silhouette() {
        let silhouette = |distance: f32| {
            let (points, _) = clouds((100, 60), distance);
            Clusters::of(&points, 20, &Params::default(), &stream()).unwrap().silhouette.unwrap()
        };
        let (one, two) = (silhouette(0.0), silhouette(12.0));
        assert!(one < 0.15 && two > 0.4, "{one}, {two}");
    }

    /// Points 0, 1, 2 and 10, 11: centres 1 and 10.5, squared distances 1 + 0 + 1 + 1/4 + 1/4.
    #[test]
    fn two_means_by_hand() {
        for start in 0..10 {
            let (sum, is_second) = two_means(&[0.0, 10.0, 1.0, 11.0, 2.0], 1, &mut stream().at(start));
            assert!((sum - 2.5).abs() < 1e-12, "{sum}");
            assert!(is_second[0] != is_second[1] && is_second[1] == is_second[3] && is_second[0] == is_second[2]);
        }
    }

    #[test]
    fn classes_without_two_clusters() {
        let check = |points: &[f32], n: usize| {
            let clusters = Clusters::of(points, 2, &Params::default(), &stream()).unwrap();
            assert_eq!(clusters.is_smaller, vec![false; n]);
            assert!(clusters.silhouette.is_none() && !clusters.is_flagged(&Params::default()));
        };
        check(&[], 0);
        check(&[1.0, 2.0], 1);
        check(&[1.0, 2.0, 1.0, 2.0, 1.0, 2.0], 3);
    }

    #[test]
    fn verdicts_do_not_depend_on_roles() {
        let run = |dataset: Packed| {
            let cx = Context::for_test(0, ActivationClustering::NAME);
            ActivationClustering::run(&cx, Params::default(), Inputs { model: small().0, dataset }).unwrap()
        };
        let (one, other) = (run(small().1), run(shuffled(small().1)));
        assert_eq!(verdicts(&one.samples), verdicts(&other.samples));
        assert_ne!(one.scores, other.scores);
        assert_eq!((one.samples.rows.len(), one.classes.rows.len()), (60, 3));
        let unknown = Params { layer: "layer9".into(), ..Params::default() };
        let inputs = Inputs { model: small().0, dataset: small().1 };
        let error = ActivationClustering::run(&Context::for_test(0, "evaluate/test"), unknown, inputs);
        assert_eq!(error.map(|_| ()).unwrap_err().to_string(), "the model has no layer `layer9`");
    }
}
