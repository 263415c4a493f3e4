//! Loss landscapes: a panel per model and subset of images, the loss about the model as colour and as contour lines.
//!
//! Draws the grids that `evaluate/loss_landscape` made. All panels share one logarithmic scale of viridis, which readers
//! with any colour vision can follow and which survives printing in grey.

use super::models::{Whom, choose, rows};
use crate::artifact::{Figure, Table};
use crate::error::{Error, Result};
use crate::figure::contour::Grid;
use crate::figure::{
    self, Axis, Bar, ColourScale, Field, Label, Mark, Marker, Panel, Range, Sheet, Spacing, Stroke, Width, theme,
};
use crate::stage::{Context, Resources, Stage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Draws loss landscapes: a panel per model and subset of images, with contour lines.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Printed over the figure; empty for none.
    pub title: String,
    /// The models to draw, by their stages, in this order; empty for all.
    pub models: Vec<String>,
    /// The subsets to draw, in this order; empty for all.
    pub subsets: Vec<String>,
    /// The printed width; by default a column for one panel, a page for more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<Width>,
}

crate::ports! {
    /// What is drawn.
    pub struct Inputs {
        /// The table of `evaluate/loss_landscape`.
        landscape: Table,
    }
}

/// The stage.
pub struct Landscape;

impl Stage for Landscape {
    const NAME: &'static str = "plot/landscape";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Figure;

    fn resources(_: &Params) -> Resources {
        Resources { parallel: false, gpu: false, memory_mib: 128 }
    }

    fn run(_: &Context, params: Params, inputs: Inputs) -> Result<Figure> {
        let views = read(&inputs.landscape)?;
        let models = choose("models", &params.models, views.iter().map(|view| &view.whom.model))?;
        let subsets = choose("subsets", &params.subsets, views.iter().map(|view| &view.whom.subset))?;
        // A row per subset, so that models stand side by side.
        let shown: Vec<&View> = subsets
            .iter()
            .flat_map(|subset| models.iter().map(move |model| (subset, model)))
            .flat_map(|(subset, model)| {
                views.iter().filter(move |view| view.whom.model == *model && view.whom.subset == *subset)
            })
            .collect();
        let losses =
            || shown.iter().flat_map(|view| &view.grid.values).copied().filter(|&loss| Spacing::Log.shows(loss));
        let low = losses().fold(f64::INFINITY, f64::min);
        let high = losses().fold(0.0, f64::max);
        if low > high {
            return Err(Error::user("the table has no loss above zero"));
        }
        let range = if high > low { (low, high) } else { Spacing::Log.widen((low, high), 0.0) };
        let scale = ColourScale { label: Label::plain("loss (nats)"), spacing: Spacing::Log, range };
        let one_subset = subsets.len() == 1;
        let panels: Vec<Panel> = shown.iter().map(|view| view.panel(&scale, one_subset)).collect();
        let width = params.width.unwrap_or(if panels.len() > 1 { Width::Page } else { Width::Column });
        let most = if width == Width::Page { 4 } else { 2 };
        let in_a_row = panels.len() / subsets.len().max(1);
        let n_columns = match in_a_row {
            n if (1..=most).contains(&n) => n,
            n => n.div_ceil(n.div_ceil(most)),
        };
        // What axes and the colour bar take besides, so that frames are about square.
        let height = Sheet::square(width, n_columns) - 26.0 - 42.0 / n_columns as f64;
        let (title, bar) = (params.title.clone(), Some(Bar::Scale(scale)));
        let sheet = Sheet { width, title, panels, n_columns, height, keys: Vec::new(), bar };
        figure::finish(sheet.to_svg())
    }
}

/// The loss about a model.
struct View {
    whom: Whom,
    grid: Grid,
}

impl View {
    fn panel(&self, scale: &ColourScale, one_subset: bool) -> Panel {
        let Grid { xs, ys, values } = &self.grid;
        let n = xs.len();
        // Upwards on paper is the last row.
        let colours: Vec<_> = values.chunks(n).rev().flatten().map(|&loss| scale.colour(loss)).collect();
        let (left, right) = outer(xs);
        let (below, above) = outer(ys);
        let mut marks = vec![Mark::Field(Field::new((left, above), (right, below), ys.len(), &colours))];
        let heights = Grid { values: values.iter().map(|&loss| libm::log(loss)).collect(), ..self.grid.clone() };
        let levels = scale.spacing.ticks(scale.range, 12, false);
        for level in levels.major.iter().map(|tick| tick.0) {
            let lines = heights.lines(libm::log(level)).into_iter();
            marks.extend(lines.map(|points| Mark::Line { points, stroke: CONTOUR, marker: None }));
        }
        marks.push(Mark::Dot { at: (0.0, 0.0), marker: Marker::Circle, fill: theme::PAPER, radius: 1.4 });
        let axis = |label: &str, (low, high): (f64, f64)| Axis {
            label: Label::plain(label),
            spacing: Spacing::Linear,
            range: Range::Fixed(low, high),
            whole: false,
        };
        let heading = match one_subset {
            true => self.whom.label.clone(),
            false => format!("{}, {}", self.whom.label, self.whom.subset),
        };
        Panel {
            heading: Label::plain(heading),
            x: axis("first direction", (left, right)),
            y: axis("second direction", (below, above)),
            marks,
            keys: Vec::new(),
        }
    }
}

/// Lines between fields.
const CONTOUR: Stroke = Stroke::new(theme::PAPER, 0.5);

/// The outer edges of fields about these places.
fn outer(places: &[f64]) -> (f64, f64) {
    let (first, last) = (places[0], places[places.len() - 1]);
    let half = 0.5 * (last - first) / (places.len() - 1) as f64;
    (first - half, last + half)
}

fn read(table: &Table) -> Result<Vec<View>> {
    let made = |error: Error| error.hint("the input must be the table of `evaluate/loss_landscape`");
    let [x, y, loss] = ["x", "y", "loss"].map(|name| table.column(name).map_err(made));
    let (x, y, loss) = (x?, y?, loss?);
    let mut found: Vec<(Whom, Vec<[f64; 3]>)> = Vec::new();
    for (whom, row) in rows(table).map_err(made)? {
        let (Some(x), Some(y)) = (row[x].number(), row[y].number()) else { continue };
        // A loss that is no number is beyond all others.
        let point = [x, y, row[loss].number().unwrap_or(f64::INFINITY)];
        match found.iter_mut().find(|(other, _)| *other == whom) {
            Some((_, points)) => points.push(point),
            None => found.push((whom, vec![point])),
        }
    }
    let distinct = |points: &[[f64; 3]], i: usize| {
        let mut all: Vec<f64> = points.iter().map(|point| point[i]).collect();
        all.sort_by(f64::total_cmp);
        all.dedup();
        all
    };
    let view = |(whom, mut points): (Whom, Vec<[f64; 3]>)| {
        let (xs, ys) = (distinct(&points, 0), distinct(&points, 1));
        if points.len() != xs.len() * ys.len() || xs.len() < 2 || ys.len() < 2 {
            let message =
                format!("{} points of `{}` are no grid of {}x{}", points.len(), whom.label, xs.len(), ys.len());
            return Err(made(Error::user(message)));
        }
        points.sort_by(|a, b| a[1].total_cmp(&b[1]).then(a[0].total_cmp(&b[0])));
        let values = points.iter().map(|point| point[2]).collect();
        Ok(View { whom, grid: Grid { xs, ys, values } })
    };
    if found.is_empty() {
        return Err(made(Error::user("the table has no points")));
    }
    found.into_iter().map(view).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::table::{Cell, Column};
    use serde_json::{Value, json};

    /// A bowl about every model, sharper or flatter, tilted on poisoned images.
    fn landscape(models: &[(&str, f64)], subsets: &[&str]) -> Table {
        let columns = ["model", "subset", "x", "y", "loss", "accuracy"];
        let mut table = Table::new(columns.iter().map(|name| Column::new(name, "")).collect());
        for &(model, sharpness) in models {
            for (number, subset) in subsets.iter().enumerate() {
                for i in 0..21 * 21 {
                    let (x, y) = ((i / 21) as f64 / 10.0 - 1.0, (i % 21) as f64 / 10.0 - 1.0);
                    let tilt = number as f64 * 0.5 * (1.0 + x - 0.3 * y);
                    let loss = 0.02 + tilt + sharpness * (x * x + 0.5 * y * y + 0.3 * x * y * y);
                    table.push(vec![model.into(), (*subset).into(), x.into(), y.into(), loss.into(), Cell::None]);
                }
            }
        }
        table
    }

    fn draw(params: Value, landscape: Table) -> Result<Figure> {
        let params: Params = serde_json::from_value(params).unwrap();
        Landscape::run(&Context::for_test(0, Landscape::NAME), params, Inputs { landscape })
    }

    #[test]
    fn models_by_subsets() {
        let table = landscape(&[("model", 30.0), ("fine_tune", 8.0), ("fip", 1.5)], &["clean", "poisoned"]);
        let figure = draw(json!({ "title": "Loss about models, BadNets" }), table).unwrap();
        figure::golden::check("landscape", &figure);
        assert_eq!(figure.svg.matches("<image ").count(), 6);
    }

    #[test]
    fn one_panel_in_a_column() {
        let table = landscape(&[("model", 30.0), ("fip", 1.5)], &["clean"]);
        let figure = draw(json!({ "models": ["fip"] }), table).unwrap();
        figure::golden::check("landscape_column", &figure);
    }

    #[test]
    fn wrong_requests_are_refused() {
        let refuse = |params: Value, table: Table, expected: &str| {
            let error = draw(params, table).map(|_| ()).unwrap_err();
            assert!(error.to_string().contains(expected) && error.hint_text().is_some(), "{error:?}");
        };
        let table = || landscape(&[("model", 1.0)], &["clean"]);
        refuse(json!({ "models": ["nft"] }), table(), "`models` names nft, the table has model");
        let mut torn = table();
        torn.rows.pop();
        refuse(json!({}), torn, "440 points of `model` are no grid of 21x21");
        refuse(json!({}), Table::default(), "no column `x`");
    }
}
