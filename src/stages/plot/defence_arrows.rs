//! What a defence does to a model: a line from the backdoored model to the purified one in the plane of attack success
//! and clean accuracy, a panel per attack. A good defence goes straight to the left.

use crate::artifact::{Figure, Table};
use crate::error::{Error, Result};
use crate::figure::text::spaced;
use crate::figure::{
    self, Axis, Colour, Key, Label, Mark, Marker, Panel, Range, Sheet, Spacing, Stroke, Width, mark, theme,
};
use crate::stage::{Context, Resources, Stage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Draws what defences do to clean accuracy and attack success: a panel per attack, a line per defence.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Printed over the figure; empty for none.
    pub title: String,
    /// The column with a panel for every value.
    pub panels: String,
    /// The backdoored model that lines start from.
    pub from: String,
    /// The purified models, in the order of the legend; empty for all others.
    pub models: Vec<String>,
}

impl Default for Params {
    fn default() -> Params {
        Params { title: String::new(), panels: "attack".into(), from: "model".into(), models: Vec::new() }
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
pub struct DefenceArrows;

/// More models than there are markers cannot be told apart.
const MOST: usize = Marker::ALL.len() + 3;

impl Stage for DefenceArrows {
    const NAME: &'static str = "plot/defence_arrows";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Figure;

    fn resources(_: &Params) -> Resources {
        Resources { parallel: false, gpu: false, memory_mib: 64 }
    }

    fn run(_: &Context, params: Params, Inputs { summary }: Inputs) -> Result<Figure> {
        figure::finish(sheet(&params, &summary)?.to_svg())
    }
}

/// (attack success, clean accuracy), in per cent.
type Place = (f64, f64);

fn sheet(params: &Params, table: &Table) -> Result<Sheet> {
    let made = |error: Error| error.hint("`summary` comes from `evaluate/over_seeds`");
    let of = |name: &str| table.column(name).map_err(made);
    let (panel, model) = (of(&params.panels)?, of("model")?);
    let (success, accuracy) = (of("attack_success")?, of("clean_accuracy")?);
    let mut places: Vec<(String, String, Place)> = Vec::new();
    let (mut headings, mut models): (Vec<String>, Vec<String>) = Default::default();
    for row in &table.rows {
        let text = |at: usize| match (row[at].text(), row[at].number()) {
            (Some(text), _) => text.to_string(),
            (None, Some(number)) => number.to_string(),
            (None, None) => String::new(),
        };
        let (heading, model) = (text(panel), text(model));
        for (names, name) in [(&mut headings, &heading), (&mut models, &model)] {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        if let (Some(x), Some(y)) = (row[success].number(), row[accuracy].number()) {
            places.push((heading, model, (x, y)));
        }
    }
    if let Some(unknown) = params.models.iter().chain([&params.from]).find(|name| !models.contains(name)) {
        return Err(
            Error::user(format!("the table has no model `{unknown}`")).hint(format!("it has {}", models.join(", ")))
        );
    }
    match params.models.is_empty() {
        true => models.retain(|model| *model != params.from),
        false => models.clone_from(&params.models),
    }
    if models.len() > MOST {
        return Err(Error::user(format!("{} models cannot be told apart, at most {MOST} can", models.len()))
            .hint("name those to draw in `models`"));
    }
    let place = |heading: &str, model: &str| {
        places.iter().find(|(h, m, _)| h == heading && m == model).map(|(_, _, place)| *place)
    };
    let panels = headings.iter().map(|heading| {
        let before = place(heading, &params.from);
        let mut marks: Vec<Mark> = Vec::new();
        let after = |i: usize| place(heading, &models[i]);
        // Lines first, so that no line crosses a mark.
        for i in 0..models.len() {
            if let (Some(before), Some(after)) = (before, after(i)) {
                let stroke = Stroke::new(theme::pale(look(i).1, 0.35), 0.7);
                marks.push(Mark::Line { points: vec![before, after], stroke, marker: None });
            }
        }
        for i in 0..models.len() {
            let (marker, fill) = look(i);
            marks.extend(after(i).map(|at| Mark::Dot { at, marker, fill, radius: mark::DOT }));
        }
        marks.extend(before.map(|at| Mark::Dot { at, marker: Marker::Circle, fill: theme::INK, radius: mark::DOT }));
        let axis =
            |label: &str, range| Axis { label: Label::plain(label), spacing: Spacing::Linear, range, whole: false };
        Panel {
            heading: Label::plain(spaced(heading)),
            x: axis("ASR (%)", Range::Percent),
            y: axis("C-Acc (%)", Range::FromZero),
            marks,
            keys: Vec::new(),
        }
    });
    let panels: Vec<Panel> = panels.collect();
    let key = |name: &str, marker: (Marker, Colour)| Key {
        label: Label::plain(spaced(name)),
        stroke: None,
        marker: Some(marker),
    };
    let mut keys = vec![key("before any defence", (Marker::Circle, theme::INK))];
    keys.extend(models.iter().enumerate().map(|(i, model)| key(model, look(i))));
    let n_columns = panels.len().clamp(1, 4);
    Ok(Sheet { width: Width::Page, title: params.title.clone(), panels, n_columns, height: 105.0, keys, bar: None })
}

/// The marker and the colour of model number `i`; no two of the first dozen share both.
fn look(i: usize) -> (Marker, Colour) {
    // The circle in ink is the backdoored model; series number 6 is ink.
    let colours = [0, 1, 2, 3, 4, 5, 7].map(theme::series);
    (Marker::ALL[(i + 1) % Marker::ALL.len()], colours[i % colours.len()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::table::Column;
    use serde_json::{Value, json};

    fn summary(n_models: usize) -> Table {
        let names = ["attack", "model", "clean_accuracy", "attack_success"];
        let mut table = Table::new(names.map(|name| Column::new(name, "")).into());
        for (a, attack) in ["badnet", "blend", "adaptive_blend"].into_iter().enumerate() {
            table.push(vec![attack.into(), "model".into(), 65.0.into(), (100.0 - 20.0 * a as f64).into()]);
            for d in 0..n_models {
                let success = 5.0 + ((a * 31 + d * 17) % 60) as f64;
                table.push(vec![
                    attack.into(),
                    format!("defence_{d}").into(),
                    (60.0 - 2.0 * d as f64).into(),
                    success.into(),
                ]);
            }
        }
        table
    }

    fn draw(params: Value, summary: Table) -> Result<Figure> {
        let params: Params = serde_json::from_value(params).unwrap();
        DefenceArrows::run(&Context::for_test(0, DefenceArrows::NAME), params, Inputs { summary })
    }

    #[test]
    fn thirteen_defences_against_three_attacks() {
        let figure = draw(json!({ "title": "Before and after" }), summary(13)).unwrap();
        assert!(figure.svg.contains(">adaptive blend<") && figure.svg.contains(">defence 12<"));
        figure::golden::check("defence_arrows", &figure);
    }

    #[test]
    fn no_two_defences_look_alike() {
        let looks: Vec<_> = (0..MOST).map(look).collect();
        assert!((0..MOST).all(|i| !looks[..i].contains(&looks[i])));
    }

    #[test]
    fn wrong_tables_are_refused() {
        let refuse = |params: Value, table: Table, expected: &str| {
            let error = draw(params, table).map(|_| ()).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        };
        refuse(json!({ "from": "x" }), summary(1), "no model `x`");
        refuse(json!({}), summary(16), "16 models cannot be told apart");
        refuse(json!({ "panels": "x" }), summary(1), "`x`");
    }
}
