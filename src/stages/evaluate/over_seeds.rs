//! Scores of several seeds as means with 95 % intervals, and how much each model gains over one of them.
//!
//! The interval of a mean of n values with standard deviation s (n - 1 in the denominator) is
//! `mean ± t s / sqrt(n)`, with t the 97.5 % point of Student's distribution with n - 1 degrees of freedom. It says what
//! other seeds would give, not what other test images would. Gains are differences within a seed: what the seeds have
//! in common, an easy poisoned set, a lucky initialisation, drops out of them.

use super::backdoor::point_cell;
use crate::artifact::Table;
use crate::artifact::table::{Cell, Column};
use crate::error::{Error, Result};
use crate::stage::{Context, Named, Resources, Stage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Averages scores over the seeds of a matrix, with 95 % intervals.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The key of the matrix that is averaged over.
    pub over: String,
    /// The columns that are averaged.
    pub columns: Vec<String>,
    /// The model that the others are compared with, by its stage: its `der` is subtracted from theirs, seed by seed; no
    /// comparison if not given.
    pub against: Option<String>,
}

impl Default for Params {
    fn default() -> Params {
        let columns = ["clean_accuracy", "attack_success", "robust_accuracy", DER];
        Params { over: "seed".into(), columns: columns.map(String::from).into(), against: None }
    }
}

crate::ports! {
    /// What is averaged.
    pub struct Inputs {
        /// Tables of `evaluate/backdoor`, one for each point of the matrix: `scores[*]`.
        scores: Vec<Named<Table>>,
    }
}

/// The column that gains are measured in.
const DER: &str = "der";

/// The stage.
pub struct OverSeeds;

impl Stage for OverSeeds {
    const NAME: &'static str = "evaluate/over_seeds";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Table;

    fn resources(_: &Params) -> Resources {
        Resources { parallel: false, gpu: false, memory_mib: 64 }
    }

    fn run(_: &Context, params: Params, Inputs { scores }: Inputs) -> Result<Table> {
        let groups = groups(&params, &scores)?;
        table(&params, &scores, &groups)
    }
}

/// The rows of one model at one setting of the other keys, by the value of the key that is averaged over.
struct Group {
    /// The other keys of the matrix.
    point: BTreeMap<String, Value>,
    model: String,
    defence: Cell,
    /// By seed, the values of `columns`.
    values: Vec<(Value, Vec<Option<f64>>)>,
    /// By seed, the defence effectiveness.
    der: Vec<(Value, f64)>,
}

fn groups(params: &Params, scores: &[Named<Table>]) -> Result<Vec<Group>> {
    let mut groups: Vec<Group> = Vec::new();
    for Named { name, point, value: table } in scores {
        let Some(seed) = point.get(&params.over) else {
            return Err(Error::user(format!("`{name}` belongs to no value of `{}`", params.over)).hint(format!(
                "put `{}` into `[matrix]` and read all of its points: `scores = \"scores[*]\"`",
                params.over
            )));
        };
        let context = |error: Error| error.context(format!("`{name}`"));
        let model = table.column("model").map_err(context)?;
        let columns: Vec<usize> =
            params.columns.iter().map(|column| table.column(column)).collect::<Result<_>>().map_err(context)?;
        let (defence, der) = (table.column("defence").ok(), table.column(DER).ok());
        let mut others = point.clone();
        others.remove(&params.over);
        for row in &table.rows {
            let of_row = row[model].text().unwrap_or_default();
            let found = groups.iter().position(|group| group.model == of_row && group.point == others);
            let at = found.unwrap_or_else(|| {
                let defence = defence.map_or(Cell::None, |at| row[at].clone());
                let (point, model) = (others.clone(), of_row.to_string());
                groups.push(Group { point, model, defence, values: Vec::new(), der: Vec::new() });
                groups.len() - 1
            });
            let values = columns.iter().map(|&column| row[column].number()).collect();
            groups[at].values.push((seed.clone(), values));
            groups[at].der.extend(der.and_then(|at| row[at].number()).map(|der| (seed.clone(), der)));
        }
    }
    if let Some(against) = &params.against
        && !groups.iter().any(|group| group.model == *against)
    {
        let mut models: Vec<&str> = groups.iter().map(|group| group.model.as_str()).collect();
        models.sort_unstable();
        models.dedup();
        return Err(Error::user(format!("no table has the model `{against}`"))
            .hint(format!("set `against` to one of {}", models.join(", "))));
    }
    Ok(groups)
}

fn table(params: &Params, scores: &[Named<Table>], groups: &[Group]) -> Result<Table> {
    let mut keys: Vec<&String> = groups.iter().flat_map(|group| group.point.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    let mut columns: Vec<Column> = keys.iter().map(|key| Column::new(key, "value in the matrix")).collect();
    columns.push(Column::new("model", "the stage that made the model"));
    columns.push(Column::new("defence", "the defence that made the model; none for a model as it was trained"));
    columns.push(Column::new("n", &format!("values of `{}`", params.over)));
    for name in &params.columns {
        let source = scores.first().and_then(|scores| scores.value.columns.iter().find(|c| c.name == *name));
        let (unit, definition) = source.map_or(("", ""), |column| (&column.unit, &column.definition));
        columns.push(Column::new(name, &format!("mean of: {definition}")).unit(unit).digits(2));
        columns.push(Column::new(&format!("{name}_low"), LOW).unit(unit).digits(2).hidden());
        columns.push(Column::new(&format!("{name}_high"), HIGH).unit(unit).digits(2).hidden());
    }
    if let Some(against) = &params.against {
        let definition = format!("mean difference of `{DER}` to `{against}` of the same seed");
        columns.push(Column::new("der_gain", &definition).unit("%").digits(2));
        columns.push(Column::new("der_gain_low", LOW).unit("%").digits(2));
        columns.push(Column::new("der_gain_high", HIGH).unit("%").digits(2));
    }
    let mut table = Table::new(columns);
    for group in groups {
        let mut row: Vec<Cell> = keys.iter().map(|key| group.point.get(*key).map_or(Cell::None, point_cell)).collect();
        row.extend([group.model.as_str().into(), group.defence.clone(), group.values.len().into()]);
        for at in 0..params.columns.len() {
            let values: Vec<f64> = group.values.iter().filter_map(|(_, values)| values[at]).collect();
            row.extend(Mean::of(&values).cells());
        }
        if let Some(against) = &params.against {
            let reference = groups.iter().find(|other| other.model == *against && other.point == group.point);
            let gains = |reference: &Group| -> Vec<f64> {
                let of_seed = |seed: &Value| reference.der.iter().find(|(other, _)| other == seed).map(|(_, der)| *der);
                group.der.iter().filter_map(|(seed, der)| Some(der - of_seed(seed)?)).collect()
            };
            let gains = reference.filter(|reference| reference.model != group.model).map(gains);
            row.extend(Mean::of(&gains.unwrap_or_default()).cells());
        }
        table.push(row);
    }
    table
        .notes
        .push(format!("means over `{}` with 95 % intervals by Student's t; one value has no interval", params.over));
    let sources = scores.iter().flat_map(|scores| &scores.value.notes);
    for note in sources {
        if !table.notes.contains(note) {
            table.notes.push(note.clone());
        }
    }
    Ok(table)
}

const LOW: &str = "lower end of its 95 % interval";
const HIGH: &str = "upper end of its 95 % interval";

/// A mean with its interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mean {
    /// NaN of no value.
    pub mean: f64,
    /// Half of the 95 % interval; NaN of fewer than two values.
    pub half: f64,
}

impl Mean {
    /// The mean of one value per seed.
    pub fn of(values: &[f64]) -> Mean {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Mean { mean, half: student(values.len().saturating_sub(1)) * (squares / (n - 1.0) / n).sqrt() }
    }

    fn cells(self) -> [Cell; 3] {
        [self.mean, self.mean - self.half, self.mean + self.half].map(Cell::from)
    }
}

/// The 97.5 % point of Student's distribution; NaN without a degree of freedom. From 30 on by the expansion of Fisher
/// and Cornish (1960), exact to 1e-5 there.
fn student(degrees: usize) -> f64 {
    const POINTS: [f64; 29] = [
        12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788, 2.1604,
        2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860, 2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518,
        2.0484, 2.0452,
    ];
    if degrees == 0 {
        return f64::NAN;
    }
    if let Some(point) = POINTS.get(degrees - 1) {
        return *point;
    }
    let (z, n) = (1.959_963_985_f64, degrees as f64);
    let (z2, z3) = (z * z, z * z * z);
    let third = z * (3.0 * z3 * z3 + 19.0 * z2 * z2 + 17.0 * z2 - 15.0) / 384.0;
    z + (z3 + z) / (4.0 * n) + z * (5.0 * z2 * z2 + 16.0 * z2 + 3.0) / (96.0 * n * n) + third / (n * n * n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn scores(point: Value, rows: &[(&str, f64, f64)]) -> Named<Table> {
        let mut value = Table::new(vec![
            Column::new("model", ""),
            Column::new("defence", ""),
            Column::new("clean_accuracy", "share of images").unit("%"),
            Column::new("der", "").unit("%"),
        ]);
        for &(model, accuracy, der) in rows {
            value.push(vec![model.into(), "none".into(), accuracy.into(), der.into()]);
        }
        Named { name: "scores".into(), point: serde_json::from_value(point).unwrap(), value }
    }

    fn run(params: Value, scores: Vec<Named<Table>>) -> Result<Table> {
        let params: Params = serde_json::from_value(params).unwrap();
        OverSeeds::run(&Context::for_test(0, OverSeeds::NAME), params, Inputs { scores })
    }

    fn check(table: &Table, row: usize, column: &str, expected: f64) {
        let found = table.rows[row][table.column(column).unwrap()].number().unwrap();
        assert!((found - expected).abs() < 1e-3, "{column} of row {row}: {found} instead of {expected}");
    }

    /// Three seeds 60, 62, 67: mean 63, deviation sqrt(13), half interval 4.3027 sqrt(13 / 3) = 8.9567.
    #[test]
    fn means_and_intervals_by_hand() {
        let of_seed = |seed: usize, a: f64, b: f64| {
            scores(
                json!({ "attack": "blend", "seed": seed }),
                &[("tuned", a, b), ("flat", a + 1.0, b + 2.0 * seed as f64)],
            )
        };
        let tables = vec![of_seed(0, 60.0, 70.0), of_seed(1, 62.0, 90.0), of_seed(2, 67.0, 50.0)];
        let params = json!({ "columns": ["clean_accuracy", "der"], "against": "tuned" });
        let table = run(params, tables).unwrap();
        assert_eq!(table.rows.len(), 2);
        check(&table, 0, "clean_accuracy", 63.0);
        check(&table, 0, "clean_accuracy_low", 63.0 - 8.9567);
        check(&table, 1, "clean_accuracy_high", 64.0 + 8.9567);
        // Gains 0, 2, 4: the spread of the seeds themselves drops out.
        check(&table, 1, "der_gain", 2.0);
        check(&table, 1, "der_gain_low", 2.0 - 4.3027 * 2.0 / 3f64.sqrt());
        check(&table, 1, "n", 3.0);
        assert_eq!(table.rows[0][table.column("der_gain").unwrap()], Cell::None);
    }

    #[test]
    fn points_are_kept_apart_and_one_seed_has_no_interval() {
        let tables =
            ["badnet", "blend"].map(|attack| scores(json!({ "attack": attack, "seed": 0 }), &[("m", 1.0, 2.0)]));
        let table = run(json!({ "columns": ["der"] }), tables.into()).unwrap();
        assert_eq!(table.rows.iter().map(|row| row[0].text().unwrap()).collect::<Vec<_>>(), ["badnet", "blend"]);
        check(&table, 1, "der", 2.0);
        assert_eq!(table.rows[1][table.column("der_low").unwrap()], Cell::None);
    }

    #[test]
    fn students_points() {
        for (degrees, point) in [(1, 12.7062), (2, 4.3027), (9, 2.2622), (29, 2.0452), (30, 2.04227), (100, 1.98397)] {
            assert!((student(degrees) - point).abs() < 2e-5, "{degrees}: {}", student(degrees));
        }
        assert!(student(0).is_nan());
    }

    #[test]
    fn wrong_requests_are_refused() {
        let one = || vec![scores(json!({ "seed": 0 }), &[("m", 1.0, 2.0)])];
        let refuse = |params: Value, tables: Vec<Named<Table>>, expected: &str| {
            let error = run(params, tables).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        };
        refuse(json!({ "over": "fold" }), one(), "`scores` belongs to no value of `fold`");
        refuse(json!({ "columns": ["der"], "against": "x" }), one(), "no table has the model `x`");
        refuse(json!({ "columns": ["nothing"] }), one(), "nothing");
    }
}
