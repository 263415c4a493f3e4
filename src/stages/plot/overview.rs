//! Attacks side by side: a column per attack, and below each other its information plane, its losses by role, and clean
//! accuracy and attack success over the epochs. A row has one scale, so that columns can be compared.
//!
//! The small multiples of E. Tufte, "Envisioning Information" (1990), over what `train/*` and `evaluate/information`
//! wrote. Estimates and smooths nothing.

use super::information_plane::{self as plane, Place, Plane};
use crate::artifact::{Figure, Table};
use crate::error::{Error, Result};
use crate::figure::{
    self, Axis, Bar, Colour, ColourBar, Key, Label, Mark, Marker, Panel, Range, Sheet, Spacing, Stroke, Width, theme,
};
use crate::stage::{Context, Named, Resources, Stage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Draws attacks side by side: a column each, with information plane, losses by role, clean accuracy and attack success.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Printed over the figure; empty for none.
    pub title: String,
    /// What stands over the columns, in the order of `histories`; empty for the points of the matrix, or the stages'
    /// names.
    pub headings: Vec<String>,
    /// The subsets in the information planes; empty for all that every table has.
    pub subsets: Vec<String>,
    /// The layer of the information planes; empty for the last that every table has.
    pub layer: String,
}

crate::ports! {
    /// What is drawn.
    pub struct Inputs {
        /// A training history per attack.
        histories: Vec<Named<Table>>,
        /// Estimates made by `evaluate/information`, in the same order; without them there are no information planes.
        information: Option<Vec<Named<Table>>>,
    }
}

/// The stage.
pub struct Overview;

/// More columns than this are too narrow to read.
const MOST: usize = 6;

impl Stage for Overview {
    const NAME: &'static str = "plot/overview";
    const VERSION: u32 = 2;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Figure;

    fn resources(_: &Params) -> Resources {
        Resources { parallel: false, gpu: false, memory_mib: 64 }
    }

    fn run(_: &Context, params: Params, inputs: Inputs) -> Result<Figure> {
        let n = inputs.histories.len();
        if n > MOST {
            return Err(Error::user(format!("{n} columns do not fit on a page, at most {MOST} do"))
                .hint("draw several overviews, or list fewer `histories`"));
        }
        let information = inputs.information.unwrap_or_default();
        if !information.is_empty() && information.len() != n {
            return Err(Error::user(format!(
                "{n} histories and {} tables of estimates do not pair up",
                information.len()
            ))
            .hint("list `histories` and `information` of the same attacks in the same order"));
        }
        if !params.headings.is_empty() && params.headings.len() != n {
            return Err(Error::user(format!("`headings` has {} entries for {n} columns", params.headings.len()))
                .hint("leave `headings` out to use the names of the stages or the points of the matrix"));
        }
        let headings = headings(&params, &inputs.histories);
        let tables: Vec<&Table> = inputs.histories.iter().map(|history| &history.value).collect();
        let mut rows = Vec::new();
        let (mut keys, mut bar) = (Vec::new(), None);
        if !information.is_empty() {
            let planes = Planes::read(&params, &information)?;
            rows.push(planes.panels());
            keys = planes.keys(&rows[0]);
            bar = Some(Bar::Values(planes.bar));
        }
        rows.push(curves(&tables, &LOSSES, "training loss (nats)", Range::FromZero)?);
        rows.push(curves(&tables, &SCORES, "C-Acc, ASR (%)", Range::Percent)?);
        for row in &mut rows {
            share_axes(row);
            share_keys(row);
        }
        for (panel, heading) in rows[0].iter_mut().zip(headings) {
            panel.heading = Label::plain(heading);
        }
        let sheet = Sheet {
            width: Width::Page,
            title: params.title.clone(),
            panels: rows.into_iter().flatten().collect(),
            n_columns: n,
            height: if n > 3 { 85.0 } else { 105.0 },
            keys,
            bar,
        };
        figure::finish(sheet.to_svg())
    }
}

/// The values of the matrix keys that differ; the stages' names if none does.
fn headings(params: &Params, histories: &[Named<Table>]) -> Vec<String> {
    if !params.headings.is_empty() {
        return params.headings.clone();
    }
    let differ = |key: &String| histories.iter().any(|h| h.point.get(key) != histories[0].point.get(key));
    let heading = |history: &Named<Table>| {
        let parts: Vec<String> = history
            .point
            .iter()
            .filter(|(key, _)| differ(key))
            .map(|(key, value)| match value.as_str() {
                Some(text) => figure::text::spaced(text),
                None => format!("{} {value}", figure::text::spaced(key)),
            })
            .collect();
        match parts.is_empty() {
            true => history.name.strip_suffix(".history").unwrap_or(&history.name).to_string(),
            false => parts.join(", "),
        }
    };
    histories.iter().map(heading).collect()
}

/// The information planes of all columns, with what they share.
struct Planes {
    planes: Vec<Plane>,
    subsets: Vec<String>,
    layer: String,
    bar: ColourBar,
}

impl Planes {
    fn read(params: &Params, information: &[Named<Table>]) -> Result<Planes> {
        let read = |table: &Named<Table>| Plane::read(&table.value).map_err(|e| e.context(format!("`{}`", table.name)));
        let planes: Vec<Plane> = information.iter().map(read).collect::<Result<_>>()?;
        let shared = |of: fn(&Plane) -> &Vec<String>| -> Vec<String> {
            let all = planes.first().map(of).into_iter().flatten();
            all.filter(|name| planes.iter().all(|plane| of(plane).contains(name))).cloned().collect()
        };
        let subsets = plane::choose("subset", &params.subsets, &shared(|plane| &plane.subsets))?;
        let asked: Vec<String> = Some(params.layer.clone()).filter(|layer| !layer.is_empty()).into_iter().collect();
        let layer = plane::choose("layer", &asked, &shared(|plane| &plane.layers))?.pop();
        let (false, Some(layer)) = (subsets.is_empty(), layer) else {
            return Err(Error::user("the tables of estimates have no subset, or no layer, in common")
                .hint("estimate the same `subsets` and `layers` for every attack"));
        };
        let mut planes =
            Planes { planes, subsets, layer, bar: ColourBar { label: Label::plain("epoch"), values: vec![] } };
        let mut epochs: Vec<usize> =
            planes.planes.iter().flat_map(|plane| planes.places(plane)).map(|place| place.epoch).collect();
        epochs.sort_unstable();
        epochs.dedup();
        planes.bar.values = epochs;
        Ok(planes)
    }

    /// What is drawn of a plane: the first of several estimators.
    fn places<'a>(&'a self, plane: &'a Plane) -> Vec<&'a Place> {
        let drawn = |place: &&Place| {
            place.layer == self.layer
                && self.subsets.contains(&place.subset)
                && plane.estimators.first() == Some(&place.estimator)
        };
        plane.places.iter().filter(drawn).collect()
    }

    fn panels(&self) -> Vec<Panel> {
        let panel = |one: &Plane| plane::panel(String::new(), &self.places(one), &self.subsets, &self.bar);
        self.planes.iter().map(panel).collect()
    }

    fn keys(&self, panels: &[Panel]) -> Vec<Key> {
        let mut keys = plane::keys(&self.subsets);
        if panels.iter().any(plane::ceiling_shows) {
            let label = Label::plain("ceiling of the estimator");
            keys.push(Key { label, stroke: Some(figure::mark::RULE), marker: None });
        }
        keys
    }
}

/// A column of a history with its label and colour.
type Curve = (&'static str, &'static str, Colour);

const LOSSES: [Curve; 3] = [
    ("loss_clean", "clean", theme::CLEAN),
    ("loss_backdoor", "backdoor", theme::BACKDOOR),
    ("loss_cover", "cover", theme::COVER),
];
const SCORES: [Curve; 2] = [("clean_accuracy", "C-Acc", theme::CLEAN), ("attack_success", "ASR", theme::BACKDOOR)];

/// More points than this on a curve stand without markers.
const MOST_MARKERS: usize = 16;

/// A panel per history with those of `curves` that it has.
fn curves(histories: &[&Table], curves: &[Curve], label: &str, range: Range) -> Result<Vec<Panel>> {
    let panel = |history: &&Table| -> Result<Panel> {
        let made = |error: Error| error.hint("`histories` must come from a training stage: `model.history`");
        let epoch = history.column("epoch").map_err(made)?;
        let (mut marks, mut keys) = (Vec::new(), Vec::new());
        for (i, (column, name, colour)) in curves.iter().enumerate() {
            let Ok(at) = history.column(column) else { continue };
            let point = |row: &Vec<_>| {
                let number = |at: usize| crate::artifact::table::Cell::number(&row[at]);
                Some((number(epoch)?, number(at)?))
            };
            let points: Vec<(f64, f64)> = history.rows.iter().filter_map(point).collect();
            if points.is_empty() {
                continue;
            }
            let stroke = Stroke::new(*colour, 1.1).dash(theme::DASHES[i % theme::DASHES.len()]);
            let marker = (points.len() <= MOST_MARKERS).then(|| Marker::ALL[i]);
            keys.push(Key {
                label: Label::plain(*name),
                stroke: Some(stroke),
                marker: marker.map(|marker| (marker, *colour)),
            });
            marks.push(Mark::Line { points, stroke, marker });
        }
        let axis = |label: &str, range: Range, whole: bool| Axis {
            label: Label::plain(label),
            spacing: Spacing::Linear,
            range,
            whole,
        };
        let (x, y) = (axis("epoch", Range::FromZero, true), axis(label, range, false));
        Ok(Panel { heading: Label::default(), x, y, marks, keys })
    };
    histories.iter().map(panel).collect()
}

/// Gives all panels of a row the range that covers them all, and only the first one a label beside it.
fn share_axes(row: &mut [Panel]) {
    let join = |a: (f64, f64), b: (f64, f64)| (a.0.min(b.0), a.1.max(b.1));
    let nothing = (f64::INFINITY, f64::NEG_INFINITY);
    let filled = row.iter().filter(|panel| !panel.marks.is_empty()).map(Panel::ranges);
    let (x, y) = filled.fold((nothing, nothing), |all, one| (join(all.0, one.0), join(all.1, one.1)));
    for (i, panel) in row.iter_mut().enumerate() {
        if x.0 < x.1 && y.0 < y.1 {
            (panel.x.range, panel.y.range) = (Range::Fixed(x.0, x.1), Range::Fixed(y.0, y.1));
        }
        if i > 0 {
            panel.y.label = Label::default();
        }
    }
}

/// Gives the first panel a legend for all of the row: the same curve looks the same everywhere.
fn share_keys(row: &mut [Panel]) {
    let all: Vec<Key> = row.iter_mut().flat_map(|panel| std::mem::take(&mut panel.keys)).collect();
    let mut keys: Vec<Key> = Vec::new();
    for key in all {
        if !keys.iter().any(|known| known.label == key.label) {
            keys.push(key);
        }
    }
    if let Some(first) = row.first_mut() {
        first.keys = keys;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::table::{Cell, Column};
    use serde_json::{Value, json};

    fn history(n: usize, speed: f64) -> Table {
        let names = ["epoch", "loss_clean", "loss_backdoor", "loss_cover", "clean_accuracy", "attack_success"];
        let mut table = Table::new(names.iter().map(|name| Column::new(name, "")).collect());
        for epoch in 1..=n {
            let share = epoch as f64 / n as f64;
            table.push(vec![
                epoch.into(),
                (2.2 * libm::exp(-1.6 * share)).into(),
                (2.4 * libm::exp(-speed * share)).into(),
                Cell::None,
                (85.0 - 60.0 * libm::exp(-3.0 * share)).into(),
                (100.0 - 97.0 * libm::exp(-speed * share)).into(),
            ]);
        }
        table
    }

    fn estimates(shift: f64) -> Table {
        let names = ["epoch", "layer", "subset", "quantity", "estimator"];
        let numbers = ["estimate_nats", "interval_low", "interval_high", "ceiling_nats"];
        let mut table = Table::new(names.iter().chain(&numbers).map(|name| Column::new(name, "")).collect());
        for (s, subset) in ["0_backdoor", "0_clean", "1"].into_iter().enumerate() {
            for epoch in [1usize, 5, 20, 60, 120] {
                let share = libm::log(epoch as f64) / libm::log(120.0);
                for (quantity, value) in [
                    ("I(X;T)", 1.2 + 0.4 * s as f64 + shift + 2.0 * share * (1.4 - share)),
                    ("I(T;Y)", 0.6 + 2.2 * share - 0.35 * s as f64),
                ] {
                    let mut row: Vec<Cell> =
                        vec![epoch.into(), "layer4".into(), subset.into(), quantity.into(), "infonce".into()];
                    row.extend([value, value - 0.1, value + 0.1, 4.85].map(Cell::from));
                    table.push(row);
                }
            }
        }
        table
    }

    fn named(name: &str, point: Value, value: Table) -> Named<Table> {
        Named { name: name.into(), point: serde_json::from_value(point).unwrap(), value }
    }

    fn draw(params: Value, histories: Vec<Named<Table>>, information: Option<Vec<Named<Table>>>) -> Result<Figure> {
        let params: Params = serde_json::from_value(params).unwrap();
        Overview::run(&Context::for_test(0, Overview::NAME), params, Inputs { histories, information })
    }

    #[test]
    fn three_attacks_side_by_side() {
        let attacks = [("badnet", 14.0), ("blend", 6.0), ("wanet", 2.5)];
        let histories =
            attacks.map(|(attack, speed)| named("model.history", json!({ "attack": attack }), history(40, speed)));
        let information =
            attacks.map(|(attack, speed)| named("information", json!({ "attack": attack }), estimates(0.05 * speed)));
        let figure =
            draw(json!({ "title": "CIFAR-10, ResNet-18" }), histories.into(), Some(information.into())).unwrap();
        figure::golden::check("overview", &figure);
    }

    #[test]
    fn five_without_estimates() {
        let one = |i: usize| named(&format!("attack_{i}.history"), json!({}), history(10, 2.0 + 3.0 * i as f64));
        let figure = draw(json!({}), (0..5).map(one).collect(), None).unwrap();
        assert!(figure.svg.contains(">attack_4<"));
        figure::golden::check("overview_five", &figure);
    }

    #[test]
    fn a_row_has_one_legend() {
        let mut with_cover = history(10, 2.0);
        with_cover.rows.iter_mut().for_each(|row| row[3] = 1.5.into());
        let mut row = curves(&[&history(10, 2.0), &with_cover], &LOSSES, "", Range::FromZero).unwrap();
        assert_eq!(row.iter().map(|panel| panel.keys.len()).collect::<Vec<_>>(), [2, 3]);
        share_keys(&mut row);
        assert_eq!(row.iter().map(|panel| panel.keys.len()).collect::<Vec<_>>(), [3, 0]);
        let points = json!({ "attack": "label_consistent" });
        let histories =
            vec![named("h", points, history(9, 2.0)), named("h", json!({ "attack": "a" }), history(9, 2.0))];
        assert!(draw(json!({}), histories, None).unwrap().svg.contains(">label consistent<"));
    }

    #[test]
    fn a_row_has_one_scale() {
        let mut row = curves(&[&history(10, 2.0), &history(40, 9.0)], &LOSSES, "", Range::FromZero).unwrap();
        assert_ne!(row[0].ranges(), row[1].ranges());
        share_axes(&mut row);
        assert_eq!(row[0].ranges(), row[1].ranges());
        assert!(row[0].ranges().0.1 >= 40.0);
    }

    #[test]
    fn wrong_requests_are_refused() {
        let refuse = |params: Value, n: usize, information: usize, expected: &str| {
            let histories = (0..n).map(|i| named(&i.to_string(), json!({}), history(3, 1.0))).collect();
            let information = (0..information).map(|i| named(&i.to_string(), json!({}), estimates(0.0))).collect();
            let error = draw(params, histories, Some(information)).map(|_| ()).unwrap_err();
            assert!(error.to_string().contains(expected) && error.hint_text().is_some(), "{error:?}");
        };
        refuse(json!({}), 7, 0, "7 columns do not fit");
        refuse(json!({}), 2, 1, "2 histories and 1 tables of estimates do not pair up");
        refuse(json!({ "headings": ["a"] }), 2, 0, "`headings` has 1 entries for 2 columns");
        refuse(json!({ "subsets": ["9"] }), 1, 1, "the table has no subset `9`");
    }
}
