//! How long defences took, as bars: the mean over all their runs, whiskers from the fastest to the slowest, and a mark for
//! each attack's mean.
//!
//! Times differ from run to run and machine to machine: they are in the records, not in any artifact, so that no stage can
//! draw them (invariant 3). `runner show --figure` does.

use crate::artifact::table::Cell;
use crate::artifact::{Figure, Table};
use crate::error::{Error, IoExt, Result};
use crate::figure::canvas::Frame;
use crate::figure::text::spaced;
use crate::figure::{self, Anchor, Canvas, Label, Marker, Spacing, Stroke, Style, Width, mark, theme};
use std::path::{Path, PathBuf};

/// The figure of a table of scores that has the columns `model`, `defence` and `seconds`, and marks for the values of
/// `attack` if it has that too. Models without a defence are left out: their time is that of training.
///
/// # Errors
/// A table without these columns or without defences.
pub fn figure(table: &Table, title: &str) -> Result<Figure> {
    figure::finish(draw(&read(table)?, title))
}

/// Writes `<stage>.seconds.svg` and `.png` into `dir`.
///
/// # Errors
/// What the disk says.
pub fn write(dir: &Path, stage: &str, figure: &Figure) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(dir).at("create", dir)?;
    let files = [("svg", figure.svg.as_bytes()), ("png", figure.png.as_slice())];
    let write = |(extension, bytes): (&str, &[u8])| {
        let path = dir.join(format!("{stage}.seconds.{extension}"));
        std::fs::write(&path, bytes).at("write", &path)?;
        Ok(path)
    };
    files.into_iter().map(write).collect()
}

/// The runs of one model.
struct Bar {
    model: String,
    /// Seconds by attack, those of a table without attacks under an empty name.
    runs: Vec<(String, Vec<f64>)>,
}

impl Bar {
    fn all(&self) -> impl Iterator<Item = f64> + '_ {
        self.runs.iter().flat_map(|(_, seconds)| seconds.iter().copied())
    }

    fn mean(&self) -> f64 {
        mean(self.all())
    }

    fn ends(&self) -> (f64, f64) {
        self.all().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), s| (low.min(s), high.max(s)))
    }
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, n) = values.fold((0.0, 0.0), |(sum, n), value| (sum + value, n + 1.0));
    sum / n
}

fn read(table: &Table) -> Result<Vec<Bar>> {
    let of = |name: &str| {
        let hint = "only a table of `evaluate/backdoor` with models that defences made has run times to draw";
        table.column(name).map_err(|error| Error::user(error.message().to_string()).hint(hint))
    };
    let (model, defence, seconds) = (of("model")?, of("defence")?, of("seconds")?);
    let attack = table.column("attack").ok();
    let mut bars: Vec<Bar> = Vec::new();
    for row in &table.rows {
        let text = |at: usize| row[at].text().unwrap_or_default().to_string();
        let Some(took) = row[seconds].number().filter(|_| text(defence) != "none") else { continue };
        let attack = attack.map_or_else(String::new, |at| match &row[at] {
            Cell::Text(text) => text.clone(),
            other => other.number().map_or_else(String::new, |number| number.to_string()),
        });
        let at = bars.iter().position(|bar| bar.model == text(model)).unwrap_or_else(|| {
            bars.push(Bar { model: text(model), runs: Vec::new() });
            bars.len() - 1
        });
        match bars[at].runs.iter_mut().find(|(name, _)| *name == attack) {
            Some((_, runs)) => runs.push(took),
            None => bars[at].runs.push((attack, vec![took])),
        }
    }
    if bars.is_empty() {
        return Err(Error::user("the table has no model that a defence made: there is nothing to draw"));
    }
    Ok(bars)
}

/// Height of a bar's row, of the bar in it, and of a row of the legend, in points.
const ROW: f64 = 14.0;
const BAR: f64 = 8.0;
const KEY: f64 = 10.0;
/// Radius of an attack's mark.
const DOT: f64 = 1.9;

fn draw(bars: &[Bar], title: &str) -> String {
    let width = if bars.len() > 6 { Width::Page } else { Width::Column }.points();
    let mut canvas = Canvas::new();
    let mut top = canvas.title(title, width, theme::MARGIN);
    let names: Vec<Label> = bars.iter().map(|bar| Label::plain(spaced(&bar.model))).collect();
    let left = theme::MARGIN + names.iter().map(|name| name.width(theme::SMALL)).fold(0.0, f64::max) + 5.0;
    let values: Vec<Label> = bars.iter().map(|bar| Label::plain(seconds(bar.mean()))).collect();
    let right = width - theme::MARGIN - values.iter().map(|label| label.width(theme::SMALL)).fold(0.0, f64::max) - 4.0;

    let mut attacks: Vec<&str> = Vec::new();
    for (attack, _) in bars.iter().flat_map(|bar| &bar.runs) {
        if !attack.is_empty() && !attacks.contains(&attack.as_str()) {
            attacks.push(attack);
        }
    }
    // One attack's mean is the bar itself.
    if attacks.len() < 2 {
        attacks.clear();
    }
    top = legend(&mut canvas, &attacks, (left, top), width);

    let most = bars.iter().map(|bar| bar.ends().1).fold(0.0, f64::max).max(1e-3);
    let range = (0.0, most * 1.02);
    let x = |value: f64| left + Spacing::Linear.share(value, range) * (right - left);
    let bottom = top + bars.len() as f64 * ROW;
    let line = Stroke::new(theme::INK, 0.6);
    let ticks = Spacing::Linear.ticks(range, if width > 300.0 { 8 } else { 4 }, false).major;
    for (value, _) in ticks.iter().filter(|(value, _)| *value > 0.0) {
        canvas.line((x(*value), top), (x(*value), bottom), &Stroke::new(theme::GRID, 0.5));
    }
    for (i, ((bar, name), value)) in bars.iter().zip(&names).zip(&values).enumerate() {
        let middle = top + (i as f64 + 0.5) * ROW;
        canvas.text_centred((left - 4.0, middle), name, Style::new(theme::SMALL, Anchor::End));
        let length = (x(bar.mean()) - left).max(0.4);
        let frame = Frame { x: left, y: middle - BAR / 2.0, width: length, height: BAR };
        canvas.rect(frame, theme::pale(theme::CLEAN, 0.55));
        let (low, high) = bar.ends();
        if high > low {
            canvas.line((x(low), middle), (x(high), middle), &line);
            for end in [low, high] {
                canvas.line((x(end), middle - 2.0), (x(end), middle + 2.0), &line);
            }
        }
        for (attack, runs) in &bar.runs {
            if let Some(place) = attacks.iter().position(|name| name == attack) {
                let (marker, fill) = look(place);
                let outline = marker.outline((x(mean(runs.iter().copied())), middle), DOT);
                canvas.shape(&outline, fill, &Stroke::new(theme::INK, 0.3));
            }
        }
        canvas.text_centred((right + 4.0, middle), value, Style::new(theme::SMALL, Anchor::Start));
    }
    canvas.line((left, top), (left, bottom), &line);
    canvas.line((left, bottom), (right, bottom), &line);
    for (value, label) in &ticks {
        canvas.line((x(*value), bottom), (x(*value), bottom + 2.6), &line);
        canvas.text((x(*value), bottom + 10.0), label, Style::new(theme::SMALL, Anchor::Middle));
    }
    let axis = Label::plain("wall time (s)");
    canvas.text(((left + right) / 2.0, bottom + 20.0), &axis, Style::new(theme::LABEL, Anchor::Middle));
    let n = bars.iter().map(|bar| bar.all().count()).max().unwrap_or(0);
    let caption = match (attacks.is_empty(), n) {
        (true, 1) => "one run each".to_string(),
        (true, n) => format!("mean of up to {n} runs; whiskers from the fastest to the slowest"),
        (false, n) => {
            format!("mean of up to {n} runs; whiskers from the fastest to the slowest; marks: means of an attack")
        }
    };
    let note = Style::new(theme::NOTE, Anchor::Start).colour(theme::GREY);
    let room = width - 2.0 * theme::MARGIN;
    canvas.text((theme::MARGIN, bottom + 30.0), &Label::plain(caption).fit(theme::NOTE, room), note);
    canvas.finish(width, bottom + 30.0 + theme::MARGIN + 2.0, title)
}

/// Draws the marks' meanings in rows; returns where the bars may begin.
fn legend(canvas: &mut Canvas, attacks: &[&str], (left, top): (f64, f64), width: f64) -> f64 {
    if attacks.is_empty() {
        return top + 2.0;
    }
    let (mut x, mut y) = (left, top + KEY / 2.0);
    for (i, attack) in attacks.iter().enumerate() {
        let label = Label::plain(spaced(attack));
        let room = 2.0 * mark::DOT + 4.0 + label.width(theme::SMALL);
        if x + room > width - theme::MARGIN && x > left {
            (x, y) = (left, y + KEY);
        }
        let (marker, fill) = look(i);
        canvas.shape(&marker.outline((x + mark::DOT, y), mark::DOT), fill, &Stroke::new(theme::INK, 0.4));
        canvas.text_centred((x + 2.0 * mark::DOT + 4.0, y), &label, Style::new(theme::SMALL, Anchor::Start));
        x += room + 9.0;
    }
    y + KEY / 2.0 + 4.0
}

/// The mark of attack number `i`.
fn look(i: usize) -> (Marker, theme::Colour) {
    (Marker::ALL[i % Marker::ALL.len()], theme::series(i + 1))
}

/// Three significant digits, as far as they stand before the point.
fn seconds(value: f64) -> String {
    match value {
        v if v < 9.995 => format!("{v:.2} s"),
        v if v < 99.95 => format!("{v:.1} s"),
        v => format!("{v:.0} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::table::Column;

    fn table(attacks: &[&str], models: &[&str]) -> Table {
        let mut table = Table::new(["attack", "model", "defence", "seconds"].map(|name| Column::new(name, "")).into());
        for (a, attack) in attacks.iter().enumerate() {
            for seed in 0..2 {
                table.push(vec![(*attack).into(), "model".into(), "none".into(), 900.0.into()]);
                for (d, model) in models.iter().enumerate() {
                    let took = 0.4 + 7.0 * d as f64 + (a as f64 + 0.5 * f64::from(seed)) * (1.0 + d as f64 / 3.0);
                    table.push(vec![(*attack).into(), (*model).into(), (*model).into(), took.into()]);
                }
            }
        }
        table
    }

    #[test]
    fn nine_defences_against_four_attacks() {
        let models =
            ["clp", "fine_tune", "neural_cleanse", "ft_sam", "fip", "fast_fip", "anp", "rnp", "a_defence_of_long_name"];
        let table = table(&["badnet", "blend", "wanet", "adaptive_blend"], &models);
        let figure = figure(&table, "Run time of defences").unwrap();
        // Four attacks of two seeds: 0.4 + mean of 0, 0.5, ..., 3.5.
        assert!(figure.svg.contains(">2.15 s<") && figure.svg.contains(">adaptive blend<"), "{}", figure.svg);
        assert!(!figure.svg.contains(">900 s<"));
        figure::golden::check("run_time", &figure);
    }

    #[test]
    fn one_attack_needs_no_legend() {
        let mut table = table(&["badnet"], &["fine_tune", "fip"]);
        table.rows.truncate(3);
        let figure = figure(&table, "").unwrap();
        assert!(figure.svg.contains(">one run each<") && !figure.svg.contains(">badnet<"), "{}", figure.svg);
        figure::golden::check("run_time_column", &figure);
    }

    #[test]
    fn tables_without_run_times_are_refused() {
        let refuse = |table: Table, expected: &str| {
            let error = figure(&table, "").map(|_| ()).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        };
        refuse(Table::new(vec![Column::new("model", "")]), "no column `defence`");
        refuse(table(&["badnet"], &[]), "nothing to draw");
    }
}
