//! What the course of mutual information over training says of an attack: how stealthy it is, and which class it
//! targets (`mi.py` and `detect_mi` of the IB-backdoor code).
//!
//! **Stealth.** In every epoch, the values of a curve of the target class and of the curves of the other classes are
//! brought to [0, 1] by their minimum and maximum; the score is |mean over the others of (target - other)|, averaged
//! over the epochs. The sum over both planes, I(X;T) and I(T;Y), and over two curves of the target, its clean samples
//! (`0_clean`) and all of them (`0`), is the attack's: from 0, where the target behaves like the others, to 4.
//!
//! **Outlier.** The mean squared distance, in nats², of each class's curve to those of the other classes; the class
//! farthest from the others is the suspected target.
//!
//! Estimates carry intervals, so scores get theirs: estimates are drawn anew from normal distributions with the widths
//! of their intervals, a thousand times.
//!
//! Differs from the paper's code: an older score of `metric.py`, which brought two numbers to [0, 1] and so always gave
//! 0 and 1, is not offered. Epochs are those of the table unless chosen; the code takes 5, 40 and 100.

use crate::artifact::Table;
use crate::artifact::table::{Cell, Column};
use crate::error::{Error, Result};
use crate::rng::Stream;
use crate::stage::{Context, Resources, Stage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Draws of the estimates within their intervals.
const RESAMPLES: usize = 1000;

/// Scores the stealth of an attack and looks for its target class, from mutual information over the epochs.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The attack's target class. The stealth score knows it; the search for an outlier does not.
    pub target: usize,
    /// Epochs out of those of the table; empty for all of them.
    pub epochs: Vec<usize>,
    /// Classes that the target is compared with; empty for all classes that have a subset in the table.
    pub others: Vec<usize>,
}

crate::ports! {
    /// What is read.
    pub struct Inputs {
        /// Estimates made by `evaluate/information`, with the subsets of whole classes and the target's clean samples.
        table: Table,
    }
}

crate::ports! {
    /// What comes out.
    pub struct Outputs => {
        /// The stealth of the attack, per plane and curve of the target, and in all.
        stealth: Table,
        /// How far each class's curve lies from the others.
        outliers: Table,
    }
}

/// The stage.
pub struct Dynamics;

impl Stage for Dynamics {
    const NAME: &'static str = "evaluate/dynamics";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn draws(_: &Params) -> bool {
        true
    }

    fn resources(_: &Params) -> Resources {
        Resources { parallel: false, gpu: false, memory_mib: 64 }
    }

    fn run(cx: &Context, params: Params, inputs: Inputs) -> Result<Outputs> {
        let curves = Curves::read(&inputs.table, &params)?;
        let mut stealth = stealth_table(params.target);
        let mut outliers = outlier_table();
        let mut headlines = Vec::new();
        for layer in curves.layers() {
            let of_layer = Layer::new(&curves, &layer, &params)?;
            let stream = cx.rng(&format!("resample/{}/{}", layer.0, layer.1));
            let scores = of_layer.stealth();
            let suspects = of_layer.outliers();
            let drawn: Vec<Layer> = (0..RESAMPLES).map(|at| of_layer.draw(stream.at(at as u64))).collect();
            stealth.rows.extend(stealth_rows(&of_layer, &scores, &drawn));
            outliers.rows.extend(outlier_rows(&of_layer, &suspects, &drawn));
            let total: f64 = scores.iter().map(|(_, _, score)| score).sum();
            headlines.push(format!("{} stealth {total:.2}, suspect class {}", layer.0, of_layer.suspect()));
        }
        cx.headline(headlines.join("; "));
        Ok(Outputs { stealth, outliers })
    }
}

/// Both planes, in the order of the tables.
const PLANES: [&str; 2] = ["I(X;T)", "I(T;Y)"];

/// An estimate and the standard deviation that its interval stands for, in nats.
#[derive(Clone, Copy, Debug)]
struct Value {
    mean: f64,
    std: f64,
}

/// Everything that the table holds of the chosen epochs.
struct Curves {
    epochs: Vec<usize>,
    /// By (layer, estimator).
    values: BTreeMap<(String, String), ByPlace>,
}

/// Values by (plane, subset, epoch).
type ByPlace = BTreeMap<(String, String, usize), Value>;

impl Curves {
    fn read(table: &Table, params: &Params) -> Result<Curves> {
        let column = |name: &str| {
            let made = |e: Error| e.hint("the input `table` must come from `evaluate/information`");
            table.column(name).map_err(made)
        };
        let (epoch, layer, subset, quantity) =
            (column("epoch")?, column("layer")?, column("subset")?, column("quantity")?);
        let (estimator, value) = (column("estimator")?, column("estimate_nats")?);
        let (low, high) = (column("interval_low")?, column("interval_high")?);
        let mut epochs: Vec<usize> =
            table.rows.iter().filter_map(|row| row[epoch].number()).map(|epoch| epoch as usize).collect();
        epochs.sort_unstable();
        epochs.dedup();
        if let Some(missing) = params.epochs.iter().find(|epoch| !epochs.contains(epoch)) {
            return Err(Error::user(format!("the table has no epoch {missing}; it has {epochs:?}"))
                .hint("observe that epoch, or leave `epochs` out"));
        }
        epochs.retain(|epoch| params.epochs.is_empty() || params.epochs.contains(epoch));
        let mut values: BTreeMap<_, ByPlace> = BTreeMap::new();
        for row in &table.rows {
            let text = |at: usize| row[at].text().unwrap_or_default().to_string();
            let (Some(at), Some(mean)) = (row[epoch].number(), row[value].number()) else { continue };
            // 95 % of a normal distribution lie within 1.96 standard deviations.
            let width = row[high].number().zip(row[low].number()).map_or(0.0, |(high, low)| high - low);
            values
                .entry((text(layer), text(estimator)))
                .or_default()
                .insert((text(quantity), text(subset), at as usize), Value { mean, std: width / (2.0 * 1.96) });
        }
        Ok(Curves { epochs, values })
    }

    fn layers(&self) -> Vec<(String, String)> {
        self.values.keys().cloned().collect()
    }
}

/// The curves of one layer and estimator: values by epoch, in nats.
#[derive(Clone)]
struct Layer {
    name: (String, String),
    target: usize,
    /// Per plane, the target's curves: (subset, values).
    targets: [Vec<(String, Vec<Value>)>; 2],
    /// Per plane, the whole classes, the target among them: (class, values).
    classes: [Vec<(usize, Vec<Value>)>; 2],
}

impl Layer {
    fn new(curves: &Curves, name: &(String, String), params: &Params) -> Result<Layer> {
        let values = &curves.values[name];
        let curve = |plane: &str, subset: &str| -> Result<Vec<Value>> {
            let at = |&epoch: &usize| {
                values.get(&(plane.to_string(), subset.to_string(), epoch)).copied().ok_or_else(|| {
                    Error::user(format!(
                        "the table has no estimate of {plane} for subset `{subset}` in layer `{}` at epoch {epoch}",
                        name.0
                    ))
                    .hint(format!(
                        "`evaluate/information` needs both quantities, the subsets `{0}` and `{0}_clean`, and other \
                         classes, each with enough samples",
                        params.target
                    ))
                })
            };
            curves.epochs.iter().map(at).collect()
        };
        let mut classes: Vec<usize> = values.keys().filter_map(|(_, subset, _)| subset.parse().ok()).collect();
        classes.sort_unstable();
        classes.dedup();
        if let Some(missing) = params.others.iter().find(|class| !classes.contains(class)) {
            return Err(Error::user(format!("the table has no class {missing}; it has {classes:?}"))
                .hint("add it to `subsets` of `evaluate/information`"));
        }
        classes.retain(|class| *class == params.target || params.others.is_empty() || params.others.contains(class));
        if classes.iter().all(|&class| class == params.target) {
            return Err(Error::user("the table has no class besides the target, so there is nothing to compare with")
                .hint("add other classes to `subsets` of `evaluate/information`"));
        }
        let targets = [format!("{}_clean", params.target), params.target.to_string()];
        let mut layer = Layer {
            name: name.clone(),
            target: params.target,
            targets: Default::default(),
            classes: Default::default(),
        };
        for (at, plane) in PLANES.iter().enumerate() {
            for subset in &targets {
                layer.targets[at].push((subset.clone(), curve(plane, subset)?));
            }
            for &class in &classes {
                layer.classes[at].push((class, curve(plane, &class.to_string())?));
            }
        }
        Ok(layer)
    }

    /// (plane, curve of the target, score), each score in [0, 1].
    fn stealth(&self) -> Vec<(usize, usize, f64)> {
        let mut scores = Vec::new();
        for plane in 0..2 {
            let others: Vec<&[Value]> = self.classes[plane]
                .iter()
                .filter(|(class, _)| *class != self.target)
                .map(|(_, values)| values.as_slice())
                .collect();
            for (at, (_, target)) in self.targets[plane].iter().enumerate() {
                let of_epoch = |epoch: usize| {
                    let values: Vec<f64> = others.iter().map(|values| values[epoch].mean).collect();
                    contrast(target[epoch].mean, &values)
                };
                let score = (0..target.len()).map(of_epoch).sum::<f64>() / target.len().max(1) as f64;
                scores.push((plane, at, score));
            }
        }
        scores
    }

    /// Per plane, the distance of each class.
    fn outliers(&self) -> [Vec<f64>; 2] {
        [0, 1].map(|plane| {
            let curves: Vec<Vec<f64>> =
                self.classes[plane].iter().map(|(_, values)| values.iter().map(|value| value.mean).collect()).collect();
            distances(&curves)
        })
    }

    /// The class whose distances, each plane's divided by its sum, are the largest in all.
    fn suspect(&self) -> usize {
        let shares = both_planes(&self.outliers());
        self.classes[0][largest(&shares)].0
    }

    /// The same curves, every value drawn from its normal distribution.
    fn draw(&self, mut stream: Stream) -> Layer {
        let mut drawn = self.clone();
        for plane in 0..2 {
            for (_, values) in &mut drawn.classes[plane] {
                values.iter_mut().for_each(|value| value.mean += value.std * stream.normal());
            }
            for (subset, values) in &mut drawn.targets[plane] {
                // The whole target class is one curve in both roles.
                let whole = drawn.classes[plane].iter().find(|(class, _)| class.to_string() == *subset);
                match whole {
                    Some((_, whole)) => values.clone_from(whole),
                    None => values.iter_mut().for_each(|value| value.mean += value.std * stream.normal()),
                }
            }
        }
        drawn
    }
}

/// |mean over `others` of (target - other)| after all values are brought to [0, 1] by their minimum and maximum; 0 if
/// they are all equal.
fn contrast(target: f64, others: &[f64]) -> f64 {
    let low = others.iter().copied().fold(target, f64::min);
    let high = others.iter().copied().fold(target, f64::max);
    if high <= low || others.is_empty() {
        return 0.0;
    }
    let mean = others.iter().sum::<f64>() / others.len() as f64;
    ((target - mean) / (high - low)).abs()
}

/// The mean squared distance of each curve to the others.
fn distances(curves: &[Vec<f64>]) -> Vec<f64> {
    let squared = |a: &[f64], b: &[f64]| -> f64 {
        a.iter().zip(b).map(|(x, y)| (x - y).powi(2)).sum::<f64>() / a.len().max(1) as f64
    };
    let of = |at: usize| {
        let others = (0..curves.len()).filter(|&other| other != at);
        others.map(|other| squared(&curves[at], &curves[other])).sum::<f64>() / (curves.len().max(2) - 1) as f64
    };
    (0..curves.len()).map(of).collect()
}

/// The mean over the planes of each class's share of the plane's distances.
fn both_planes(outliers: &[Vec<f64>; 2]) -> Vec<f64> {
    let share = |distances: &[f64], at: usize| {
        let sum: f64 = distances.iter().sum();
        if sum > 0.0 { distances[at] / sum } else { 0.0 }
    };
    (0..outliers[0].len()).map(|at| 0.5 * (share(&outliers[0], at) + share(&outliers[1], at))).collect()
}

/// The position of the largest value; the first of equals.
fn largest(values: &[f64]) -> usize {
    (0..values.len()).fold(0, |best, at| if values[at] > values[best] { at } else { best })
}

/// The 2.5 % and 97.5 % points.
fn percentiles(mut values: Vec<f64>) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
    (at(0.025), at(0.975))
}

fn interval_definition() -> String {
    format!("95 % of {RESAMPLES} draws of the estimates within their intervals")
}

fn stealth_table(target: usize) -> Table {
    let mut table = Table::new(vec![
        Column::new("layer", "where T is read"),
        Column::new("estimator", "of the estimates"),
        Column::new("quantity", "plane; `sum` over both and over the target's curves"),
        Column::new("target", "the target's curve: its clean samples, or the whole class"),
        Column::new(
            "score",
            "|mean over other classes of (target - other)|, values of an epoch brought to [0, 1] by their minimum and \
             maximum, averaged over epochs; smaller is stealthier; a sum reaches 4",
        )
        .digits(3),
        Column::new("score_low", &interval_definition()).digits(3),
        Column::new("score_high", &interval_definition()).digits(3),
    ]);
    table.notes = vec![
        format!("The target class is {target}: the score knows it."),
        "A score is an absolute value, so noise in the estimates pushes it up, not down.".into(),
    ];
    table
}

fn stealth_rows(layer: &Layer, scores: &[(usize, usize, f64)], drawn: &[Layer]) -> Vec<Vec<Cell>> {
    let drawn: Vec<Vec<(usize, usize, f64)>> = drawn.iter().map(Layer::stealth).collect();
    let row = |quantity: &str, target: &str, score: f64, (low, high): (f64, f64)| -> Vec<Cell> {
        let name = (layer.name.0.as_str(), layer.name.1.as_str());
        vec![name.0.into(), name.1.into(), quantity.into(), target.into(), score.into(), low.into(), high.into()]
    };
    let mut rows: Vec<Vec<Cell>> = scores
        .iter()
        .enumerate()
        .map(|(at, &(plane, curve, score))| {
            let interval = percentiles(drawn.iter().map(|scores| scores[at].2).collect());
            row(PLANES[plane], &layer.targets[plane][curve].0, score, interval)
        })
        .collect();
    let sum = |scores: &[(usize, usize, f64)]| scores.iter().map(|(_, _, score)| score).sum::<f64>();
    let interval = percentiles(drawn.iter().map(|scores| sum(scores)).collect());
    rows.push(row("sum", "sum", sum(scores), interval));
    rows
}

fn outlier_table() -> Table {
    Table::new(vec![
        Column::new("layer", "where T is read"),
        Column::new("estimator", "of the estimates"),
        Column::new("quantity", "plane; `both`: the mean of the classes' shares of each plane's distances"),
        Column::new("class", "by assigned label"),
        Column::new(
            "distance",
            "mean squared distance of the class's curve to the others, in nats^2; for `both` a share",
        )
        .digits(4),
        Column::new("is_suspect", "whether the class is the farthest: the suspected target"),
        Column::new(
            "suspected_in",
            &format!("share of the draws in which the class is the farthest; {}", interval_definition()),
        )
        .unit("%")
        .digits(1),
    ])
}

fn outlier_rows(layer: &Layer, found: &[Vec<f64>; 2], drawn: &[Layer]) -> Vec<Vec<Cell>> {
    let drawn: Vec<[Vec<f64>; 2]> = drawn.iter().map(Layer::outliers).collect();
    let mut rows = Vec::new();
    let mut push = |quantity: &str, distances: &[f64], of_draw: &dyn Fn(&[Vec<f64>; 2]) -> Vec<f64>| {
        let mut n_suspected = vec![0usize; distances.len()];
        drawn.iter().for_each(|draw| n_suspected[largest(&of_draw(draw))] += 1);
        let suspect = largest(distances);
        for (at, &distance) in distances.iter().enumerate() {
            rows.push(vec![
                layer.name.0.as_str().into(),
                layer.name.1.as_str().into(),
                quantity.into(),
                layer.classes[0][at].0.into(),
                distance.into(),
                (at == suspect).into(),
                (100.0 * n_suspected[at] as f64 / drawn.len().max(1) as f64).into(),
            ]);
        }
    };
    push(PLANES[0], &found[0], &|draw| draw[0].clone());
    push(PLANES[1], &found[1], &|draw| draw[1].clone());
    push("both", &both_planes(found), &both_planes);
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value as Json, json};

    /// (subset, I(X;T), I(T;Y)).
    type At<'a> = (&'a str, f64, f64);

    fn table(epochs: &[(usize, &[At<'_>])], half_width: f64) -> Table {
        let names =
            ["epoch", "layer", "subset", "quantity", "estimator", "estimate_nats", "interval_low", "interval_high"];
        let mut table = Table::new(names.map(|name| Column::new(name, "")).to_vec());
        for (epoch, subsets) in epochs {
            for &(subset, xt, ty) in *subsets {
                for (quantity, value) in PLANES.into_iter().zip([xt, ty]) {
                    table.push(vec![
                        (*epoch).into(),
                        "layer4".into(),
                        subset.into(),
                        quantity.into(),
                        "infonce".into(),
                        value.into(),
                        (value - half_width).into(),
                        (value + half_width).into(),
                    ]);
                }
            }
        }
        table
    }

    fn example() -> Table {
        let first = [("0", 0.9, 2.0), ("0_clean", 0.5, 1.0), ("1", 0.1, 1.0), ("2", 0.3, 1.0), ("3", 0.5, 1.0)];
        let second = [("0", 0.5, 1.0), ("0_clean", 0.5, 1.0), ("1", 0.5, 1.0), ("2", 0.5, 1.0), ("3", 0.5, 1.0)];
        table(&[(5, &first), (40, &second)], 0.0)
    }

    fn run(params: Json, table: Table) -> Result<Outputs> {
        let params: Params = serde_json::from_value(params).unwrap();
        Dynamics::run(&Context::for_test(0, Dynamics::NAME), params, Inputs { table })
    }

    fn column(table: &Table, name: &str) -> Vec<f64> {
        let at = table.column(name).unwrap();
        table.rows.iter().filter_map(|row| row[at].number()).collect()
    }

    fn close(found: &[f64], want: &[f64]) {
        let is_close = found.len() == want.len() && found.iter().zip(want).all(|(f, w)| (f - w).abs() < 1e-12);
        assert!(is_close, "{found:?}, expected {want:?}");
    }

    /// By hand. Epoch 5, I(X;T): `0_clean` 0.5 among 0.1, 0.3, 0.5: (0.2 / 0.4); `0` 0.9: (0.6 / 0.8). I(T;Y): 0 and 1.
    /// In epoch 40 all values are equal.
    #[test]
    fn stealth_by_hand() {
        let scores = column(&run(json!({}), example()).unwrap().stealth, "score");
        close(&scores, &[0.25, 0.375, 0.0, 0.5, 1.125]);
        close(
            &column(&run(json!({ "epochs": [5] }), example()).unwrap().stealth, "score"),
            &[0.5, 0.75, 0.0, 1.0, 2.25],
        );
        let some = run(json!({ "epochs": [5], "others": [3] }), example()).unwrap().stealth;
        close(&column(&some, "score"), &[0.0, 1.0, 0.0, 1.0, 2.0]);
    }

    /// The older score of `metric.py` brings two numbers, the target's and the others' mean, to [0, 1]: always 0 and 1,
    /// however close they are.
    #[test]
    fn min_max_over_two_numbers_is_degenerate() {
        let legacy = |target: f64, others: &[f64]| {
            let mean = others.iter().sum::<f64>() / others.len() as f64;
            contrast(target, &[mean])
        };
        for target in [0.31, 0.4, 0.9] {
            assert_eq!(legacy(target, &[0.1, 0.3, 0.5]), 1.0);
        }
        let right = [0.31, 0.4, 0.9].map(|target| contrast(target, &[0.1, 0.3, 0.5]));
        close(&right, &[0.025, 0.25, 0.75]);
    }

    /// One class of ten off by δ: δ² from all the others, whose distance is δ² / 9.
    #[test]
    fn outlier_by_hand() {
        let mut curves = vec![vec![1.0, 2.0, 3.0]; 10];
        curves[4] = vec![1.5, 2.5, 3.5];
        let found = distances(&curves);
        close(&found, &(0..10).map(|class| if class == 4 { 0.25 } else { 0.25 / 9.0 }).collect::<Vec<_>>());
        assert_eq!(largest(&found), 4);
    }

    #[test]
    fn suspect_is_found_without_knowing_the_target() {
        let outliers = run(json!({ "target": 3 }), {
            let mut table = example();
            // The score needs the clean samples of its target.
            table
                .rows
                .iter_mut()
                .filter(|row| row[2].text() == Some("0_clean"))
                .for_each(|row| row[2] = "3_clean".into());
            table
        });
        let outliers = outliers.unwrap().outliers;
        let suspect = outliers.column("is_suspect").unwrap();
        let found: Vec<usize> = (0..12).filter(|&at| outliers.rows[at][suspect] == Cell::Bool(true)).collect();
        assert_eq!(found, [0, 4, 8], "class 0 in both planes and in both together");
        close(&column(&outliers, "suspected_in")[..4], &[100.0, 0.0, 0.0, 0.0]);
        close(&column(&outliers, "distance")[4..6], &[0.5, 0.5 / 3.0]);
    }

    /// Wide intervals: the draws spread, and no class is certain.
    #[test]
    fn intervals_follow_those_of_the_estimates() {
        let first = [("0", 0.9, 2.0), ("0_clean", 0.5, 1.0), ("1", 0.1, 1.0), ("2", 0.3, 1.0), ("3", 0.5, 1.0)];
        let Outputs { stealth, outliers } = run(json!({}), table(&[(5, &first)], 2.0)).unwrap();
        let (score, low, high) =
            (column(&stealth, "score"), column(&stealth, "score_low"), column(&stealth, "score_high"));
        assert!((0..5).all(|at| low[at] < high[at]) && low[4] < score[4] && score[4] < high[4], "{low:?} {high:?}");
        let share = column(&outliers, "suspected_in")[0];
        assert!((15.0..80.0).contains(&share), "{share}");
        let narrow = run(json!({}), example()).unwrap().stealth;
        close(&column(&narrow, "score_low"), &column(&narrow, "score"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let message = |params: Json, table: Table| run(params, table).map(|_| ()).unwrap_err().message().to_string();
        assert_eq!(message(json!({ "epochs": [7] }), example()), "the table has no epoch 7; it has [5, 40]");
        assert_eq!(message(json!({ "others": [7] }), example()), "the table has no class 7; it has [0, 1, 2, 3]");
        let mut half = example();
        half.rows.retain(|row| row[2].text() != Some("0_clean"));
        let want = "the table has no estimate of I(X;T) for subset `0_clean` in layer `layer4` at epoch 5";
        assert_eq!(message(json!({}), half), want);
        let mut alone = example();
        alone.rows.retain(|row| row[2].text().is_some_and(|subset| subset.starts_with('0')));
        assert!(message(json!({}), alone).contains("no class besides the target"));
    }
}
