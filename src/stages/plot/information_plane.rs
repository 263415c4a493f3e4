//! The information plane: I(X;T) against I(T;Y), a path through the epochs for every subset of the training set.
//!
//! Tishby and Zaslavsky, "Deep learning and the information bottleneck principle" (2015), drew hidden layers in this
//! plane; here T is one layer per panel, and the paths of backdoor and clean samples stand side by side. Draws the
//! estimates that `evaluate/information` made, with their intervals, and estimates nothing itself.

use crate::artifact::{Figure, Table, table::Cell};
use crate::error::{Error, Result};
use crate::figure::{
    self, Axis, Bar, ColourBar, Key, Label, Mark, Marker, Panel, Range, Sheet, Spacing, Stroke, Width, theme,
};
use crate::stage::{Context, Resources, Stage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Draws I(T;Y) over I(X;T): a panel per layer, a path with its own marker per subset, epochs as colours.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Printed over the figure; empty for none.
    pub title: String,
    /// The subsets to draw, in this order; empty for all.
    pub subsets: Vec<String>,
    /// The layers to draw, in this order; empty for all.
    pub layers: Vec<String>,
    /// The printed width; by default a column for one panel, a page for more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<Width>,
}

crate::ports! {
    /// What is drawn.
    pub struct Inputs {
        /// Estimates made by `evaluate/information`.
        table: Table,
    }
}

/// The stage.
pub struct InformationPlane;

impl Stage for InformationPlane {
    const NAME: &'static str = "plot/information_plane";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Figure;

    fn resources(_: &Params) -> Resources {
        Resources { parallel: false, gpu: false, memory_mib: 64 }
    }

    fn run(_: &Context, params: Params, inputs: Inputs) -> Result<Figure> {
        let plane = Plane::read(&inputs.table)?;
        let subsets = choose("subset", &params.subsets, &plane.subsets)?;
        let layers = choose("layer", &params.layers, &plane.layers)?;
        let drawn = |p: &&Place| subsets.contains(&p.subset) && layers.contains(&p.layer);
        let mut epochs: Vec<usize> = plane.places.iter().filter(drawn).map(|p| p.epoch).collect();
        epochs.sort_unstable();
        epochs.dedup();
        if epochs.is_empty() {
            return Err(Error::user(
                "no epoch of the chosen subsets and layers has estimates of both I(X;T) and I(T;Y)",
            )
            .hint("estimate both quantities in `evaluate/information`"));
        }
        let bar = ColourBar { label: Label::plain("epoch"), values: epochs };
        let mut panels = Vec::new();
        let mut has_ceiling = false;
        for layer in &layers {
            // Several estimators do not share a path.
            for estimator in &plane.estimators {
                let places: Vec<&Place> = plane
                    .places
                    .iter()
                    .filter(drawn)
                    .filter(|p| p.layer == *layer && p.estimator == *estimator)
                    .collect();
                if places.is_empty() {
                    continue;
                }
                let heading = match (layers.len(), plane.estimators.len()) {
                    (1, 1) => String::new(),
                    (_, 1) => layer.clone(),
                    _ => format!("{layer}, {estimator}"),
                };
                let panel = panel(heading, &places, &subsets, &bar);
                has_ceiling |= ceiling_shows(&panel);
                panels.push(panel);
            }
        }
        let width = params.width.unwrap_or(if panels.len() > 1 { Width::Page } else { Width::Column });
        let n_columns = match (width, panels.len()) {
            (Width::Column, _) => 1,
            (Width::Page, 4) => 2,
            (Width::Page, n) => n.min(3),
        };
        let height = match (width, n_columns) {
            (Width::Column, _) => 150.0,
            (Width::Page, 1) => 260.0,
            (Width::Page, 2) => 165.0,
            _ => 115.0,
        };
        let mut keys = keys(&subsets);
        if has_ceiling {
            let label = Label::plain("ceiling of the estimator");
            keys.push(Key { label, stroke: Some(figure::mark::RULE), marker: None });
        }
        let sheet =
            Sheet { width, title: params.title.clone(), panels, n_columns, height, keys, bar: Some(Bar::Values(bar)) };
        figure::finish(sheet.to_svg())
    }
}

/// One estimate with its interval, in nats.
#[derive(Clone, Copy, Debug, Default)]
struct Estimate {
    value: f64,
    interval: Option<(f64, f64)>,
    ceiling: Option<f64>,
}

/// One epoch of one subset in one layer, both quantities known.
pub(super) struct Place {
    pub(super) layer: String,
    pub(super) subset: String,
    pub(super) estimator: String,
    pub(super) epoch: usize,
    xt: Estimate,
    ty: Estimate,
}

/// What the table holds, names in the order of their first row.
pub(super) struct Plane {
    pub(super) layers: Vec<String>,
    pub(super) subsets: Vec<String>,
    pub(super) estimators: Vec<String>,
    pub(super) places: Vec<Place>,
}

impl Plane {
    pub(super) fn read(table: &Table) -> Result<Plane> {
        let column = |name: &str| {
            let made = |e: Error| e.hint("the input `table` must come from `evaluate/information`");
            table.column(name).map_err(made)
        };
        let (epoch, layer, subset) = (column("epoch")?, column("layer")?, column("subset")?);
        let (quantity, estimator, value) = (column("quantity")?, column("estimator")?, column("estimate_nats")?);
        let (low, high, ceiling) = (column("interval_low")?, column("interval_high")?, column("ceiling_nats")?);
        let mut plane = Plane { layers: vec![], subsets: vec![], estimators: vec![], places: vec![] };
        type Pair = [Option<Estimate>; 2];
        let mut pairs: BTreeMap<(usize, usize, usize, usize), Pair> = BTreeMap::new();
        for row in &table.rows {
            let layer = remember(&mut plane.layers, &row[layer]);
            let subset = remember(&mut plane.subsets, &row[subset]);
            let estimator = remember(&mut plane.estimators, &row[estimator]);
            let side = match row[quantity].text() {
                Some("I(X;T)") => 0,
                Some("I(T;Y)") => 1,
                // Bounds and other quantities may stand in the same table.
                _ => continue,
            };
            let (Some(epoch), Some(value)) = (row[epoch].number(), row[value].number()) else { continue };
            let interval = row[low].number().zip(row[high].number());
            let estimate = Estimate { value, interval, ceiling: row[ceiling].number() };
            pairs.entry((layer, estimator, subset, epoch as usize)).or_default()[side] = Some(estimate);
        }
        for ((layer, estimator, subset, epoch), pair) in pairs {
            if let [Some(xt), Some(ty)] = pair {
                let (layer, subset) = (plane.layers[layer].clone(), plane.subsets[subset].clone());
                let estimator = plane.estimators[estimator].clone();
                plane.places.push(Place { layer, subset, estimator, epoch, xt, ty });
            }
        }
        Ok(plane)
    }
}

/// The position of a cell's text in `names`, to which it is added if it is new.
fn remember(names: &mut Vec<String>, cell: &Cell) -> usize {
    let name = match cell {
        Cell::Text(text) => text.clone(),
        Cell::Int(number) => number.to_string(),
        _ => String::new(),
    };
    names.iter().position(|n| *n == name).unwrap_or_else(|| {
        names.push(name);
        names.len() - 1
    })
}

/// The names asked for, or all.
pub(super) fn choose(what: &str, asked: &[String], all: &[String]) -> Result<Vec<String>> {
    match asked.iter().find(|name| !all.contains(name)) {
        Some(name) => Err(Error::user(format!("the table has no {what} `{name}`; it has {}", all.join(", ")))
            .hint(format!("name only these in `{what}s`"))),
        None if asked.is_empty() => Ok(all.to_vec()),
        None => Ok(asked.to_vec()),
    }
}

fn marker(position: usize) -> Marker {
    Marker::ALL[position % Marker::ALL.len()]
}

/// More epochs than this stand so close that their dots must be smaller.
const CLOSE: usize = 15;

pub(super) fn keys(subsets: &[String]) -> Vec<Key> {
    let key = |(i, subset): (usize, &String)| Key {
        label: Label::plain(subset.as_str()),
        stroke: None,
        marker: Some((marker(i), theme::GREY)),
    };
    subsets.iter().enumerate().map(key).collect()
}

pub(super) fn panel(heading: String, places: &[&Place], subsets: &[String], bar: &ColourBar) -> Panel {
    let radius = if bar.values.len() > CLOSE { figure::mark::DOT * 0.7 } else { figure::mark::DOT };
    let (mut paths, mut bars, mut dots) = (Vec::new(), Vec::new(), Vec::new());
    for (i, subset) in subsets.iter().enumerate() {
        let path: Vec<&&Place> = places.iter().filter(|p| p.subset == *subset).collect();
        let points = path.iter().map(|p| (p.xt.value, p.ty.value)).collect();
        paths.push(Mark::Line { points, stroke: Stroke::new(figure::Colour(0xb8b8b8), 0.7), marker: None });
        for place in path {
            let at = (place.xt.value, place.ty.value);
            let fill = bar.colour(place.epoch);
            if let Some((low, high)) = place.xt.interval {
                bars.push(Mark::Bar { from: (low, at.1), to: (high, at.1), colour: fill });
            }
            if let Some((low, high)) = place.ty.interval {
                bars.push(Mark::Bar { from: (at.0, low), to: (at.0, high), colour: fill });
            }
            dots.push(Mark::Dot { at, marker: marker(i), fill, radius });
        }
    }
    let mut marks: Vec<Mark> = ceilings(places, |p| p.xt.ceiling).into_iter().map(Mark::Upright).collect();
    marks.extend(ceilings(places, |p| p.ty.ceiling).into_iter().map(Mark::Level));
    marks.extend(paths.into_iter().chain(bars).chain(dots));
    let axis =
        |label: &str| Axis { label: Label::math(label), spacing: Spacing::Linear, range: Range::Data, whole: false };
    Panel {
        heading: Label::plain(heading),
        x: axis("*I*(*X*;*T*) (nats)"),
        y: axis("*I*(*T*;*Y*) (nats)"),
        marks,
        keys: vec![],
    }
}

/// The different ceilings, ascending.
fn ceilings(places: &[&Place], of: impl Fn(&Place) -> Option<f64>) -> Vec<f64> {
    let mut all: Vec<f64> = places.iter().filter_map(|p| of(p)).collect();
    all.sort_by(f64::total_cmp);
    all.dedup_by(|a, b| (*a - *b).abs() < 1e-6);
    all
}

/// Whether a ceiling lies within the panel's axes, so that the legend must explain it.
pub(super) fn ceiling_shows(panel: &Panel) -> bool {
    let (x, y) = panel.ranges();
    panel.marks.iter().any(|mark| match mark {
        Mark::Upright(at) => (x.0..=x.1).contains(at),
        Mark::Level(at) => (y.0..=y.1).contains(at),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::table::Column;
    use serde_json::{Value, json};

    const NAMES: [&str; 12] = [
        "epoch",
        "layer",
        "subset",
        "quantity",
        "estimator",
        "estimate_nats",
        "train_nats",
        "interval_low",
        "interval_high",
        "ceiling_nats",
        "n_train",
        "n_held_out",
    ];

    fn estimates(layers: &[&str], subsets: &[&str], epochs: &[usize], ceiling: f64) -> Table {
        let mut table = Table::new(NAMES.iter().map(|name| Column::new(name, "")).collect());
        for (l, layer) in layers.iter().enumerate() {
            for (s, subset) in subsets.iter().enumerate() {
                for &epoch in epochs {
                    let share = libm::log(epoch as f64) / libm::log(120.0);
                    let (l, s) = (l as f64, s as f64);
                    let xt = 1.2 + 0.25 * s + (2.4 - 0.5 * s) * share * (1.45 - share) - 0.2 * l;
                    let ty = 0.6 + 2.2 * share - 0.35 * s + 0.1 * l * share;
                    for (quantity, value) in [("I(X;T)", xt), ("I(T;Y)", ty)] {
                        let half = 0.06 + 0.03 * s;
                        table.push(vec![
                            epoch.into(),
                            (*layer).into(),
                            (*subset).into(),
                            quantity.into(),
                            "infonce".into(),
                            value.into(),
                            (value + 0.1).into(),
                            (value - half).into(),
                            (value + half).into(),
                            ceiling.into(),
                            1000usize.into(),
                            200usize.into(),
                        ]);
                    }
                }
            }
        }
        table
    }

    fn draw(params: Value, table: Table) -> Result<Figure> {
        let params: Params = serde_json::from_value(params).unwrap();
        InformationPlane::run(&Context::for_test(0, InformationPlane::NAME), params, Inputs { table })
    }

    const EPOCHS: [usize; 9] = [1, 5, 10, 20, 40, 60, 80, 100, 120];
    const SUBSETS: [&str; 4] = ["0_backdoor", "0_clean", "1", "2"];

    #[test]
    fn one_layer_in_a_column() {
        let table = estimates(&["layer4"], &SUBSETS, &EPOCHS, 4.85);
        let figure = draw(json!({ "title": "BadNet on CIFAR-10, ResNet-18" }), table).unwrap();
        figure::golden::check("information_plane", &figure);
    }

    #[test]
    fn two_layers_over_a_page_with_a_ceiling() {
        let every: Vec<usize> = (1..=40).collect();
        let table = estimates(&["layer3", "layer4"], &SUBSETS[..2], &every, 2.3);
        figure::golden::check("information_plane_layers", &draw(json!({}), table).unwrap());
    }

    #[test]
    fn twelve_subsets_are_told_apart() {
        let names = ["0_backdoor", "0_clean", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
        let table = estimates(&["layer4"], &names, &[1, 10, 120], 4.85);
        figure::golden::check("information_plane_subsets", &draw(json!({ "width": "page" }), table).unwrap());
    }

    #[test]
    fn filters_choose_and_unknown_names_are_refused() {
        let table = || estimates(&["layer3", "layer4"], &SUBSETS, &EPOCHS, 4.85);
        let all = draw(json!({}), table()).unwrap().svg;
        let some = draw(json!({ "subsets": ["1"], "layers": ["layer4"] }), table()).unwrap().svg;
        let dots = |svg: &str| svg.matches("stroke-width=\"0.4\"").count();
        // A marker per subset in the legend.
        assert_eq!((dots(&all), dots(&some)), (2 * 4 * 9 + 4, 9 + 1));
        let error = draw(json!({ "subsets": ["3"] }), table()).map(|_| ()).unwrap_err();
        assert_eq!(error.to_string(), "the table has no subset `3`; it has 0_backdoor, 0_clean, 1, 2");
        let mut half = table();
        half.rows.retain(|row| row[3].text() == Some("I(X;T)"));
        assert!(draw(json!({}), half).map(|_| ()).unwrap_err().hint_text().is_some());
        let other = Table::new(vec![Column::new("epoch", "")]);
        assert!(draw(json!({}), other).map(|_| ()).unwrap_err().to_string().contains("no column `layer`"));
    }
}
