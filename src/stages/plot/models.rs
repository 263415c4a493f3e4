//! What plots of models on subsets of images share: reading whom a row is about.

use crate::artifact::Table;
use crate::artifact::table::Cell;
use crate::error::{Error, Result};

/// Whom a row is about.
#[derive(Clone, Debug, PartialEq)]
pub struct Whom {
    /// The model's stage.
    pub model: String,
    /// The model with its values in the matrix: what a legend says.
    pub label: String,
    /// The subset of the images.
    pub subset: String,
}

/// The rows of a table of `evaluate/hessian` or `evaluate/loss_landscape`, with whom they are about. Columns before
/// `subset` are the model and keys of the matrix.
///
/// # Errors
/// A table without these columns.
pub fn rows(table: &Table) -> Result<Vec<(Whom, &[Cell])>> {
    let (model, subset) = (table.column("model")?, table.column("subset")?);
    let read = |row: &[Cell]| {
        let text = |at: usize| row[at].text().unwrap_or_default().to_string();
        let mut label = text(model);
        for (column, cell) in table.columns.iter().zip(row).take(subset).filter(|(c, _)| c.name != "model") {
            let value = match cell {
                Cell::None => continue,
                Cell::Bool(value) => value.to_string(),
                Cell::Int(value) => value.to_string(),
                Cell::Float(value) => value.to_string(),
                Cell::Text(value) => value.clone(),
            };
            label += &format!(", {} {value}", column.name);
        }
        Whom { model: text(model), label, subset: text(subset) }
    };
    Ok(table.rows.iter().map(|row| (read(row), row.as_slice())).collect())
}

/// What was asked for under the parameter `what`, if the table has it; or all that it has, in its order.
///
/// # Errors
/// Something that the table does not have.
pub fn choose<'a>(what: &str, asked: &[String], has: impl Iterator<Item = &'a String>) -> Result<Vec<String>> {
    let mut all: Vec<String> = Vec::new();
    for one in has {
        if !all.contains(one) {
            all.push(one.clone());
        }
    }
    match asked.iter().find(|one| !all.contains(one)) {
        Some(one) => Err(Error::user(format!("`{what}` names {one}, the table has {}", all.join(", ")))
            .hint("name only these, or leave it out for all")),
        None if asked.is_empty() => Ok(all),
        None => Ok(asked.to_vec()),
    }
}
