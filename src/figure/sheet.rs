//! Panels on a sheet of paper: a grid of equal frames, a title and legends above, a colour bar beside.
//!
//! Legends stand outside the frames, so they hide no data.

use super::canvas::{Anchor, Canvas, Frame, Style};
use super::mark::{Key, Stroke};
use super::panel::{GAP, Panel, TICK};
use super::scale::{Spacing, Ticks};
use super::text::{CAP_HEIGHT, Label};
use super::theme::{INK, LABEL, MARGIN, SMALL, Width, viridis};

/// A figure made of panels.
#[derive(Clone, Debug)]
pub struct Sheet {
    /// How wide it is printed.
    pub width: Width,
    /// What stands over everything; empty for nothing.
    pub title: String,
    /// The panels, row by row.
    pub panels: Vec<Panel>,
    /// Panels in a row.
    pub n_columns: usize,
    /// Height of every frame in points.
    pub height: f64,
    /// A legend for all panels.
    pub keys: Vec<Key>,
    /// What the colours of dots or fields mean.
    pub bar: Option<Bar>,
}

/// What colours mean, beside the panels.
#[derive(Clone, Debug)]
pub enum Bar {
    /// A colour for each of a few values.
    Values(ColourBar),
    /// A colour for every value of a range.
    Scale(ColourScale),
}

impl Bar {
    /// Room that the bar takes right of the frames.
    fn room(&self) -> f64 {
        match self {
            Bar::Values(bar) => bar.room(),
            Bar::Scale(scale) => scale.room(),
        }
    }
}

/// A colour bar over a range.
#[derive(Clone, Debug)]
pub struct ColourScale {
    /// What the values are.
    pub label: Label,
    /// How they are spaced.
    pub spacing: Spacing,
    /// The values of the darkest and the lightest colour.
    pub range: (f64, f64),
}

/// A colour bar with a field per value: values that were observed, however far apart.
#[derive(Clone, Debug)]
pub struct ColourBar {
    /// What the values are.
    pub label: Label,
    /// The values, ascending.
    pub values: Vec<usize>,
}

impl ColourBar {
    /// The colour of `value`: even steps of viridis from the first to the last value.
    pub fn colour(&self, value: usize) -> super::Colour {
        let place = self.values.iter().position(|&v| v == value).unwrap_or(0);
        // A single value is not "early": take the middle.
        viridis(if self.values.len() > 1 { place as f64 / (self.values.len() - 1) as f64 } else { 0.5 })
    }
}

/// Height of a row of a legend.
const ROW: f64 = 10.0;
/// Width of a colour bar, and its distance from the frame beside it.
const BAR: (f64, f64) = (7.0, 9.0);
/// Space between two columns, and between two rows, of panels.
const BETWEEN: (f64, f64) = (12.0, 9.0);
/// A tick label at the right end of an axis stands out by up to this.
const OVERHANG: f64 = 8.0;

impl Sheet {
    /// The height that makes frames of panels without tick labels square, `n_columns` in a row.
    pub fn square(width: Width, n_columns: usize) -> f64 {
        let n = n_columns.max(1) as f64;
        (width.points() - 2.0 * MARGIN - OVERHANG - (n - 1.0) * BETWEEN.0) / n
    }

    /// The figure as an SVG document.
    pub fn to_svg(&self) -> String {
        let width = self.width.points();
        let mut canvas = Canvas::new();
        let mut y = canvas.title(&self.title, width, MARGIN);
        let n_columns = self.n_columns.clamp(1, self.panels.len().max(1));
        let lefts: Vec<f64> = (0..n_columns)
            .map(|c| self.panels.iter().skip(c).step_by(n_columns).map(|p| p.left(self.height)).fold(0.0, f64::max))
            .collect();
        let beside = self.bar.as_ref().map_or(OVERHANG, Bar::room);
        let taken = lefts.iter().sum::<f64>() + (n_columns - 1) as f64 * BETWEEN.0 + beside + 2.0 * MARGIN;
        let frame_width = ((width - taken) / n_columns as f64).max(20.0);

        let first_left = MARGIN + lefts.first().copied().unwrap_or(0.0);
        let rows = arrange(&self.keys, width - MARGIN - first_left);
        draw_keys(&mut canvas, &self.keys, &rows, (first_left, y));
        y += rows.len() as f64 * ROW + if rows.is_empty() { 0.0 } else { 3.0 };

        let mut bar_from = None;
        for (number, row) in self.panels.chunks(n_columns).enumerate() {
            if number > 0 {
                y += BETWEEN.1;
            }
            let heading = if row.iter().any(|p| !p.heading.is_empty()) { LABEL * 1.35 } else { 0.0 };
            // A legend of the first panel alone is one of the whole row.
            let is_shared = row.len() > 1 && row[1..].iter().all(|panel| panel.keys.is_empty());
            let limit = if is_shared { width - MARGIN - first_left } else { frame_width + OVERHANG };
            let arranged: Vec<Vec<Vec<usize>>> = row.iter().map(|p| arrange(&p.keys, limit)).collect();
            let legend = arranged.iter().map(Vec::len).max().unwrap_or(0) as f64 * ROW;
            let top = y + heading + legend + 4.0;
            let mut x = MARGIN;
            for (column, ((panel, keys), left)) in row.iter().zip(&arranged).zip(&lefts).enumerate() {
                x += left;
                let heading_at = (x, y + LABEL * 0.95);
                // Up to the next heading, which stands over the next frame.
                let room = frame_width + lefts.get(column + 1).map_or(beside, |left| BETWEEN.0 + left) - GAP;
                canvas.text(heading_at, &panel.heading.fit(LABEL, room), Style::new(LABEL, Anchor::Start));
                // Next to the frame, whatever the other panels need.
                let keys_at = (x, top - 4.0 - keys.len() as f64 * ROW);
                draw_keys(&mut canvas, &panel.keys, keys, keys_at);
                panel.draw(&mut canvas, Frame { x, y: top, width: frame_width, height: self.height }, *left);
                x += frame_width + BETWEEN.0;
            }
            bar_from.get_or_insert(top);
            y = top + self.height + row.iter().map(Panel::below).fold(0.0, f64::max);
        }
        if let (Some(bar), Some(top)) = (&self.bar, bar_from) {
            let frame = Frame { x: width - MARGIN - beside + BAR.1, y: top, width: BAR.0, height: self.height };
            match bar {
                Bar::Values(bar) => bar.draw(&mut canvas, frame),
                Bar::Scale(scale) => scale.draw(&mut canvas, frame),
            }
        }
        canvas.finish(width, y + MARGIN, &self.title)
    }
}

/// Distributes keys over rows no wider than `limit`.
fn arrange(keys: &[Key], limit: f64) -> Vec<Vec<usize>> {
    let mut rows: Vec<Vec<usize>> = Vec::new();
    let mut used = f64::INFINITY;
    for (i, key) in keys.iter().enumerate() {
        let width = key_width(key);
        if used + width > limit {
            rows.push(Vec::new());
            used = 0.0;
        }
        used += width + SPACE;
        if let Some(row) = rows.last_mut() {
            row.push(i);
        }
    }
    rows
}

/// Between a sample and its label, and between two keys.
const TO_LABEL: f64 = 3.0;
const SPACE: f64 = 9.0;
/// A longer label is cut.
const LONGEST: f64 = 180.0;

fn key_width(key: &Key) -> f64 {
    key.sample_width() + TO_LABEL + key.label.width(SMALL).min(LONGEST)
}

fn draw_keys(canvas: &mut Canvas, keys: &[Key], rows: &[Vec<usize>], (left, top): (f64, f64)) {
    for (number, row) in rows.iter().enumerate() {
        let y = top + (number as f64 + 0.5) * ROW;
        let mut x = left;
        for key in row.iter().filter_map(|&i| keys.get(i)) {
            key.draw_sample(canvas, x, y);
            let label_at = (x + key.sample_width() + TO_LABEL, y);
            canvas.text_centred(label_at, &key.label.fit(SMALL, LONGEST), Style::new(SMALL, Anchor::Start));
            x += key_width(key) + SPACE;
        }
    }
}

/// Room that a bar with these tick labels takes right of the frames.
fn room<'a>(labels: impl Iterator<Item = &'a Label>) -> f64 {
    BAR.1 + BAR.0 + TICK + GAP + labels.map(|label| label.width(SMALL)).fold(0.0, f64::max) + GAP + LABEL * 1.1
}

/// The label beside a bar that takes `room`.
fn draw_label(canvas: &mut Canvas, frame: Frame, room: f64, label: &Label) {
    let x = frame.x + room - BAR.1 - LABEL * CAP_HEIGHT / 2.0;
    canvas.text_centred((x, frame.y + frame.height / 2.0), label, Style::new(LABEL, Anchor::Middle).upwards());
}

/// Fields of a bar over a range: steps that the eye does not see.
const STEPS: usize = 64;

impl ColourScale {
    /// The colour of `value`: that of the nearer end, outside of the range.
    pub fn colour(&self, value: f64) -> super::Colour {
        if !self.spacing.shows(value) {
            return viridis(if value > 0.0 { 1.0 } else { 0.0 });
        }
        viridis(self.spacing.share(value, self.range))
    }

    fn ticks(&self) -> Ticks {
        self.spacing.ticks(self.range, 6, false)
    }

    fn room(&self) -> f64 {
        room(self.ticks().major.iter().map(|(_, label)| label))
    }

    fn draw(&self, canvas: &mut Canvas, frame: Frame) {
        let field = frame.height / STEPS as f64;
        for step in 0..STEPS {
            let y = frame.bottom() - (step + 1) as f64 * field;
            // Overlapping by a hair, as above.
            let height = if step == 0 { field } else { field + 0.3 };
            canvas.rect(Frame { y, height, ..frame }, viridis((step as f64 + 0.5) / STEPS as f64));
        }
        let line = Stroke::new(INK, 0.6);
        canvas.frame(frame, &line);
        let ticks = self.ticks();
        let place = |value: f64| frame.bottom() - self.spacing.share(value, self.range) * frame.height;
        for (value, label) in &ticks.major {
            let y = place(*value);
            canvas.line((frame.right(), y), (frame.right() + TICK, y), &line);
            canvas.text_centred((frame.right() + TICK + GAP, y), label, Style::new(SMALL, Anchor::Start));
        }
        for &value in &ticks.minor {
            let y = place(value);
            canvas.line((frame.right(), y), (frame.right() + TICK * 0.6, y), &line);
        }
        draw_label(canvas, frame, self.room(), &self.label);
    }
}

impl ColourBar {
    fn labels(&self) -> Vec<Label> {
        self.values.iter().map(|v| Label::plain(v.to_string())).collect()
    }

    fn room(&self) -> f64 {
        room(self.labels().iter())
    }

    fn draw(&self, canvas: &mut Canvas, frame: Frame) {
        let n = self.values.len().max(1) as f64;
        let field = frame.height / n;
        for (i, &value) in self.values.iter().enumerate() {
            let y = frame.bottom() - (i + 1) as f64 * field;
            // Fields overlap by a hair, or renderers let the paper shine through the seams.
            let height = if i == 0 { field } else { field + 0.3 };
            canvas.rect(Frame { y, height, ..frame }, self.colour(value));
        }
        let line = Stroke::new(INK, 0.6);
        canvas.frame(frame, &line);
        let labels = self.labels();
        for &i in &self.labelled(field) {
            let y = frame.bottom() - (i as f64 + 0.5) * field;
            canvas.line((frame.right(), y), (frame.right() + TICK, y), &line);
            if let Some(label) = labels.get(i) {
                canvas.text_centred((frame.right() + TICK + GAP, y), label, Style::new(SMALL, Anchor::Start));
            }
        }
        draw_label(canvas, frame, self.room(), &self.label);
    }

    /// Which values get a label when a field is this high: all, or first, last and round ones between.
    fn labelled(&self, field: f64) -> Vec<usize> {
        let apart = (SMALL * 1.2 / field).ceil() as usize;
        let n = self.values.len();
        if apart <= 1 {
            return (0..n).collect();
        }
        let last = n.saturating_sub(1);
        let round = [1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1000, 2000, 5000, 10_000];
        let chosen = |step: usize| -> Vec<usize> {
            let inner = (1..last).filter(|&i| self.values[i].is_multiple_of(step));
            let inner = inner.filter(|&i| i >= apart && last - i >= apart);
            [0].into_iter().chain(inner).chain([last]).collect()
        };
        let fits = |chosen: &Vec<usize>| chosen.windows(2).all(|pair| pair[1] - pair[0] >= apart);
        round.into_iter().map(chosen).find(fits).unwrap_or_else(|| vec![0, last])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_bars_label_what_fits() {
        let bar = |values: Vec<usize>| ColourBar { label: Label::plain("epoch"), values };
        assert_eq!(bar(vec![1, 5, 10]).labelled(20.0), [0, 1, 2]);
        let every = bar((1..=120).collect());
        let labelled: Vec<usize> = every.labelled(150.0 / 120.0).iter().map(|&i| every.values[i]).collect();
        assert_eq!(labelled, [1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120]);
    }

    #[test]
    fn colour_scales_run_from_dark_to_light() {
        let scale = ColourScale { label: Label::plain("loss"), spacing: Spacing::Log, range: (0.01, 100.0) };
        assert_eq!([0.01, 1.0, 100.0].map(|v| scale.colour(v)), [viridis(0.0), viridis(0.5), viridis(1.0)]);
        assert_eq!([0.0, f64::INFINITY].map(|v| scale.colour(v)), [viridis(0.0), viridis(1.0)]);
    }

    #[test]
    fn colour_bars_run_from_dark_to_light() {
        let bar = ColourBar { label: Label::plain("epoch"), values: vec![1, 5, 120] };
        assert_eq!([1, 5, 120].map(|v| bar.colour(v)), [viridis(0.0), viridis(0.5), viridis(1.0)]);
    }
}
