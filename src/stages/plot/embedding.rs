//! Representations in the plane: a panel per epoch, or per model, and layer, backdoor samples as a class of their own.
//!
//! Draws the maps that `evaluate/embedding` made, as the information-bottleneck analysis of backdoor training shows
//! them: classes in muted colours, backdoor samples on top in vermilion. Models stand side by side, as in figure 5 of FIP
//! (Karim et al., CCS 2024): before and after a defence. Computes no map.

use crate::artifact::{Figure, Table, table::Cell};
use crate::error::{Error, Result};
use crate::figure::text::spaced;
use crate::figure::{self, Axis, Colour, Key, Label, Mark, Marker, Panel, Range, Sheet, Spacing, Width, theme};
use crate::stage::{Context, Resources, Stage};
use crate::stages::evaluate::embedding::Map;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Draws maps of representations: a panel per layer and epoch or model, a colour per class, backdoor and cover samples as
/// classes of their own.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Printed over the figure; empty for none.
    pub title: String,
    /// The map to draw.
    pub map: Map,
    /// The layers to draw, in this order; empty for all.
    pub layers: Vec<String>,
    /// The epochs to draw; empty for all.
    pub epochs: Vec<usize>,
    /// The models to draw, in this order; empty for all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// The printed width; by default a column for one panel, a page for more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<Width>,
}

impl Default for Params {
    fn default() -> Params {
        Params {
            title: String::new(),
            map: Map::Tsne,
            layers: Vec::new(),
            epochs: Vec::new(),
            models: Vec::new(),
            width: None,
        }
    }
}

crate::ports! {
    /// What is drawn.
    pub struct Inputs {
        /// The `points` of `evaluate/embedding`.
        points: Table,
    }
}

/// The stage.
pub struct Embedding;

impl Stage for Embedding {
    const NAME: &'static str = "plot/embedding";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Figure;

    fn resources(_: &Params) -> Resources {
        Resources { parallel: false, gpu: false, memory_mib: 256 }
    }

    fn run(_: &Context, params: Params, inputs: Inputs) -> Result<Figure> {
        let points = read(&inputs.points, params.map)?;
        let layers = choose("layers", &params.layers, points.iter().map(|p| p.layer.clone()))?;
        let asked: Vec<At> = params.epochs.iter().map(|&epoch| At::Epoch(epoch)).collect();
        let asked = [asked, params.models.iter().cloned().map(At::Model).collect()].concat();
        let what = if params.models.is_empty() { "epochs" } else { "models" };
        let places = choose(what, &asked, points.iter().map(|p| p.at.clone()))?;
        let groups = Groups::of(&points);
        let mut panels = Vec::new();
        for layer in &layers {
            for at in &places {
                let heading = match (layers.len(), places.len()) {
                    (1, _) => at.heading(),
                    (_, 1) => layer.clone(),
                    _ => format!("{layer}, {}", at.heading()),
                };
                let shown: Vec<&Point> = points.iter().filter(|p| p.layer == *layer && p.at == *at).collect();
                if !shown.is_empty() {
                    panels.push(panel(heading, &shown, &groups));
                }
            }
        }
        if panels.is_empty() {
            return Err(Error::user("the table has no sample of the chosen layers and epochs or models"));
        }
        let width = params.width.unwrap_or(if panels.len() > 1 { Width::Page } else { Width::Column });
        let most = if width == Width::Page { 4 } else { 2 };
        // A row per layer where they fit, else rows of equal length.
        let n_columns = match places.len() {
            n if layers.len() > 1 && (2..=most).contains(&n) => n,
            _ => panels.len().div_ceil(panels.len().div_ceil(most)),
        };
        let sheet = Sheet {
            width,
            title: params.title.clone(),
            panels,
            n_columns,
            height: Sheet::square(width, n_columns),
            keys: groups.keys(),
            bar: None,
        };
        figure::finish(sheet.to_svg())
    }
}

/// What a sample counts as, in the order of drawing: what comes last lies on top.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    Class(i64),
    Cover,
    Backdoor,
}

struct Point {
    layer: String,
    at: At,
    group: Group,
    class_name: String,
    place: (f64, f64),
}

/// After which epoch, or in which model.
#[derive(Clone, Debug, PartialEq)]
enum At {
    Epoch(usize),
    Model(String),
}

impl At {
    fn heading(&self) -> String {
        match self {
            At::Epoch(epoch) => format!("epoch {epoch}"),
            At::Model(name) => spaced(name),
        }
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            At::Epoch(epoch) => write!(f, "{epoch}"),
            At::Model(name) => write!(f, "{name}"),
        }
    }
}

fn read(table: &Table, map: Map) -> Result<Vec<Point>> {
    let made =
        |error: Error| error.hint("the input `points` must come from `evaluate/embedding`, with this `map` in `maps`");
    let column = |name: &str| table.column(name).map_err(made);
    let model = table.column("model").ok();
    let first = model.map_or_else(|| column("epoch"), Ok)?;
    let (layer, role) = (column("layer")?, column("role")?);
    let (class, class_name) = (column("class")?, column("class_name")?);
    let (x, y) = (column(&format!("{}_x", map.name()))?, column(&format!("{}_y", map.name()))?);
    let text = |cell: &Cell| cell.text().unwrap_or_default().to_string();
    let point = |row: &Vec<Cell>| {
        let label = row[class].number()? as i64;
        let group = match row[role].text()? {
            "backdoor" => Group::Backdoor,
            "cover" => Group::Cover,
            _ => Group::Class(label),
        };
        let (layer, class_name) = (text(&row[layer]), text(&row[class_name]));
        let at = match model {
            Some(model) => At::Model(text(&row[model])),
            None => At::Epoch(row[first].number()? as usize),
        };
        let place = (row[x].number()?, row[y].number()?);
        Some(Point { layer, at, group, class_name, place })
    };
    Ok(table.rows.iter().filter_map(point).collect())
}

/// What was asked for, if the table has it, or all that it has, in its order.
fn choose<T: Clone + PartialEq + ToString>(what: &str, asked: &[T], has: impl Iterator<Item = T>) -> Result<Vec<T>> {
    let mut all: Vec<T> = Vec::new();
    for one in has {
        if !all.contains(&one) {
            all.push(one);
        }
    }
    match asked.iter().find(|one| !all.contains(one)) {
        Some(one) => {
            let all: Vec<String> = all.iter().map(T::to_string).collect();
            Err(Error::user(format!("`{what}` names {}, the table has {}", one.to_string(), all.join(", ")))
                .hint("name only these, or leave it out for all"))
        }
        None if asked.is_empty() => Ok(all),
        None => Ok(asked.to_vec()),
    }
}

/// Groups with their look.
struct Groups(BTreeMap<Group, (Colour, String)>);

/// How far colours of clean samples go to white: backdoor samples must stand out.
const PALE: f64 = 0.25;

impl Groups {
    fn of(points: &[Point]) -> Groups {
        let mut names: BTreeMap<Group, String> = BTreeMap::new();
        for point in points {
            names.entry(point.group).or_insert_with(|| match point.group {
                Group::Class(_) => point.class_name.clone(),
                Group::Cover => "cover".into(),
                Group::Backdoor => "backdoor".into(),
            });
        }
        let n_classes = names.keys().filter(|group| matches!(group, Group::Class(_))).count();
        let look = |(place, (group, name)): (usize, (Group, String))| {
            let look = match group {
                // More classes than colours that can be told apart: they are one.
                Group::Class(_) if n_classes > theme::CLASSES.len() => {
                    (theme::pale(theme::CLEAN, 0.5), format!("clean, {n_classes} classes"))
                }
                Group::Class(_) => (theme::pale(theme::CLASSES[place], PALE), name),
                Group::Cover => (theme::INK, name),
                Group::Backdoor => (theme::BACKDOOR, name),
            };
            (group, look)
        };
        Groups(names.into_iter().enumerate().map(look).collect())
    }

    fn keys(&self) -> Vec<Key> {
        let mut keys: Vec<(&Colour, &String)> = Vec::new();
        // Backdoor samples first: they are what the figure is about.
        for (colour, name) in self.0.values().rev() {
            if !keys.iter().any(|key| key.1 == name) {
                keys.push((colour, name));
            }
        }
        let first = self.0.keys().rev().take_while(|group| !matches!(group, Group::Class(_))).count();
        keys[first..].reverse();
        let key = |(colour, name): (&Colour, &String)| Key {
            label: Label::plain(name.as_str()),
            stroke: None,
            marker: Some((Marker::Circle, *colour)),
        };
        keys.into_iter().map(key).collect()
    }
}

fn panel(heading: String, points: &[&Point], groups: &Groups) -> Panel {
    // Many points need small dots.
    let radius = (30.0 / (points.len() as f64).sqrt()).clamp(0.55, 1.6);
    let marks = groups.0.iter().map(|(group, (colour, _))| Mark::Cloud {
        points: points.iter().filter(|p| p.group == *group).map(|p| p.place).collect(),
        fill: *colour,
        radius,
    });
    let axis = || Axis { label: Label::default(), spacing: Spacing::Linear, range: Range::Map, whole: false };
    Panel { heading: Label::plain(heading), x: axis(), y: axis(), marks: marks.collect(), keys: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::table::Column;
    use crate::rng::Streams;
    use serde_json::{Value, json};

    const NAMES: [&str; 10] =
        ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

    /// `each` samples of every class round a circle that grows with the epoch, and backdoor samples of class 0 beside it.
    fn points(layers: &[&str], epochs: &[usize], n_classes: usize, each: usize) -> Table {
        let columns = ["epoch", "layer", "row", "class", "class_name", "role", "tsne_x", "tsne_y"];
        let mut table = Table::new(columns.iter().map(|name| Column::new(name, "")).collect());
        let mut draws = Streams::new(0, "plot").stream("points");
        for (layer, &epoch) in layers.iter().flat_map(|layer| epochs.iter().map(move |epoch| (layer, epoch))) {
            for i in 0..each * (n_classes + 1) {
                let (class, is_backdoor) = (i / each % n_classes, i / each == n_classes);
                let angle = std::f64::consts::TAU * (i / each) as f64 / (n_classes + 1) as f64;
                let reach = 5.0 * libm::log(1.0 + epoch as f64);
                let role = match (is_backdoor, i % 5) {
                    (true, 0) => "cover",
                    (true, _) => "backdoor",
                    _ => "clean",
                };
                let name = NAMES.get(class).map_or_else(|| format!("class {class}"), |name| name.to_string());
                let place = |along: f64, noise: f64| Cell::from(reach * along + 2.5 * noise);
                table.push(vec![
                    epoch.into(),
                    (*layer).into(),
                    i.into(),
                    class.into(),
                    name.into(),
                    role.into(),
                    place(libm::cos(angle), draws.normal()),
                    place(libm::sin(angle), draws.normal()),
                ]);
            }
        }
        table
    }

    fn draw(params: Value, points: Table) -> Result<Figure> {
        let params: Params = serde_json::from_value(params).unwrap();
        Embedding::run(&Context::for_test(0, Embedding::NAME), params, Inputs { points })
    }

    #[test]
    fn epochs_over_a_page() {
        let table = points(&["layer4"], &[1, 5, 10, 20, 40, 80, 120], 10, 30);
        let figure = draw(json!({ "title": "t-SNE of layer4, BadNet on CIFAR-10" }), table).unwrap();
        figure::golden::check("embedding", &figure);
    }

    #[test]
    fn layers_by_epochs_with_many_classes() {
        let table = points(&["layer3", "layer4"], &[1, 60], 43, 8);
        figure::golden::check("embedding_layers", &draw(json!({}), table).unwrap());
    }

    #[test]
    fn models_side_by_side() {
        let mut table = points(&["avgpool"], &[60, 5], 10, 20);
        table.columns[0] = Column::new("model", "");
        for row in &mut table.rows {
            row[0] = if row[0] == Cell::Int(60) { "model" } else { "fast_fip" }.into();
        }
        let figure =
            draw(json!({ "title": "Before and after", "models": ["model", "fast_fip"] }), table.clone()).unwrap();
        assert!(figure.svg.contains(">fast fip<") && figure.svg.contains(">model<"));
        figure::golden::check("embedding_models", &figure);
        for (params, expected) in [
            (json!({ "models": ["fip"] }), "`models` names fip, the table has model, fast_fip"),
            (json!({ "epochs": [5] }), "`epochs` names 5, the table has model, fast_fip"),
        ] {
            let error = draw(params, table.clone()).map(|_| ()).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn one_panel_in_a_column() {
        let table = points(&["layer4"], &[1, 120], 3, 20);
        let figure = draw(json!({ "epochs": [120] }), table).unwrap();
        figure::golden::check("embedding_column", &figure);
        // A path per class, one for covers, one for backdoors.
        assert_eq!(figure.svg.matches("<path ").count(), 5);
        assert_eq!(figure.svg.matches("h0").count(), 80);
    }

    #[test]
    fn wrong_requests_are_refused() {
        let refuse = |params: Value, expected: &str| {
            let error = draw(params, points(&["layer4"], &[1, 5], 3, 4)).map(|_| ()).unwrap_err();
            assert!(error.to_string().contains(expected) && error.hint_text().is_some(), "{error:?}");
        };
        refuse(json!({ "epochs": [2] }), "`epochs` names 2, the table has 1, 5");
        refuse(json!({ "layers": ["a"] }), "`layers` names a, the table has layer4");
        refuse(json!({ "map": "pca" }), "no column `pca_x`");
    }
}
