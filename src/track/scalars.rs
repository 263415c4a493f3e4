//! Numbers out of tables: which cells are points of which curve.
//!
//! The columns that tell the rows apart name the curve; `step` or `epoch` is its x-axis; every other column of numbers
//! is a curve. Tables whose rows cannot be told apart, or that would make very many curves (the points of an embedding),
//! have none: they are told as tables alone.

use crate::artifact::Table;
use crate::artifact::table::Cell;
use std::collections::{BTreeMap, BTreeSet};

/// More curves than this from one table help nobody.
pub const MAX_CURVES: usize = 256;

/// Numbers at one place of an axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Scalars {
    /// What they belong to: `model/history`.
    pub prefix: String,
    /// What `at` counts; none if the numbers stand at no place.
    pub axis: Option<String>,
    /// Where on the axis; 0 without one.
    pub at: i64,
    /// The numbers.
    pub values: Vec<Scalar>,
}

/// One number.
#[derive(Clone, Debug, PartialEq)]
pub struct Scalar {
    /// The name behind the prefix: `loss`, `clean_accuracy/model`.
    pub name: String,
    /// The number, finite.
    pub value: f64,
    /// Unit and definition, for people.
    pub about: String,
}

impl Scalars {
    /// The whole name of a number: `model/history/loss`.
    pub fn tag(&self, scalar: &Scalar) -> String {
        format!("{}/{}", self.prefix, scalar.name)
    }
}

/// The numbers of a table, ascending along its axis.
pub fn of_table(prefix: &str, table: &Table) -> Vec<Scalars> {
    let axis = ["step", "epoch"].into_iter().find_map(|name| {
        let place = table.columns.iter().position(|column| column.name == name)?;
        table.rows.iter().any(|row| row[place].number().is_some()).then_some(place)
    });
    let Some(keys) = keys(table, axis) else { return Vec::new() };
    let is_value = |place: usize| {
        Some(place) != axis
            && !keys.contains(&place)
            && table.rows.iter().all(|row| matches!(row[place], Cell::None | Cell::Int(_) | Cell::Float(_)))
    };
    let values: Vec<usize> = (0..table.columns.len()).filter(|place| is_value(*place)).collect();
    let mut curves: BTreeSet<String> = BTreeSet::new();
    let mut places: BTreeMap<i64, Vec<Scalar>> = BTreeMap::new();
    for row in &table.rows {
        let at = axis.and_then(|axis| row[axis].number()).unwrap_or(0.0) as i64;
        let of_row: Vec<String> = keys.iter().map(|key| key_text(table, *key, &row[*key])).collect();
        for place in &values {
            let Some(value) = row[*place].number() else { continue };
            let column = &table.columns[*place];
            let name = std::iter::once(column.name.clone()).chain(of_row.clone()).collect::<Vec<_>>().join("/");
            let unit = if column.unit.is_empty() { String::new() } else { format!(" [{}]", column.unit) };
            curves.insert(name.clone());
            places.entry(at).or_default().push(Scalar { name, value, about: format!("{}{unit}", column.definition) });
        }
    }
    if curves.len() > MAX_CURVES {
        return Vec::new();
    }
    let axis = axis.map(|place| table.columns[place].name.clone());
    let scalars = |(at, values)| Scalars { prefix: prefix.to_string(), axis: axis.clone(), at, values };
    places.into_iter().map(scalars).collect()
}

/// The columns that tell rows at the same place of the axis apart; none if no columns do.
fn keys(table: &Table, axis: Option<usize>) -> Option<Vec<usize>> {
    let is_text = |place: &usize| table.rows.iter().any(|row| matches!(row[*place], Cell::Text(_)));
    let n = table.columns.len();
    // As where tables are shown: all up to the end of the first run of texts.
    let mut end = match (0..n).find(is_text) {
        Some(first) => (first..n).find(|place| !is_text(place)).unwrap_or(n),
        None => 0,
    };
    loop {
        let keys: Vec<usize> = (0..end).filter(|place| Some(*place) != axis).collect();
        let mut seen = BTreeSet::new();
        let is_new = |row: &Vec<Cell>| {
            let text = |place: &usize| format!("{:?}", row[*place]);
            seen.insert((axis.map(|axis| text(&axis)), keys.iter().map(text).collect::<Vec<_>>()))
        };
        if table.rows.iter().all(is_new) {
            return Some(keys);
        }
        if end == n {
            return None;
        }
        end += 1;
    }
}

/// A text stands for itself, other keys say what they are: `purified`, `rate=0.1`.
fn key_text(table: &Table, place: usize, cell: &Cell) -> String {
    let text = match cell {
        Cell::Text(text) => return text.clone(),
        Cell::None => "none".to_string(),
        Cell::Bool(value) => value.to_string(),
        Cell::Int(value) => value.to_string(),
        Cell::Float(value) => value.to_string(),
    };
    format!("{}={text}", table.columns[place].name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::table::Column;

    /// `rows` as lines of cells between blanks: a number, `-` for nothing, anything else a text.
    fn check(columns: &str, rows: &[&str], expected: &[&str]) {
        let mut table = Table::new(columns.split(' ').map(|name| Column::new(name, "")).collect());
        for row in rows {
            table.push(
                row.split(' ')
                    .map(|cell| match (cell, cell.parse::<i64>(), cell.parse::<f64>()) {
                        ("-", ..) => Cell::None,
                        (_, Ok(whole), _) => Cell::Int(whole),
                        (_, _, Ok(number)) => Cell::Float(number),
                        _ => Cell::Text(cell.into()),
                    })
                    .collect(),
            );
        }
        let mut lines = Vec::new();
        for scalars in of_table("t", &table) {
            let axis = scalars.axis.clone().unwrap_or_default();
            let line = |scalar| format!("{axis}@{} {}={}", scalars.at, scalars.tag(scalar), scalar.value);
            lines.extend(scalars.values.iter().map(line));
        }
        assert_eq!(lines, expected, "{columns}");
    }

    #[test]
    fn columns_are_curves_and_keys_name_them() {
        check("value n_rows random", &["1.5 2 -"], &["@0 t/value=1.5", "@0 t/n_rows=2"]);
        check(
            "epoch loss accuracy",
            &["2 0.5 90", "1 0.7 -"],
            &["epoch@1 t/loss=0.7", "epoch@2 t/loss=0.5", "epoch@2 t/accuracy=90"],
        );
        check(
            "model clean attack",
            &["model 90 100", "purified 88.5 3"],
            &["@0 t/clean/model=90", "@0 t/attack/model=100", "@0 t/clean/purified=88.5", "@0 t/attack/purified=3"],
        );
        // Keys that are numbers, behind the texts, as of a matrix.
        check("model rate clean", &["m 0.1 90", "m 0.5 80"], &["@0 t/clean/m/rate=0.1=90", "@0 t/clean/m/rate=0.5=80"]);
        check(
            "epoch layer critic step nats",
            &["1 a 0 10 0.5", "1 a 0 20 0.6", "1 a 1 10 0.4"],
            &[
                "step@10 t/nats/epoch=1/a/critic=0=0.5",
                "step@10 t/nats/epoch=1/a/critic=1=0.4",
                "step@20 t/nats/epoch=1/a/critic=0=0.6",
            ],
        );
        // What does not change has no epoch.
        check("quantity epoch nats", &["H - 2.3", "I 1 0.2"], &["epoch@0 t/nats/H=2.3", "epoch@1 t/nats/I=0.2"]);
    }

    #[test]
    fn rows_that_cannot_be_told_apart_are_no_curves() {
        check("a b", &["1 2", "1 2"], &[]);
        let many: Vec<String> = (0..=MAX_CURVES).map(|i| format!("p{i} 0.5")).collect();
        check("point x", &many.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
        check("point x", &["p1 0.5"], &["@0 t/x/p1=0.5"]);
        check("point x", &[], &[]);
    }
}
