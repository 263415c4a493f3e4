//! Training curves: columns of one or more tables against another column, a panel per unit.
//!
//! Without further parameters it knows the histories of `train/*` and `purify/*`: losses by role on the left,
//! accuracy on clean test images and the attack's success on the right. Smooths nothing.
//!
//! Tables whose rows name what they are about (`subset`, `quantity`, `layer`) are split: `by` makes a curve, and `panels`
//! a panel, of every value of a column. Mutual information against the epoch is
//! `y = ["estimate_nats"], by = ["subset"], panels = ["quantity"], interval = ["interval_low", "interval_high"]`; the
//! convergence of critics is `x = "step", y = ["held_out_nats"], by = ["estimator"], panels = ["distribution"],
//! over = "critic"`.

use crate::artifact::table::Cell;
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
    /// The columns to draw. Columns of the same unit share a panel. `loss_class_*` is all columns that begin so. Empty:
    /// the losses by role in one panel, clean accuracy and attack success in another, as far as the tables have them.
    pub y: Vec<String>,
    /// Columns whose values tell curves apart, such as `subset`: rows with other values make another curve.
    pub by: Vec<String>,
    /// Columns whose values tell panels apart, such as `quantity` or `layer`.
    pub panels: Vec<String>,
    /// Two columns, the lower and the upper end of an interval, drawn as a band about the one column of `y`.
    pub interval: Vec<String>,
    /// A column whose values are drawn as dashed levels, such as `ceiling_nats`; empty for none.
    pub level: String,
    /// How the legend calls the columns of `y`, in their order; empty for their usual names.
    pub labels: Vec<String>,
    /// Labels of the vertical axes, panel by panel; what is left out is made from the columns.
    pub y_labels: Vec<String>,
    /// Spacing of the vertical axes. Percentages are always linear, and always shown from 0 to 100.
    pub y_scale: Scale,
    /// A key of the matrix, such as `seed`, or a column, such as `critic`: tables, or rows, that differ only in it
    /// become one curve, their mean, in a band from the smallest to the largest value.
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
            by: Vec::new(),
            panels: Vec::new(),
            interval: Vec::new(),
            level: String::new(),
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
    const VERSION: u32 = 3;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Figure;

    fn check(params: &Params) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut problem = |parameter, message: String, hint: &str| {
            problems.push(Problem { parameter, message, hint: Some(hint.to_string()) });
        };
        let (labels, y) = (params.labels.len(), params.y.len());
        if labels != 0 && labels != y {
            let message = format!("must have one entry for each of the {y} columns of `y`, got {labels}");
            problem("labels", message, "leave `labels` out to use the columns' usual names");
        }
        if !matches!(params.interval.len(), 0 | 2) {
            let message = format!("must name the lower and the upper end, got {} columns", params.interval.len());
            problem(
                "interval",
                message,
                "`interval = [\"interval_low\", \"interval_high\"]` is what tables often have",
            );
        }
        if params.interval.len() == 2 && y != 1 {
            problem(
                "interval",
                format!("belongs to one column, `y` names {y}"),
                "name the column that it is about in `y`",
            );
        }
        problems
    }

    fn resources(_: &Params) -> Resources {
        Resources { parallel: false, gpu: false, memory_mib: 64 }
    }

    fn run(_: &Context, params: Params, inputs: Inputs) -> Result<Figure> {
        let columns = columns(&params, &inputs.tables)?;
        let (pieces, headings) = split(inputs.tables, &params)?;
        let groups = group(&pieces, &params)?;
        // In the order of their first column.
        let mut families: Vec<&str> = Vec::new();
        for column in &columns {
            if !families.contains(&column.family.as_str()) {
                families.push(&column.family);
            }
        }
        let mut panels = Vec::new();
        let places = headings.iter().flat_map(|heading| families.iter().map(move |family| (heading, *family)));
        for (number, (heading, family)) in places.enumerate() {
            let shown: Vec<&Shown> = columns.iter().filter(|c| c.family == family).collect();
            panels.push(panel(&params, (number, heading), &shown, &groups)?);
        }
        let width = params.width.unwrap_or(if panels.len() > 1 { Width::Page } else { Width::Column });
        let n_columns = if width == Width::Page { panels.len().min(2) } else { 1 };
        let height = if width == Width::Page && n_columns == 1 { 170.0 } else { 118.0 };
        let keys = keys(&params, &groups, &panels);
        let sheet = Sheet { width, title: params.title.clone(), panels, n_columns, height, keys, bar: None };
        figure::finish(sheet.to_svg())
    }
}

/// Rows of a table that belong to one curve in one panel.
struct Piece {
    /// The values of `panels`.
    heading: String,
    /// The table's name and point, with the values of `by`.
    name: String,
    point: BTreeMap<String, String>,
    table: Table,
}

/// A value as a legend shows it.
fn shown_value(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

/// Splits tables by the values of `by`, `panels` and `over`; the headings in the order of their first row. A table without
/// one of the columns stays whole, for that column.
fn split(tables: Vec<Named<Table>>, params: &Params) -> Result<(Vec<Piece>, Vec<String>)> {
    for name in params.by.iter().chain(&params.panels) {
        if !tables.iter().any(|t| t.value.columns.iter().any(|c| c.name == *name)) {
            return Err(no_column(&tables, name).hint("name columns of the tables in `by` and `panels`"));
        }
    }
    let mut pieces: Vec<Piece> = Vec::new();
    let mut headings: Vec<String> = Vec::new();
    for Named { name, point, value: table } in tables {
        let at = |name: &String| table.columns.iter().position(|c| c.name == *name);
        let panels: Vec<_> = params.panels.iter().map(at).collect();
        let over = params.over.iter().filter(|&name| at(name).is_some());
        let by: Vec<_> = params.by.iter().chain(over).map(|name| (name, at(name))).collect();
        let point: BTreeMap<String, String> =
            point.iter().map(|(key, value)| (key.clone(), shown_value(value))).collect();
        let name = name.strip_suffix(".history").unwrap_or(&name).to_string();
        let from = pieces.len();
        let across = at(&params.x);
        // What has no place on the horizontal axis, such as a bound that holds for all epochs, is no curve.
        let has_place = |row: &&Vec<Cell>| across.is_none_or(|at| row[at].number().is_some());
        for row in table.rows.iter().filter(has_place) {
            let value = |at: &Option<usize>| at.map(|at| cell_text(&row[at])).unwrap_or_default();
            let heading = panels.iter().map(value).filter(|text| !text.is_empty()).collect::<Vec<_>>().join(", ");
            let mut point = point.clone();
            point.extend(by.iter().map(|(key, at)| (key.to_string(), value(at))));
            if !headings.contains(&heading) {
                headings.push(heading.clone());
            }
            let is_it = |piece: &&mut Piece| piece.heading == heading && piece.point == point;
            match pieces[from..].iter_mut().find(is_it) {
                Some(piece) => piece.table.rows.push(row.clone()),
                None => {
                    let table = Table { rows: vec![row.clone()], ..Table::new(table.columns.clone()) };
                    pieces.push(Piece { heading, name: name.clone(), point, table });
                }
            }
        }
    }
    if pieces.is_empty() {
        return Err(
            Error::user(format!("no row has a number in the column `{}`", params.x)).hint("name another in `x`")
        );
    }
    Ok((pieces, headings))
}

fn cell_text(cell: &Cell) -> String {
    match cell {
        Cell::None => String::new(),
        Cell::Bool(value) => value.to_string(),
        Cell::Int(value) => value.to_string(),
        Cell::Float(value) => value.to_string(),
        Cell::Text(value) => value.clone(),
    }
}

/// Tables that become one curve per column and panel.
struct Group<'a> {
    name: String,
    /// None for a single group: its columns have colours of their own.
    colour: Option<Colour>,
    pieces: Vec<&'a Piece>,
}

/// Joins the tables that differ only in the key `over`, and names what remains by what tells them apart.
fn group<'a>(pieces: &'a [Piece], params: &Params) -> Result<Vec<Group<'a>>> {
    let over = params.over.as_deref();
    if let Some(key) = over.filter(|&key| !pieces.iter().any(|p| p.point.contains_key(key))) {
        return Err(Error::user(format!("no table comes with the matrix key, or has the column, `{key}`"))
            .hint("gather the points of a matrix with `tables = \"stage[*]\"`, and name one of its keys in `over`"));
    }
    let point = |piece: &Piece| -> BTreeMap<String, String> {
        let keys = piece.point.iter().filter(|(key, _)| Some(key.as_str()) != over);
        keys.map(|(key, value)| (key.clone(), value.clone())).collect()
    };
    // Pieces of one table in several panels belong together; equal points of one panel are one group only with `over`.
    let mut groups: Vec<(String, BTreeMap<String, String>, Vec<&Piece>)> = Vec::new();
    for piece in pieces {
        let point = point(piece);
        let fits = |group: &&mut (String, BTreeMap<String, String>, Vec<&Piece>)| {
            let is_free = over.is_some() || group.2.iter().all(|other| other.heading != piece.heading);
            group.0 == piece.name && group.1 == point && is_free
        };
        match groups.iter_mut().find(fits) {
            Some(group) => group.2.push(piece),
            None => groups.push((piece.name.clone(), point, vec![piece])),
        }
    }
    let differ = |key: &String| groups.iter().any(|g| g.1.get(key) != groups[0].1.get(key));
    let one_name = groups.iter().all(|g| g.0 == groups[0].0);
    // The values of a column that tells curves apart speak for themselves, unless they are numbers.
    let part = |(key, value): (&String, &String)| match params.by.contains(key) && value.parse::<f64>().is_err() {
        true => value.clone(),
        false => format!("{} {value}", figure::text::spaced(key)),
    };
    let named = |(name, point, pieces): &(String, BTreeMap<String, String>, Vec<&'a Piece>)| {
        let mut parts: Vec<String> = point.iter().filter(|(key, _)| differ(key)).map(part).collect();
        if !one_name || parts.is_empty() {
            parts.insert(0, name.clone());
        }
        Group { name: parts.join(", "), colour: None, pieces: pieces.clone() }
    };
    let mut named: Vec<Group> = groups.iter().map(named).collect();
    if named.len() > 1 {
        let names: Vec<String> = named.iter().map(|group| group.name.clone()).collect();
        named.iter_mut().zip(colours(&names)).for_each(|(group, colour)| group.colour = Some(colour));
    }
    Ok(named)
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
        asked(&params.y, tables)?
    };
    let mut shown = Vec::new();
    for (i, name) in names.into_iter().enumerate() {
        let Some(column) = tables.iter().find_map(|t| t.value.columns.iter().find(|c| c.name == name)) else {
            return Err(no_column(tables, &name).hint("name columns of the tables in `y`"));
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

/// The columns of `y`, those with a star replaced by the columns that begin so and hold a number.
fn asked(y: &[String], tables: &[Named<Table>]) -> Result<Vec<String>> {
    let mut names: Vec<String> = Vec::new();
    for name in y {
        let Some(start) = name.strip_suffix('*') else {
            names.push(name.clone());
            continue;
        };
        let columns =
            || tables.iter().flat_map(|t| t.value.columns.iter().enumerate().map(move |(i, c)| (&t.value, i, c)));
        let before = names.len();
        for (table, i, column) in columns().filter(|(_, _, c)| c.name.starts_with(start)) {
            if !names.contains(&column.name) && table.rows.iter().any(|row| row[i].number().is_some()) {
                names.push(column.name.clone());
            }
        }
        if names.len() == before {
            return Err(no_column(tables, name).hint("name columns of the tables in `y`"));
        }
    }
    Ok(names)
}

fn no_column(tables: &[Named<Table>], name: &str) -> Error {
    let mut all: Vec<&str> = tables.iter().flat_map(|t| t.value.columns.iter().map(|c| c.name.as_str())).collect();
    all.sort_unstable();
    all.dedup();
    Error::user(format!("no table has a column `{name}`; there are {}", all.join(", ")))
}

fn usual_label(name: &str) -> String {
    match name {
        "loss" => "all".into(),
        "accuracy" => "training accuracy".into(),
        "clean_accuracy" => "C-Acc".into(),
        "attack_success" => "ASR".into(),
        "attack_success_all" => "ASR, target class included".into(),
        "robust_accuracy" => "R-Acc".into(),
        _ => {
            // The unit stands behind the label.
            let name = name.strip_suffix("_nats").unwrap_or(name);
            figure::text::spaced(name.strip_prefix("loss_").unwrap_or(name))
        }
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

fn panel(params: &Params, (number, heading): (usize, &str), shown: &[&Shown], groups: &[Group]) -> Result<Panel> {
    let mut marks = Vec::new();
    let mut bands = Vec::new();
    let mut keys = Vec::new();
    for (i, column) in shown.iter().enumerate() {
        for (g, group) in groups.iter().enumerate() {
            let tables: Vec<&Table> = group.tables(heading).collect();
            let points = summarise(&tables, &params.x, &column.name)
                .map_err(|error| error.context(format!("`{}`", group.name)).hint("name a column in `x`"))?;
            let (colour, dash) = look(column, i, &group.colour);
            let stroke = Stroke::new(colour, 1.1).dash(dash);
            let marker = (points.len() <= MOST_MARKERS).then(|| Marker::ALL[i % Marker::ALL.len()]);
            if tables.len() > 1 {
                bands.push(Mark::Band { points: points.iter().map(|p| (p.x, p.low, p.high)).collect(), colour });
            } else if let ([low, high], [table]) = (params.interval.as_slice(), tables.as_slice()) {
                bands.push(Mark::Band { points: band(table, &params.x, low, high)?, colour });
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
    bands.extend(levels(params, heading, groups).into_iter().map(Mark::Level));
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
    Ok(Panel { heading: heading_label(heading), x: x_axis(params, groups), y, marks: bands, keys })
}

impl Group<'_> {
    /// Its tables in the panel `heading`.
    fn tables(&self, heading: &str) -> impl Iterator<Item = &Table> {
        self.pieces.iter().filter(move |piece| piece.heading == heading).map(|piece| &piece.table)
    }
}

/// (x, low, high) of the rows that have all three, ascending in x.
fn band(table: &Table, x: &str, low: &str, high: &str) -> Result<Vec<(f64, f64, f64)>> {
    let (x, low, high) = (table.column(x)?, table.column(low)?, table.column(high)?);
    let point = |row: &Vec<Cell>| Some((row[x].number()?, row[low].number()?, row[high].number()?));
    let mut points: Vec<(f64, f64, f64)> = table.rows.iter().filter_map(point).collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    Ok(points)
}

/// The different values of the column `level` in the panel `heading`, ascending.
fn levels(params: &Params, heading: &str, groups: &[Group]) -> Vec<f64> {
    let tables = groups.iter().flat_map(|group| group.tables(heading));
    let columns = tables.filter_map(|t| Some((t, t.columns.iter().position(|c| c.name == params.level)?)));
    let mut levels: Vec<f64> =
        columns.flat_map(|(t, i)| t.rows.iter().filter_map(move |row| row[i].number())).collect();
    levels.sort_by(f64::total_cmp);
    levels.dedup_by(|a, b| (*a - *b).abs() < 1e-6);
    levels
}

/// One table: a colour a column. Several: a colour a table, a dash a column.
fn look(column: &Shown, position: usize, of_group: &Option<Colour>) -> (Colour, &'static str) {
    match of_group {
        Some(colour) => (*colour, theme::DASHES[position % theme::DASHES.len()]),
        // Past the colours that there are, dashes.
        None => (column.colour, if position < theme::SERIES.len() { "" } else { theme::DASHES[1] }),
    }
}

/// A colour for every one of several groups: that of its role, if its name ends with one (`backdoor`, `0_clean`) and no
/// other group has taken it; else the next that no role needs.
fn colours(names: &[String]) -> Vec<Colour> {
    let role = |name: &String| match name.rsplit('_').next() {
        Some("backdoor") => Some(theme::BACKDOOR),
        Some("clean") => Some(theme::CLEAN),
        Some("cover") => Some(theme::COVER),
        _ => None,
    };
    let mut taken: Vec<Colour> = Vec::new();
    let of_roles: Vec<Option<Colour>> = names
        .iter()
        .map(|name| {
            let colour = role(name).filter(|colour| !taken.contains(colour));
            taken.extend(colour);
            colour
        })
        .collect();
    let mut free =
        theme::SERIES.into_iter().filter(|colour| !taken.contains(colour)).collect::<Vec<_>>().into_iter().cycle();
    of_roles.into_iter().map(|colour| colour.or_else(|| free.next()).unwrap_or(theme::INK)).collect()
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
    let tables = || groups.iter().flat_map(|g| &g.pieces).map(|piece| &piece.table);
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

/// Mean and range over the tables at every x that any of them has, ascending. Tables without the column, and
/// rows without a number, do not count.
fn summarise(tables: &[&Table], x: &str, y: &str) -> Result<Vec<Summary>> {
    let mut points: Vec<(f64, f64)> = Vec::new();
    for table in tables {
        let at = table.column(x)?;
        let Ok(value) = table.column(y) else { continue };
        points.extend(table.rows.iter().filter_map(|row| Some((row[at].number()?, row[value].number()?))));
    }
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    let same = |a: &(f64, f64), b: &(f64, f64)| a.0 == b.0 && tables.len() > 1;
    let summary = |chunk: &[(f64, f64)]| Summary {
        x: chunk[0].0,
        mean: chunk.iter().map(|p| p.1).sum::<f64>() / chunk.len() as f64,
        low: chunk.iter().map(|p| p.1).fold(f64::INFINITY, f64::min),
        high: chunk.iter().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max),
    };
    Ok(points.chunk_by(same).map(summary).collect())
}

/// Whether a level lies within the panel's axes, so that the legend must explain it.
fn level_shows(panel: &Panel) -> bool {
    let (_, (low, high)) = panel.ranges();
    panel.marks.iter().any(|mark| matches!(mark, Mark::Level(at) if (low..=high).contains(at)))
}

/// Quantities as formulas write them.
fn heading_label(heading: &str) -> Label {
    match heading {
        "I(X;T)" => Label::math("*I*(*X*;*T*)"),
        "I(T;Y)" => Label::math("*I*(*T*;*Y*)"),
        other => Label::plain(other),
    }
}

/// How a legend shows bands.
const BAND: Stroke = Stroke::new(Colour(0xd9d9d9), 6.0);

/// The legend over all panels: which colour is which table, and what a band is.
fn keys(params: &Params, groups: &[Group], panels: &[Panel]) -> Vec<Key> {
    let mut keys = Vec::new();
    if groups.len() > 1 {
        for group in groups {
            let stroke = Stroke::new(group.colour.unwrap_or(theme::INK), 1.1);
            keys.push(Key { label: Label::plain(group.name.as_str()), stroke: Some(stroke), marker: None });
        }
    }
    let at_once = |g: &Group| g.pieces.iter().map(|piece| g.tables(&piece.heading).count()).max().unwrap_or(0);
    let most = groups.iter().map(at_once).max().unwrap_or(0);
    if let Some(over) = params.over.as_ref().filter(|_| most > 1) {
        let label = Label::plain(format!("mean and range over {} (n = {most})", figure::text::spaced(over)));
        keys.push(Key { label, stroke: Some(BAND), marker: None });
    } else if params.interval.len() == 2 {
        keys.push(Key { label: Label::plain("interval, as the table defines it"), stroke: Some(BAND), marker: None });
    }
    if panels.iter().any(level_shows) {
        let name = params.level.strip_suffix("_nats").unwrap_or(&params.level);
        let label = Label::plain(figure::text::spaced(name));
        keys.push(Key { label, stroke: Some(figure::mark::RULE), marker: None });
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::table::Column;
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

    /// What `evaluate/information` writes: two quantities, three subsets, eight epochs.
    fn estimates() -> Table {
        let columns = ["epoch", "layer", "subset", "quantity"].map(|name| Column::new(name, ""));
        let nats = ["estimate_nats", "interval_low", "interval_high", "ceiling_nats"]
            .map(|name| Column::new(name, "").unit("nats"));
        let mut table = Table::new(columns.into_iter().chain(nats).collect());
        for (s, subset) in ["0_backdoor", "0_clean", "1"].into_iter().enumerate() {
            for (q, quantity) in ["I(X;T)", "I(T;Y)"].into_iter().enumerate() {
                for epoch in [1, 5, 10, 20, 40, 60, 90, 120] {
                    let share = libm::log(f64::from(epoch)) / libm::log(120.0);
                    let value = 1.0 + 0.4 * s as f64 + (2.5 - 0.6 * s as f64) * share * (1.5 - share) - 0.3 * q as f64;
                    let half = 0.05 + 0.1 * s as f64 * share;
                    let mut row: Vec<Cell> =
                        vec![i64::from(epoch).into(), "layer4".into(), subset.into(), quantity.into()];
                    row.extend([value, value - half, value + half, 2.7 - 0.2 * q as f64].map(Cell::from));
                    table.push(row);
                }
            }
        }
        table
    }

    #[test]
    fn information_against_the_epoch() {
        let params = json!({ "y": ["estimate_nats"], "by": ["subset"], "panels": ["quantity"], "level": "ceiling_nats",
            "interval": ["interval_low", "interval_high"], "title": "BadNet on CIFAR-10" });
        let figure = draw(params, vec![named("information", json!({}), estimates())]).unwrap();
        // Three curves and three bands in each of two panels.
        assert_eq!((figure.svg.matches("<polyline ").count(), figure.svg.matches("fill-opacity").count()), (6, 6));
        figure::golden::check("curves_information", &figure);
    }

    /// What `evaluate/estimator_selection` writes of its critics: two estimators, two distributions, three critics.
    fn convergence() -> Table {
        let texts = ["estimator", "distribution"].map(|name| Column::new(name, ""));
        let numbers = ["critic", "step"].map(|name| Column::new(name, ""));
        let nats = ["true_nats", "train_nats", "held_out_nats"].map(|name| Column::new(name, "").unit("nats"));
        let mut table = Table::new(texts.into_iter().chain(numbers).chain(nats).collect());
        for (e, estimator) in ["infonce", "mine"].into_iter().enumerate() {
            for (distribution, truth) in [("gaussian_pair", 2.919), ("independent", 0.0)] {
                for critic in 0..3 {
                    for step in (25..=500).step_by(25) {
                        let share = 1.0 - libm::exp(-f64::from(step) / (60.0 + 50.0 * e as f64));
                        let spread = 0.1 * f64::from(critic - 1) * libm::cos(f64::from(step) / 60.0);
                        let value = truth * share * (0.94 + 0.06 * e as f64) + spread * (1.0 + e as f64);
                        let mut row: Vec<Cell> = vec![estimator.into(), distribution.into()];
                        row.extend([i64::from(critic), i64::from(step)].map(Cell::from));
                        row.extend([truth, value + 0.2 * share, value].map(Cell::from));
                        table.push(row);
                    }
                }
            }
        }
        table
    }

    /// A curve for each estimator, its critics a band about their mean, the truth a level.
    #[test]
    fn critics_converge() {
        let params = json!({ "x": "step", "y": ["held_out_nats"], "by": ["estimator"], "panels": ["distribution"],
            "over": "critic", "level": "true_nats", "title": "Critics" });
        let figure = draw(params, vec![named("estimates.convergence", json!({}), convergence())]).unwrap();
        assert_eq!((figure.svg.matches("<polyline ").count(), figure.svg.matches("fill-opacity").count()), (4, 4));
        assert!(figure.svg.contains("mean and range over critic (n = 3)") && figure.svg.contains(">true<"));
        figure::golden::check("curves_convergence", &figure);
        let refused = draw(json!({ "y": ["held_out_nats"], "x": "step", "over": "seed" }), {
            vec![named("estimates.convergence", json!({}), convergence())]
        });
        assert!(refused.is_err(), "a column that no table has");
    }

    /// What `evaluate/information_bounds` writes: closed forms without an epoch, then three quantities over five epochs.
    fn bounds() -> Table {
        let columns = ["quantity", "epoch", "layer"].map(|name| Column::new(name, ""));
        let nats = ["estimate_nats", "interval_low", "interval_high", "entropy_nats"]
            .map(|name| Column::new(name, "").unit("nats"));
        let mut table = Table::new(columns.into_iter().chain(nats).collect());
        let mut push = |quantity: &str, epoch: Option<i64>, value: f64, half: f64| {
            let layer = if quantity == "I(B;T)" { "layer4".into() } else { Cell::None };
            let mut row: Vec<Cell> = vec![quantity.into(), epoch.into(), layer];
            row.extend([value, value - half, value + half, 0.3251].map(Cell::from));
            table.push(row);
        };
        push("H(B)", None, 0.3251, 0.0);
        push("I(B;Y)", None, 0.1936, 0.0);
        push("I(X;B)", None, 0.3251 - 0.0071, 0.01);
        for epoch in [1, 5, 20, 60, 120] {
            let share = libm::log(epoch as f64) / libm::log(120.0);
            push("I(B;T)", Some(epoch), 0.1 + 0.2 * share, 0.015);
            push("I(B;Y_hat)", Some(epoch), 0.05 + 0.14 * share, 0.012);
        }
        table
    }

    /// Quantities without an epoch have no curve; H(B) is a level.
    #[test]
    fn bounds_against_the_epoch() {
        let params = json!({ "y": ["estimate_nats"], "by": ["quantity"], "interval": ["interval_low", "interval_high"],
            "level": "entropy_nats", "title": "What T and the output know of the backdoor" });
        let figure = draw(params, vec![named("bounds", json!({}), bounds())]).unwrap();
        assert_eq!((figure.svg.matches("<polyline ").count(), figure.svg.matches("fill-opacity").count()), (2, 2));
        assert!(!figure.svg.contains(">I(X;B)<") && figure.svg.contains(">entropy<"));
        figure::golden::check("curves_bounds", &figure);
    }

    #[test]
    fn roles_keep_their_colours() {
        let names = ["1", "0_backdoor", "clean", "2_clean"].map(String::from);
        assert_eq!(colours(&names), [theme::COVER, theme::BACKDOOR, theme::CLEAN, theme::SERIES[3]]);
        let many: Vec<String> = (0..9).map(|i| i.to_string()).collect();
        assert_eq!(colours(&many), (0..9).map(theme::series).collect::<Vec<_>>());
    }

    #[test]
    fn a_curve_for_every_class() {
        let mut table = history(12, 1, 0.0);
        for class in 0..10 {
            table.columns.push(Column::new(&format!("loss_class_{class}"), "").unit("nats"));
            for (i, row) in table.rows.iter_mut().enumerate() {
                row.push((2.3 * libm::exp(-0.1 * f64::from(class + 2) * (i + 1) as f64 / 2.0)).into());
            }
        }
        table.columns.push(Column::new("loss_class_empty", "").unit("nats"));
        table.rows.iter_mut().for_each(|row| row.push(Cell::None));
        let figure = draw(json!({ "y": ["loss_class_*"] }), vec![named("model.history", json!({}), table)]).unwrap();
        assert_eq!(figure.svg.matches("<polyline ").count(), 10);
        figure::golden::check("curves_classes", &figure);
    }

    #[test]
    fn seeds_join_within_a_panel() {
        let tables = (0..3).map(|seed| named("information", json!({ "seed": seed }), estimates())).collect();
        let params = json!({ "y": ["estimate_nats"], "by": ["subset"], "panels": ["quantity"], "over": "seed" });
        let svg = draw(params, tables).unwrap().svg;
        assert_eq!(svg.matches("<polyline ").count(), 6);
        assert!(svg.contains("over seed (n = 3)") && svg.contains(">0_backdoor<"));
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
        let points = summarise(&[&a, &b], "epoch", "loss").unwrap();
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
        check(json!({ "y": ["gain_*"] }), "no table has a column `gain_*`");
        check(json!({ "by": ["subset"] }), "no table has a column `subset`");
        check(json!({ "over": "seed" }), "no table comes with the matrix key, or has the column, `seed`");
        let wrong: Params = serde_json::from_value(json!({ "y": ["loss"], "labels": ["a", "b"] })).unwrap();
        assert_eq!(Curves::check(&wrong).len(), 1);
        let wrong: Params = serde_json::from_value(json!({ "interval": ["low"] })).unwrap();
        assert_eq!(Curves::check(&wrong)[0].parameter, "interval");
    }
}
