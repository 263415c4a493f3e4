//! A table: rows and typed columns, each column with its unit and definition (invariant 10).
//!
//! Stored as `table.json` (complete) and `table.csv` (for people and other programs).

use super::{Files, Kind, Open, Save, Sink};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// One cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Cell {
    /// Not available.
    None,
    /// Yes or no.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number. Never NaN nor infinite: those are [`Cell::None`].
    Float(f64),
    /// A text.
    Text(String),
}

impl From<bool> for Cell {
    fn from(value: bool) -> Cell {
        Cell::Bool(value)
    }
}
impl From<i64> for Cell {
    fn from(value: i64) -> Cell {
        Cell::Int(value)
    }
}
impl From<usize> for Cell {
    fn from(value: usize) -> Cell {
        Cell::Int(value as i64)
    }
}
impl From<f64> for Cell {
    fn from(value: f64) -> Cell {
        if value.is_finite() { Cell::Float(value) } else { Cell::None }
    }
}
impl From<&str> for Cell {
    fn from(value: &str) -> Cell {
        Cell::Text(value.to_string())
    }
}
impl From<String> for Cell {
    fn from(value: String) -> Cell {
        Cell::Text(value)
    }
}
impl<T: Into<Cell>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Cell {
        value.map_or(Cell::None, Into::into)
    }
}

impl Cell {
    /// The number, if it is one.
    pub fn number(&self) -> Option<f64> {
        match self {
            Cell::Int(value) => Some(*value as f64),
            Cell::Float(value) => Some(*value),
            _ => None,
        }
    }

    /// The text, if it is one.
    pub fn text(&self) -> Option<&str> {
        match self {
            Cell::Text(value) => Some(value),
            _ => None,
        }
    }
}

/// One column.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Column {
    /// The name, in snake case: stable, an interface.
    pub name: String,
    /// The unit: `%`, `nats`, `s`; empty for none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub unit: String,
    /// What exactly is counted or measured.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub definition: String,
    /// Digits after the point when shown to people; the stored value is exact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digits: Option<usize>,
    /// Left out of the terminal table unless asked for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hidden: bool,
}

impl Column {
    /// A column without unit.
    pub fn new(name: &str, definition: &str) -> Column {
        Column { name: name.into(), unit: String::new(), definition: definition.into(), digits: None, hidden: false }
    }

    /// Sets the unit.
    pub fn unit(mut self, unit: &str) -> Column {
        self.unit = unit.into();
        self
    }

    /// Sets the digits shown.
    pub fn digits(mut self, digits: usize) -> Column {
        self.digits = Some(digits);
        self
    }

    /// Leaves it out of the terminal table.
    pub fn hidden(mut self) -> Column {
        self.hidden = true;
        self
    }
}

/// A table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// The columns.
    pub columns: Vec<Column>,
    /// The rows, each as long as `columns`.
    pub rows: Vec<Vec<Cell>>,
    /// Lines printed under the table: definitions that hold for all rows.
    #[serde(default)]
    pub notes: Vec<String>,
}

impl Table {
    /// An empty table with these columns.
    pub fn new(columns: Vec<Column>) -> Table {
        Table { columns, rows: Vec::new(), notes: Vec::new() }
    }

    /// Adds a row.
    ///
    /// # Panics
    /// If the row is not as long as the columns: a bug of the stage that makes it.
    pub fn push(&mut self, row: Vec<Cell>) {
        assert_eq!(row.len(), self.columns.len(), "a row of a table must fill its columns");
        self.rows.push(row);
    }

    /// The position of the column `name`.
    ///
    /// # Errors
    /// If there is no such column.
    pub fn column(&self, name: &str) -> Result<usize> {
        self.columns.iter().position(|c| c.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.columns.iter().map(|c| c.name.as_str()).collect();
            Error::stage(format!("the table has no column `{name}`; it has {}", names.join(", ")))
        })
    }

    /// The table as CSV (RFC 4180), exact values.
    pub fn to_csv(&self) -> String {
        let mut text = self.columns.iter().map(|c| csv_field(&c.name)).collect::<Vec<_>>().join(",");
        text.push('\n');
        for row in &self.rows {
            text.push_str(&row.iter().map(csv_cell).collect::<Vec<_>>().join(","));
            text.push('\n');
        }
        text
    }
}

fn csv_cell(cell: &Cell) -> String {
    match cell {
        Cell::None => String::new(),
        Cell::Bool(value) => value.to_string(),
        Cell::Int(value) => value.to_string(),
        Cell::Float(value) => value.to_string(),
        Cell::Text(value) => csv_field(value),
    }
}

fn csv_field(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_string() }
}

impl Save for Table {
    const KIND: Kind = Kind::Table;

    fn save(&self, sink: &mut Sink) -> Result<()> {
        sink.json("table.json", self)?;
        sink.bytes("table.csv", self.to_csv().as_bytes())
    }
}

impl Open for Table {
    const KIND: Kind = Kind::Table;

    fn open(files: &Files) -> Result<Table> {
        files.json("table.json")
    }
}
