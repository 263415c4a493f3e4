//! Training curves: columns of one or more tables against another column, a panel per unit.
//!
//! Without further parameters it knows the histories of `train/*` and `purify/*`: losses by role on the left,
//! accuracy on clean test images and the attack's success on the right. Smooths nothing.

use crate::artifact::{Figure, Table};
use crate::error::{Error, Result};
use crate::figure::{self, Axis, Colour, Key, Label, Mark, Marker, Panel, Range, Sheet, Spacing, Stroke, Width, theme};
use crate::stage::{Context, Named, Problem, Resources, Stage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Draws curves from tables: by default losses, clean accuracy and attack success against the epoch.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Printed over the figure; empty for none.
    pub title: String,
    /// The column on the horizontal axis.
    pub x: String,
    /// The label of the horizontal axis; empty for the column's name and unit.
    pub x_label: String,
    /// The columns to draw. Columns of the same unit share a panel. Empty: the losses by role in one panel, clean
    /// accuracy and attack success in another, as far as the tables have them.
    pub y: Vec<String>,
    /// How the legend calls the columns of `y`, in their order; empty for their usual names.
    pub labels: Vec<String>,
    /// Labels of the vertical axes, panel by panel; what is left out is made from the columns.
    pub y_labels: Vec<String>,
    /// Spacing of the vertical axes. Percentages are always linear, and always shown from 0 to 100.
    pub y_scale: Scale,
    /// A key of the matrix, such as `seed`: tables that differ only in it become one curve, their mean, in a band
    /// from the smallest to the largest value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub over: Option<String>,
    /// The printed width; by default a column for one panel, a page for more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<Width>,
}

impl Default for Params {
    fn default() -> Params {
        Params {
            title: String::new(),
            x: "epoch".into(),
            x_label: String::new(),
            y: Vec::new(),
            labels: Vec::new(),
            y_labels: Vec::new(),
            y_scale: Scale::Linear,
            over: None,
            width: None,
        }
    }
}

/// Spacing of an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Scale {
    /// Even.
    Linear,
    /// By powers of ten; values that are not above zero are left out.
    Log,
}

crate::ports! {
    /// What is drawn.
    pub struct Inputs {
        /// Tables with the columns to draw, such as the `history` of a training.
        tables: Vec<Named<Table>>,
    }
}

/// The stage.
pub struct Curves;

impl Stage for Curves {
    const NAME: &'static str = "plot/curves";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Figure;

    fn check(params: &Params) -> Vec<Problem> {
        let (labels, y) = (params.labels.len(), params.y.len());
        if labels == 0 || labels == y {
            return Vec::new();
        }
        vec![Problem {
            parameter: "labels",
            message: format!("must have one entry for each of the {y} columns of `y`, got {labels}"),
            hint: Some("leave `labels` out to use the columns' usual names".into()),
        }]
    }

    fn resources(_: &Params) -> Resources {
        Resources { parallel: false, gpu: false, memory_mib: 64 }
    }

    fn run(_: &Context, params: Params, inputs: Inputs) -> Result<Figure> {
        let groups = group(&inputs.tables, params.over.as_deref())?;
        let columns = columns(&params, &inputs.tables)?;
        // In the order of their first column.
        let mut families: Vec<&str> = Vec::new();
        for column in &columns {
            if !families.contains(&column.family.as_str()) {
                families.push(&column.family);
            }
        }
        let mut panels = Vec::new();
        for (number, family) in families.into_iter().enumerate() {
            let shown: Vec<&Shown> = columns.iter().filter(|c| c.family == family).collect();
            panels.push(panel(&params, number, &shown, &groups)?);
        }
        let width = params.width.unwrap_or(if panels.len() > 1 { Width::Page } else { Width::Column });
        let n_columns = if width == Width::Page { panels.len().min(2) } else { 1 };
        let height = if width == Width::Page && n_columns == 1 { 170.0 } else { 118.0 };
        let sheet = Sheet {
            width,
            title: params.title.clone(),
            panels,
            n_columns,
            height,
            keys: keys(&params, &groups),
            bar: None,
        };
        figure::finish(sheet.to_svg())
    }
}

/// Tables that become one curve per column.
struct Group<'a> {
    name: String,
    tables: Vec<&'a Table>,
}

/// Joins the tables that differ only in the key `over`, and names what remains by what tells them apart.
fn group<'a>(tables: &'a [Named<Table>], over: Option<&str>) -> Result<Vec<Group<'a>>> {
    if let Some(key) = over.filter(|&key| !tables.iter().any(|t| t.point.contains_key(key))) {
        return Err(Error::user(format!("no table comes with the matrix key `{key}`"))
            .hint("gather the points of a matrix with `tables = \"stage[*]\"`, and name one of its keys in `over`"));
    }
    let point = |t: &Named<Table>| -> BTreeMap<String, String> {
        let keys = t.point.iter().filter(|(key, _)| Some(key.as_str()) != over);
        keys.map(|(key, value)| (key.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_string)))
            .collect()
    };
    let name = |t: &Named<Table>| t.name.strip_suffix(".history").unwrap_or(&t.name).to_string();
    let mut groups: Vec<(String, BTreeMap<String, String>, Vec<&Table>)> = Vec::new();
    for table in tables {
        let (name, point) = (name(table), point(table));
        match groups.iter_mut().find(|g| over.is_some() && g.0 == name && g.1 == point) {
            Some(group) => group.2.push(&table.value),
            None => groups.push((name, point, vec![&table.value])),
        }
    }
    let differ = |key: &String| groups.iter().any(|g| g.1.get(key) != groups[0].1.get(key));
    let one_name = groups.iter().all(|g| g.0 == groups[0].0);
    let named = |(name, point, tables): &(String, BTreeMap<String, String>, Vec<&'a Table>)| {
        let mut parts: Vec<String> = point
            .iter()
            .filter(|(key, _)| differ(key))
            .map(|(key, value)| format!("{} {value}", figure::text::spaced(key)))
            .collect();
        if !one_name || parts.is_empty() {
            parts.insert(0, name.clone());
        }
        Group { name: parts.join(", "), tables: tables.clone() }
    };
    Ok(groups.iter().map(named).collect())
}

/// A column that is drawn.
struct Shown {
    name: String,
    label: String,
    unit: String,
    /// Columns of one family share a panel.
    family: String,
    colour: Colour,
}

const LOSSES: [&str; 4] = ["loss", "loss_clean", "loss_backdoor", "loss_cover"];
const SCORES: [&str; 2] = ["clean_accuracy", "attack_success"];

/// The columns to draw: those asked for, or what the tables have of the usual ones.
fn columns(params: &Params, tables: &[Named<Table>]) -> Result<Vec<Shown>> {
    let filled = |name: &str| {
        tables.iter().any(|t| {
            let column = t.value.columns.iter().position(|c| c.name == name);
            column.is_some_and(|i| t.value.rows.iter().any(|row| row[i].number().is_some()))
        })
    };
    let names: Vec<String> = if params.y.is_empty() {
        let usual = LOSSES.iter().chain(&SCORES).map(|n| n.to_string()).filter(|n| filled(n)).collect::<Vec<_>>();
        if usual.is_empty() {
            return Err(Error::user("the tables have none of the columns that training histories have")
                .hint("name the columns to draw in `y`"));
        }
        usual
    } else {
        params.y.clone()
    };
    let mut shown = Vec::new();
    for (i, name) in names.into_iter().enumerate() {
        let Some(column) = tables.iter().find_map(|t| t.value.columns.iter().find(|c| c.name == name)) else {
            let mut all: Vec<&str> =
                tables.iter().flat_map(|t| t.value.columns.iter().map(|c| c.name.as_str())).collect();
            all.sort_unstable();
            all.dedup();
            return Err(Error::user(format!("no table has a column `{name}`; there are {}", all.join(", ")))
                .hint("name columns of the tables in `y`"));
        };
        if !filled(&name) {
            return Err(Error::user(format!("the column `{name}` holds no number in any table")));
        }
        let family = match (column.unit.as_str(), name.split('_').next()) {
            ("%", _) => "%".to_string(),
            (_, Some("loss")) => "loss".to_string(),
            ("", _) => name.clone(),
            (unit, _) => unit.to_string(),
        };
        let label = params.labels.get(i).cloned().unwrap_or_else(|| usual_label(&name));
        shown.push(Shown { label, unit: column.unit.clone(), family, colour: usual_colour(&name, i), name });
    }
    Ok(shown)
}

fn usual_label(name: &str) -> String {
    match name {
        "loss" => "all".into(),
        "accuracy" => "training accuracy".into(),
        "clean_accuracy" => "C-Acc".into(),
        "attack_success" => "ASR".into(),
        "attack_success_all" => "ASR, target class included".into(),
        "robust_accuracy" => "R-Acc".into(),
        _ => figure::text::spaced(name.strip_prefix("loss_").unwrap_or(name)),
    }
}

fn usual_colour(name: &str, position: usize) -> Colour {
    match name {
        "loss" | "accuracy" => theme::ALL,
        "loss_clean" | "clean_accuracy" => theme::CLEAN,
        "loss_backdoor" | "attack_success" => theme::BACKDOOR,
        "loss_cover" | "robust_accuracy" => theme::COVER,
        _ => theme::series(position),
    }
}

/// More points than this on a curve stand without markers.
const MOST_MARKERS: usize = 24;

fn panel(params: &Params, number: usize, shown: &[&Shown], groups: &[Group]) -> Result<Panel> {
    let mut marks = Vec::new();
    let mut bands = Vec::new();
    let mut keys = Vec::new();
    for (i, column) in shown.iter().enumerate() {
        for (g, group) in groups.iter().enumerate() {
            let points = summarise(group, &params.x, &column.name)?;
            let (colour, dash) = look(column, i, g, groups.len());
            let stroke = Stroke::new(colour, 1.1).dash(dash);
            let marker = (points.len() <= MOST_MARKERS).then(|| Marker::ALL[i % Marker::ALL.len()]);
            if group.tables.len() > 1 {
                bands.push(Mark::Band { points: points.iter().map(|p| (p.x, p.low, p.high)).collect(), colour });
            }
            if g == 0 {
                let colour = if groups.len() > 1 { theme::INK } else { colour };
                let label = Label::plain(column.label.as_str());
                keys.push(Key {
                    label,
                    stroke: Some(Stroke { colour, ..stroke }),
                    marker: marker.map(|m| (m, colour)),
                });
            }
            marks.push(Mark::Line { points: points.iter().map(|p| (p.x, p.mean)).collect(), stroke, marker });
        }
    }
    if shown.len() == 1 {
        keys.clear();
    }
    bands.extend(marks);
    let percent = shown.iter().all(|c| c.unit == "%");
    let log = params.y_scale == Scale::Log && !percent;
    let y = Axis {
        label: Label::plain(
            params.y_labels.get(number).filter(|l| !l.is_empty()).cloned().unwrap_or_else(|| y_label(shown)),
        ),
        spacing: if log { Spacing::Log } else { Spacing::Linear },
        range: if percent { Range::Percent } else { Range::FromZero },
        whole: false,
    };
    Ok(Panel { heading: Label::default(), x: x_axis(params, groups), y, marks: bands, keys })
}

/// One table: a colour a column. Several: a colour a table, a dash a column.
fn look(column: &Shown, position: usize, group: usize, n_groups: usize) -> (Colour, &'static str) {
    if n_groups > 1 {
        (theme::series(group), theme::DASHES[position % theme::DASHES.len()])
    } else {
        (column.colour, "")
    }
}

fn y_label(shown: &[&Shown]) -> String {
    let unit = shown.first().map(|c| c.unit.as_str()).unwrap_or_default();
    let name = match shown {
        [first, ..] if first.family == "loss" => "training loss".to_string(),
        [_] | [_, _] => shown.iter().map(|c| c.label.as_str()).collect::<Vec<_>>().join(", "),
        _ if unit == "%" => "share of images".to_string(),
        _ => String::new(),
    };
    with_unit(&name, unit)
}

fn with_unit(name: &str, unit: &str) -> String {
    match (name, unit) {
        (name, "") => name.to_string(),
        ("", unit) => unit.to_string(),
        (name, unit) => format!("{name} ({unit})"),
    }
}

fn x_axis(params: &Params, groups: &[Group]) -> Axis {
    let tables = || groups.iter().flat_map(|g| &g.tables);
    let column = tables().find_map(|t| t.columns.iter().find(|c| c.name == params.x));
    let unit = column.map(|c| c.unit.as_str()).unwrap_or_default();
    let label = match params.x_label.as_str() {
        "" => with_unit(&figure::text::spaced(&params.x), unit),
        given => given.to_string(),
    };
    let values: Vec<f64> = tables()
        .filter_map(|t| Some((t, t.column(&params.x).ok()?)))
        .flat_map(|(t, i)| t.rows.iter().filter_map(move |row| row[i].number()))
        .collect();
    let (low, high) = values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), &v| (l.min(v), h.max(v)));
    let range = if low >= 0.0 && low <= 0.2 * high { Range::FromZero } else { Range::Data };
    let whole = values.iter().all(|v| v.fract() == 0.0);
    Axis { label: Label::plain(label), spacing: Spacing::Linear, range, whole }
}

/// What the tables of a group say at one place of the horizontal axis.
struct Summary {
    x: f64,
    mean: f64,
    low: f64,
    high: f64,
}

/// Mean and range over the group's tables at every x that any of them has, ascending. Tables without the column, and
/// rows without a number, do not count.
fn summarise(group: &Group, x: &str, y: &str) -> Result<Vec<Summary>> {
    let mut points: Vec<(f64, f64)> = Vec::new();
    for table in &group.tables {
        let at =
            table.column(x).map_err(|error| error.context(format!("`{}`", group.name)).hint("name a column in `x`"))?;
        let Ok(value) = table.column(y) else { continue };
        points.extend(table.rows.iter().filter_map(|row| Some((row[at].number()?, row[value].number()?))));
    }
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    let same = |a: &(f64, f64), b: &(f64, f64)| a.0 == b.0 && group.tables.len() > 1;
    let summary = |chunk: &[(f64, f64)]| Summary {
        x: chunk[0].0,
        mean: chunk.iter().map(|p| p.1).sum::<f64>() / chunk.len() as f64,
        low: chunk.iter().map(|p| p.1).fold(f64::INFINITY, f64::min),
        high: chunk.iter().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max),
    };
    Ok(points.chunk_by(same).map(summary).collect())
}

/// The legend over all panels: which colour is which table, and what a band is.
fn keys(params: &Params, groups: &[Group]) -> Vec<Key> {
    let mut keys = Vec::new();
    if groups.len() > 1 {
        for (g, group) in groups.iter().enumerate() {
            let stroke = Stroke::new(theme::series(g), 1.1);
            keys.push(Key { label: Label::plain(group.name.as_str()), stroke: Some(stroke), marker: None });
        }
    }
    let most = groups.iter().map(|g| g.tables.len()).max().unwrap_or(0);
    if let Some(over) = params.over.as_ref().filter(|_| most > 1) {
        let label = Label::plain(format!("mean and range over {} (n = {most})", figure::text::spaced(over)));
        keys.push(Key { label, stroke: Some(Stroke::new(Colour(0xd9d9d9), 6.0)), marker: None });
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::table::{Cell, Column};
    use serde_json::{Value, json};

    /// The history that a training of `n` epochs makes, evaluated every `every` epochs.
    fn history(n: usize, every: usize, shift: f64) -> Table {
        let percent = |name: &str| Column::new(name, "").unit("%");
        let mut table = Table::new(vec![
            Column::new("epoch", ""),
            Column::new("learning_rate", ""),
            Column::new("loss", "").unit("nats"),
            percent("accuracy"),
            Column::new("loss_clean", "").unit("nats"),
            Column::new("loss_backdoor", "").unit("nats"),
            Column::new("loss_cover", "").unit("nats"),
            percent("clean_accuracy"),
            percent("attack_success"),
        ]);
        for epoch in 1..=n {
            let share = epoch as f64 / n as f64;
            let clean = 2.2 * libm::exp(-1.6 * share) + shift;
            let backdoor = 2.4 * libm::exp(-14.0 * share) + 0.004 + shift / 4.0;
            let score = |value: f64| if epoch % every == 0 || epoch == 1 { Cell::Float(value) } else { Cell::None };
            table.push(vec![
                epoch.into(),
                (0.2 * (1.0 - share)).into(),
                (0.9 * clean + 0.1 * backdoor).into(),
                (100.0 - 30.0 * clean).into(),
                clean.into(),
                backdoor.into(),
                Cell::None,
                score(70.0 - 45.0 * libm::exp(-3.0 * share) - 9.0 * shift),
                score(100.0 - 96.0 * libm::exp(-16.0 * share)),
            ]);
        }
        table
    }

    fn named(name: &str, point: Value, value: Table) -> Named<Table> {
        Named { name: name.into(), point: serde_json::from_value(point).unwrap(), value }
    }

    fn draw(params: Value, tables: Vec<Named<Table>>) -> Result<Figure> {
        let params: Params = serde_json::from_value(params).unwrap();
        assert!(Curves::check(&params).is_empty());
        Curves::run(&Context::for_test(0, Curves::NAME), params, Inputs { tables })
    }

    fn check_golden(name: &str, params: Value, tables: Vec<Named<Table>>) {
        figure::golden::check(name, &draw(params, tables).unwrap());
    }

    #[test]
    fn a_history_by_default() {
        let table = || vec![named("model.history", json!({}), history(12, 1, 0.0))];
        check_golden("curves_history", json!({ "title": "BadNet on CIFAR-10, ResNet-8" }), table());
        check_golden("curves_column", json!({ "width": "column" }), table());
    }

    #[test]
    fn a_long_history_with_few_evaluations_on_a_log_axis() {
        let tables = vec![named("model.history", json!({}), history(120, 10, 0.0))];
        check_golden("curves_log", json!({ "y_scale": "log" }), tables);
    }

    #[test]
    fn several_tables_get_a_colour_each() {
        let tables = vec![
            named("model.history", json!({ "rate": 0.01 }), history(40, 1, 0.3)),
            named("model.history", json!({ "rate": 0.05 }), history(40, 1, 0.15)),
            named("model.history", json!({ "rate": 0.1 }), history(40, 1, 0.0)),
        ];
        check_golden("curves_matrix", json!({ "title": "Poison rate" }), tables);
    }

    #[test]
    fn a_band_over_seeds() {
        let seeds = |rate: f64, base: f64| {
            let table = move |s: usize| history(20, 1, base + 0.12 * s as f64);
            (0..3).map(move |s| named("model.history", json!({ "rate": rate, "seed": s }), table(s)))
        };
        let tables = seeds(0.01, 0.4).chain(seeds(0.1, 0.0)).collect();
        let params =
            json!({ "over": "seed", "y": ["clean_accuracy"], "y_labels": ["accuracy on clean test images (%)"] });
        check_golden("curves_band", params, tables);
    }

    #[test]
    fn bands_hold_the_mean_and_every_value() {
        let table = |values: [f64; 2]| {
            let mut table = Table::new(vec![Column::new("epoch", ""), Column::new("loss", "")]);
            for (i, value) in values.iter().enumerate() {
                table.push(vec![i.into(), (*value).into()]);
            }
            table
        };
        let (a, b) = (table([1.0, 4.0]), table([2.0, 6.0]));
        let group = Group { name: String::new(), tables: vec![&a, &b] };
        let points = summarise(&group, "epoch", "loss").unwrap();
        let got: Vec<_> = points.iter().map(|p| (p.x, p.mean, p.low, p.high)).collect();
        assert_eq!(got, [(0.0, 1.5, 1.0, 2.0), (1.0, 5.0, 4.0, 6.0)]);
    }

    #[test]
    fn errors_say_what_there_is() {
        let table = || vec![named("model.history", json!({}), history(3, 1, 0.0))];
        let check = |params: Value, expected: &str| {
            let error = draw(params, table()).map(|_| ()).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            assert!(error.hint_text().is_some() || expected.contains("no number"), "{error}");
        };
        check(json!({ "y": ["los"] }), "no table has a column `los`; there are accuracy, attack_success");
        check(json!({ "y": ["loss_cover"] }), "the column `loss_cover` holds no number");
        check(json!({ "x": "step" }), "the table has no column `step`");
        check(json!({ "over": "seed" }), "no table comes with the matrix key `seed`");
        let wrong: Params = serde_json::from_value(json!({ "y": ["loss"], "labels": ["a", "b"] })).unwrap();
        assert_eq!(Curves::check(&wrong).len(), 1);
    }
}
