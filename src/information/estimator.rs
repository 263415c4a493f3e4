//! What an estimator of mutual information is, and the list of them.
//!
//! All estimators read the same thing: the scores that a critic gives to all pairs of a batch, [B, B], joint pairs on
//! the diagonal, the B - 1 other partners of a row as samples of the product of the marginals. They differ in how they
//! turn scores into a value and a gradient, and in what is known to be wrong with the value.
//!
//! # Adding an estimator
//!
//! Write a file beside this one with a [`Bound`] and a `pub const` [`Estimator`] that names it, and add its line to
//! [`ESTIMATORS`] (and the `mod` line that Rust wants). Parameters, tables, `evaluate/estimator_selection` and their
//! documentation follow from the list.

use super::{infonce, mine, nwj, smile};
use crate::kernels::product::Real;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;

/// Every estimator, one line each.
pub const ESTIMATORS: &[Estimator] = &[infonce::INFONCE, mine::MINE, nwj::NWJ, smile::SMILE];

/// An estimator of mutual information.
#[derive(Clone, Copy)]
pub struct Estimator {
    /// The name in pipelines and tables.
    pub name: &'static str,
    /// One sentence.
    pub doc: &'static str,
    /// What its `known_error_nats` is, for readers of a table; empty if it has none.
    pub known_error: &'static str,
    /// The bound, at the beginning of a critic's training.
    pub make: fn(&Constants) -> Box<dyn Bound<f32>>,
}

/// Constants of single estimators.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Constants {
    /// Share of a new batch in MINE's moving average of the partition function, above 0 and at most 1.
    pub mine_rate: f64,
    /// Scores beyond this count as this in SMILE's partition function, in nats, above 0.
    pub smile_clip: f64,
}

impl Default for Constants {
    fn default() -> Constants {
        Constants { mine_rate: 0.01, smile_clip: 5.0 }
    }
}

/// What one row of scores shows: a joint pair, and its first member with the partners of the other pairs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Row {
    /// The term of the joint pair, in nats.
    pub joint: f64,
    /// Logarithm of the row's part of the partition function, a mean over the row's negatives.
    pub partition: f64,
    /// The same before the estimator changed any score.
    pub unclipped: f64,
}

/// From the scores of a batch to a value and a gradient; holds what an estimator remembers from batch to batch.
pub trait Bound<T: Real>: Send {
    /// Whether [`Bound::whole`] must see a batch before [`Bound::rule`] sees its rows.
    fn reads_whole(&self) -> bool {
        false
    }

    /// Sees all scores of a training batch, [n, n].
    fn whole(&mut self, _scores: &[T], _n: usize) {}

    /// Fills `grad` with the gradient of the loss by the scores of row `i`, [n], and says what the row shows.
    fn rule(&mut self, i: usize, scores: &[T], grad: &mut [T]) -> Row;

    /// What row `i` shows, without a gradient.
    fn row(&self, i: usize, scores: &[T]) -> Row;

    /// The contribution of each row, in nats: their mean is the estimate. A partition function inside a logarithm is
    /// pooled over all rows and linearised about the pooled value, so resampling contributions gives its error too.
    fn contributions(&self, rows: &[Row]) -> Vec<f64>;

    /// What no estimate from batches of `batch` pairs can exceed, in nats.
    fn ceiling(&self, _batch: usize) -> Option<f64> {
        None
    }

    /// The size of the error that is known to be in an `estimate` read on `n` pairs, in nats.
    fn known_error(&self, _rows: &[Row], _estimate: f64, _n: usize) -> Option<f64> {
        None
    }
}

/// ln meanⱼ exp sᵢⱼ over the partners j ≠ i.
pub fn log_mean_exp_others<T: Real>(i: usize, scores: &[T]) -> f64 {
    log_mean_exp(scores.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, &score)| score.into()))
}

/// ln mean exp; negative infinity of nothing.
pub fn log_mean_exp(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let max = values.clone().fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY {
        return max;
    }
    let (sum, n) = values.fold((0.0, 0usize), |(sum, n), value| (sum + libm::exp(value - max), n + 1));
    max + libm::log(sum / n as f64)
}

/// Contributions to the Donsker-Varadhan value, mean joint - ln Z: Z pooled over all rows, and its logarithm linearised
/// about the pooled value.
pub fn donsker_varadhan(rows: &[Row]) -> Vec<f64> {
    let log_z = log_mean_exp(rows.iter().map(|row| row.partition));
    rows.iter().map(|row| row.joint - log_z - (libm::exp(row.partition - log_z) - 1.0)).collect()
}

/// The standard deviation of ln Z from `n` samples of the product of the marginals under a perfect critic,
/// √((e^I - 1) / n) (Song and Ermon 2020, theorem 1): what no amount of training removes.
pub fn partition_error(estimate: f64, n: usize) -> f64 {
    (libm::expm1(estimate.max(0.0)) / n.max(1) as f64).sqrt()
}

/// An estimator chosen by name, as a parameter.
#[derive(Clone, Copy)]
pub struct Chosen(pub &'static Estimator);

impl Chosen {
    /// The estimator called `name`.
    pub fn named(name: &str) -> Option<Chosen> {
        ESTIMATORS.iter().find(|estimator| estimator.name == name).map(Chosen)
    }
}

impl Default for Chosen {
    fn default() -> Chosen {
        Chosen(&ESTIMATORS[0])
    }
}

impl PartialEq for Chosen {
    fn eq(&self, other: &Chosen) -> bool {
        self.0.name == other.0.name
    }
}

impl fmt::Debug for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name)
    }
}

impl Serialize for Chosen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.name)
    }
}

impl<'de> Deserialize<'de> for Chosen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Chosen, D::Error> {
        let name = String::deserialize(deserializer)?;
        Chosen::named(&name).ok_or_else(|| {
            let names: Vec<&str> = ESTIMATORS.iter().map(|estimator| estimator.name).collect();
            serde::de::Error::custom(format!("no estimator `{name}`; there are {}", names.join(", ")))
        })
    }
}

impl JsonSchema for Chosen {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Estimator".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let choice = |e: &Estimator| json_schema!({ "type": "string", "const": e.name, "description": e.doc });
        let choices: Vec<Schema> = ESTIMATORS.iter().map(choice).collect();
        json_schema!({ "oneOf": choices })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::rng::Streams;

    /// A batch of n² scores.
    pub fn scores(n: usize, spread: f64) -> Vec<f64> {
        let mut stream = Streams::new(21, "bound").stream("scores");
        (0..n * n).map(|_| stream.normal() * spread).collect()
    }

    /// The written gradient of a batch of `n` pairs against central differences of `loss`.
    pub fn check_gradient(bound: &mut dyn Bound<f64>, scores: &[f64], n: usize, loss: impl Fn(&[f64]) -> f64) {
        let mut grad = vec![f64::NAN; n * n];
        if bound.reads_whole() {
            bound.whole(scores, n);
        }
        for (i, (row, grad)) in scores.chunks_exact(n).zip(grad.chunks_exact_mut(n)).enumerate() {
            let seen = bound.rule(i, row, grad);
            let read = bound.row(i, row);
            assert!((seen.joint - read.joint).abs() < 1e-12 && (seen.partition - read.partition).abs() < 1e-12);
        }
        for at in 0..n * n {
            let moved = |step: f64| {
                let mut moved = scores.to_vec();
                moved[at] += step;
                loss(&moved)
            };
            let numeric = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            let written = grad[at];
            assert!((numeric - written).abs() < 1e-8 * (1.0 + written.abs()), "score {at}: {written} {numeric}");
        }
    }

    /// The estimate of a batch.
    pub fn value(bound: &dyn Bound<f64>, scores: &[f64], n: usize) -> f64 {
        let rows: Vec<Row> = scores.chunks_exact(n).enumerate().map(|(i, row)| bound.row(i, row)).collect();
        bound.contributions(&rows).iter().sum::<f64>() / n as f64
    }

    #[test]
    fn log_means() {
        assert!((log_mean_exp_others(1, &[1.0, 50.0, 1.0]) - 1.0).abs() < 1e-12);
        assert!((log_mean_exp([1000.0, 1000.0 + 3f64.ln()].into_iter()) - 1000.0 - 2f64.ln()).abs() < 1e-12);
        assert_eq!(log_mean_exp(std::iter::empty()), f64::NEG_INFINITY);
    }

    /// Linearising about the pooled partition leaves the value as it is.
    #[test]
    fn contributions_have_the_value_as_their_mean() {
        let rows: Vec<Row> = (0..7)
            .map(|k| Row { joint: f64::from(k) * 0.3, partition: (f64::from(k) - 3.0).sin(), unclipped: 0.0 })
            .collect();
        let of = |f: fn(&Row) -> f64| rows.iter().map(f).sum::<f64>() / 7.0;
        let want = of(|row| row.joint) - of(|row| row.partition.exp()).ln();
        let mean = donsker_varadhan(&rows).iter().sum::<f64>() / 7.0;
        assert!((mean - want).abs() < 1e-12, "{mean} {want}");
    }

    #[test]
    fn names_are_read_and_the_unknown_is_refused() {
        for estimator in ESTIMATORS {
            let text = serde_json::to_string(&Chosen(estimator)).unwrap();
            assert_eq!(serde_json::from_str::<Chosen>(&text).unwrap().0.name, estimator.name);
        }
        let error = serde_json::from_str::<Chosen>("\"club\"").unwrap_err().to_string();
        assert!(error.starts_with("no estimator `club`; there are infonce, mine"), "{error}");
    }
}
