//! Attacks by defences as a map: a row per attack, a column per model, the mean in every cell with half of its 95 %
//! interval below, and a colour for the eye. What BackdoorBench prints as pages of tables.

use crate::artifact::{Figure, Table};
use crate::error::{Error, Result};
use crate::figure::canvas::Frame;
use crate::figure::text::{minus, spaced};
use crate::figure::{self, Anchor, Canvas, Label, Stroke, Style, Width, theme};
use crate::stage::{Context, Resources, Stage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Draws scores of defences against attacks as a map: a row per attack, a column per model.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Printed over the figure; empty for none.
    pub title: String,
    /// The column of the table that is drawn.
    pub column: String,
    /// The column whose values are the rows of the map.
    pub rows: String,
    /// The models, in the order drawn; empty for all.
    pub models: Vec<String>,
}

impl Default for Params {
    fn default() -> Params {
        Params { title: String::new(), column: "der".into(), rows: "attack".into(), models: Vec::new() }
    }
}

crate::ports! {
    /// What is drawn.
    pub struct Inputs {
        /// Made by `evaluate/over_seeds`.
        summary: Table,
    }
}

/// The stage.
pub struct DefenceMap;

impl Stage for DefenceMap {
    const NAME: &'static str = "plot/defence_map";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Figure;

    fn resources(_: &Params) -> Resources {
        Resources { parallel: false, gpu: false, memory_mib: 64 }
    }

    fn run(_: &Context, params: Params, Inputs { summary }: Inputs) -> Result<Figure> {
        figure::finish(Map::read(&params, &summary)?.draw(&params.title))
    }
}

/// A mean, and half of its interval.
type Cell = Option<(f64, Option<f64>)>;

struct Map {
    /// What the numbers are.
    caption: String,
    rows: Vec<String>,
    models: Vec<String>,
    /// By row, then by model.
    cells: Vec<Vec<Cell>>,
}

impl Map {
    fn read(params: &Params, table: &Table) -> Result<Map> {
        let made = |error: Error| error.hint("`summary` comes from `evaluate/over_seeds`");
        let model = table.column("model").map_err(made)?;
        let value = table.column(&params.column).map_err(made)?;
        let high = table.column(&format!("{}_high", params.column)).ok();
        let row_of = table.column(&params.rows).map_err(made)?;
        let (mut rows, mut models): (Vec<String>, Vec<String>) = Default::default();
        for row in &table.rows {
            for (names, at) in [(&mut rows, row_of), (&mut models, model)] {
                let name = row[at].text().map_or_else(|| number(&row[at]), str::to_string);
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        if let Some(unknown) = params.models.iter().find(|name| !models.contains(name)) {
            return Err(Error::user(format!("the table has no model `{unknown}`"))
                .hint(format!("it has {}", models.join(", "))));
        }
        if !params.models.is_empty() {
            models.clone_from(&params.models);
        }
        if rows.is_empty() {
            return Err(made(Error::user("the table is empty: there is nothing to draw")));
        }
        let mut cells = vec![vec![None; models.len()]; rows.len()];
        for row in &table.rows {
            let name = |at: usize| row[at].text().map_or_else(|| number(&row[at]), str::to_string);
            let place = (rows.iter().position(|n| *n == name(row_of)), models.iter().position(|n| *n == name(model)));
            if let ((Some(r), Some(c)), Some(mean)) = (place, row[value].number()) {
                let half = high.and_then(|at| row[at].number()).map(|high| high - mean);
                if cells[r][c].replace((mean, half)).is_some() {
                    return Err(Error::user(format!(
                        "the table has several rows of `{}` with `{}` = {}",
                        models[c], params.rows, rows[r]
                    ))
                    .hint("average over the other keys of the matrix first"));
                }
            }
        }
        let column = &table.columns[value];
        let unit = if column.unit.is_empty() { String::new() } else { format!(" ({})", column.unit) };
        let name = match params.column.as_str() {
            "der" => "DER".to_string(),
            other => spaced(other),
        };
        Ok(Map {
            caption: format!("{name}{unit}, mean over seeds; below, half of its 95 % interval"),
            rows,
            models,
            cells,
        })
    }

    fn draw(&self, title: &str) -> String {
        let width = Width::Page.points();
        let mut canvas = Canvas::new();
        let names: Vec<Label> = self.rows.iter().map(|name| Label::plain(spaced(name))).collect();
        let heads: Vec<Label> = self.models.iter().map(|name| Label::plain(spaced(name))).collect();
        let widest = |labels: &[Label]| labels.iter().map(|label| label.width(theme::SMALL)).fold(0.0, f64::max);
        let left = theme::MARGIN + widest(&names) + 5.0;
        let top = canvas.title(title, width, theme::MARGIN) + widest(&heads) + 6.0;
        let column = ((width - left - theme::MARGIN) / self.models.len() as f64).min(60.0);
        let values = || self.cells.iter().flatten().flatten().map(|(mean, _)| *mean);
        let (low, high) = values().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        for (c, head) in heads.iter().enumerate() {
            let at = (left + (c as f64 + 0.5) * column, top - 4.0);
            canvas.text_centred(at, head, Style::new(theme::SMALL, Anchor::Start).upwards());
        }
        for (r, (name, cells)) in names.iter().zip(&self.cells).enumerate() {
            let y = top + r as f64 * ROW;
            canvas.text_centred((left - 4.0, y + ROW / 2.0), name, Style::new(theme::SMALL, Anchor::End));
            for (c, cell) in cells.iter().enumerate() {
                let frame = Frame { x: left + c as f64 * column, y, width: column, height: ROW };
                match cell {
                    None => canvas.rect(frame, theme::GRID),
                    Some((mean, half)) => {
                        let share = if high > low { (mean - low) / (high - low) } else { 0.5 };
                        canvas.rect(frame, theme::viridis(share));
                        // Dark text reads well on the light half of viridis only.
                        let ink = if share > 0.55 { theme::INK } else { theme::PAPER };
                        let middle = frame.x + column / 2.0;
                        let shift = if half.is_some() { 4.0 } else { 0.0 };
                        let text = |canvas: &mut Canvas, y: f64, text: String, size: f64| {
                            let style = Style::new(size, Anchor::Middle).colour(ink);
                            canvas.text_centred((middle, y), &Label::plain(text), style);
                        };
                        text(&mut canvas, y + ROW / 2.0 - shift, minus(&format!("{mean:.1}")), theme::SMALL);
                        if let Some(half) = half {
                            text(&mut canvas, y + ROW / 2.0 + shift, format!("±{half:.1}"), theme::NOTE);
                        }
                    }
                }
                canvas.frame(frame, &Stroke::new(theme::PAPER, 0.8));
            }
        }
        let bottom = top + self.rows.len() as f64 * ROW;
        let caption = Label::plain(&self.caption).fit(theme::NOTE, width - left);
        canvas.text((left, bottom + 9.0), &caption, Style::new(theme::NOTE, Anchor::Start).colour(theme::GREY));
        canvas.finish(width, bottom + 9.0 + theme::MARGIN + 2.0, title)
    }
}

/// Height of a row, in points.
const ROW: f64 = 22.0;

fn number(cell: &crate::artifact::table::Cell) -> String {
    cell.number().map_or_else(String::new, |number| number.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::table::Column;
    use serde_json::{Value, json};

    fn summary() -> Table {
        let mut table = Table::new(["attack", "model", "der", "der_high"].map(|name| Column::new(name, "")).into());
        for (a, attack) in ["badnet", "blend", "wanet", "adaptive_blend"].into_iter().enumerate() {
            for (d, defence) in ["fine_tune", "ft_sam", "fine_pruning", "anp", "fip"].into_iter().enumerate() {
                let der = 45.0 + 10.0 * ((a * 3 + d * 2) % 6) as f64;
                let high = if a == 2 { crate::artifact::table::Cell::None } else { (der + 1.5 * d as f64).into() };
                table.push(vec![attack.into(), defence.into(), der.into(), high]);
            }
        }
        table
    }

    fn draw(params: Value, summary: Table) -> Result<Figure> {
        let params: Params = serde_json::from_value(params).unwrap();
        DefenceMap::run(&Context::for_test(0, DefenceMap::NAME), params, Inputs { summary })
    }

    #[test]
    fn four_attacks_and_five_defences() {
        let figure = draw(json!({ "title": "Defence effectiveness" }), summary()).unwrap();
        assert!(figure.svg.contains(">adaptive blend<") && figure.svg.contains(">±6.0<"));
        figure::golden::check("defence_map", &figure);
    }

    #[test]
    fn models_are_chosen_and_gaps_are_empty() {
        let mut table = summary();
        table.rows.remove(0);
        let figure = draw(json!({ "models": ["fip", "fine_tune"] }), table).unwrap();
        assert_eq!(figure.svg.matches(">fine tune<").count(), 1);
        assert_eq!(figure.svg.matches(&format!(r#"fill="{}"/>"#, theme::GRID)).count(), 1);
    }

    #[test]
    fn wrong_tables_are_refused() {
        let refuse = |params: Value, table: Table, expected: &str| {
            let error = draw(params, table).map(|_| ()).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        };
        refuse(json!({ "models": ["x"] }), summary(), "no model `x`");
        refuse(json!({ "column": "x" }), summary(), "`x`");
        let mut doubled = summary();
        doubled.rows.push(doubled.rows[0].clone());
        refuse(json!({}), doubled, "several rows");
        refuse(json!({}), Table::new(summary().columns), "nothing to draw");
    }
}
