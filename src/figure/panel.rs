//! One pair of axes with what stands between them.

use super::canvas::{Anchor, Canvas, Frame, Point, Style};
use super::mark::{Key, Mark, Stroke};
use super::scale::{Spacing, Ticks};
use super::text::{CAP_HEIGHT, Label};
use super::theme::{self, GRID, INK, LABEL, SMALL};

/// What an axis covers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Range {
    /// The data, and a little more.
    Data,
    /// From zero to the data's end and a little more; for counts that start at or near zero.
    FromZero,
    /// At least 0 to 100, with room for markers at the ends: percentages are not zoomed into.
    Percent,
    /// Exactly from here to there: what panels side by side share.
    Fixed(f64, f64),
    /// The plane of a map, for both axes: one unit is equally long along both, and there are no ticks, since its
    /// coordinates have no meaning of their own.
    Map,
}

/// An axis.
#[derive(Clone, Debug)]
pub struct Axis {
    /// What it shows, with its unit.
    pub label: Label,
    /// How values are spaced.
    pub spacing: Spacing,
    /// What it covers.
    pub range: Range,
    /// Whether ticks stand at whole numbers only.
    pub whole: bool,
}

/// One pair of axes.
#[derive(Clone, Debug)]
pub struct Panel {
    /// What stands over it; empty for nothing.
    pub heading: Label,
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// What is drawn, first to last.
    pub marks: Vec<Mark>,
    /// Its own legend, over it.
    pub keys: Vec<Key>,
}

/// Length of a major tick.
pub(super) const TICK: f64 = 2.6;
/// Distance from a tick to its label, and from there to the axis label.
pub(super) const GAP: f64 = 2.4;
const SPINE: Stroke = Stroke::new(INK, 0.6);

/// An axis whose range is known.
#[derive(Clone, Debug)]
pub(super) struct Resolved {
    spacing: Spacing,
    range: (f64, f64),
}

/// Resolved axes over a frame on the paper.
#[derive(Clone, Debug)]
pub(super) struct Ground {
    pub(super) frame: Frame,
    pub(super) horizontal: Resolved,
    pub(super) vertical: Resolved,
}

impl Ground {
    /// The place of `value` on the horizontal axis.
    pub(super) fn x(&self, value: f64) -> Option<f64> {
        self.horizontal.share(value).map(|share| self.frame.x + share * self.frame.width)
    }

    /// The place of `value` on the vertical axis.
    pub(super) fn y(&self, value: f64) -> Option<f64> {
        self.vertical.share(value).map(|share| self.frame.bottom() - share * self.frame.height)
    }

    /// The place of a point, if both axes can show it.
    pub(super) fn point(&self, (x, y): (f64, f64)) -> Option<Point> {
        Some((self.x(x)?, self.y(y)?))
    }
}

impl Resolved {
    fn share(&self, value: f64) -> Option<f64> {
        self.spacing.shows(value).then(|| self.spacing.share(value, self.range))
    }
}

impl Axis {
    /// The range over these values; those that the axis cannot show do not count.
    pub(super) fn resolve(&self, values: impl Iterator<Item = f64>) -> Resolved {
        let ends = values.filter(|&v| self.spacing.shows(v)).fold(None, |ends: Option<(f64, f64)>, v| match ends {
            Some((low, high)) => Some((low.min(v), high.max(v))),
            None => Some((v, v)),
        });
        let range = match (self.range, self.spacing) {
            (Range::Fixed(low, high), _) => (low, high),
            (Range::Data | Range::Map, _) | (_, Spacing::Log | Spacing::Signed(_)) => {
                self.spacing.widen(ends.unwrap_or((1.0, 1.0)), 0.05)
            }
            (Range::FromZero, Spacing::Linear) => {
                let (low, high) = ends.unwrap_or((0.0, 1.0));
                let high = if high > 0.0 { high } else { 1.0 };
                // A little below zero, so that markers at zero stay whole.
                (low.min(0.0) * 1.05 - 0.025 * high, high * 1.04)
            }
            (Range::Percent, Spacing::Linear) => {
                let (low, high) = ends.unwrap_or((0.0, 100.0));
                self.spacing.widen((low.min(0.0), high.max(100.0)), 0.03)
            }
        };
        Resolved { spacing: self.spacing, range }
    }

    /// Ticks of an axis `length` points long, one per `every` points or so.
    pub(super) fn ticks(&self, resolved: &Resolved, length: f64, every: f64) -> Ticks {
        match self.range {
            Range::Map => Ticks::default(),
            _ => self.spacing.ticks(resolved.range, (length / every) as usize, self.whole),
        }
    }
}

impl Panel {
    /// What the axes cover: (low, high) of x and of y.
    pub fn ranges(&self) -> ((f64, f64), (f64, f64)) {
        let (x, y) = self.resolve();
        (x.range, y.range)
    }

    pub(super) fn resolve(&self) -> (Resolved, Resolved) {
        let reach: Vec<(f64, f64)> = self.marks.iter().flat_map(Mark::reach).collect();
        // A point that one axis cannot show does not stretch the other.
        let shown = || reach.iter().filter(|p| self.x.spacing.shows(p.0) && self.y.spacing.shows(p.1));
        (self.x.resolve(shown().map(|p| p.0)), self.y.resolve(shown().map(|p| p.1)))
    }

    pub(super) fn y_ticks(&self, vertical: &Resolved, height: f64) -> Ticks {
        self.y.ticks(vertical, height, 19.0)
    }

    /// Room that the vertical axis takes left of the frame.
    pub(super) fn left(&self, height: f64) -> f64 {
        let ticks = self.y_ticks(&self.resolve().1, height);
        let widest = ticks.major.iter().map(|(_, label)| label.width(SMALL)).fold(0.0, f64::max);
        let beside = if self.is_map() { 0.0 } else { TICK + GAP + widest };
        beside + if self.y.label.is_empty() { 0.0 } else { GAP + LABEL * 1.1 }
    }

    /// Room that the horizontal axis takes under the frame.
    pub(super) fn below(&self) -> f64 {
        let label = if self.x.label.is_empty() { 0.0 } else { GAP + LABEL * 1.15 };
        label + if self.is_map() { 0.0 } else { TICK + GAP + SMALL }
    }

    fn is_map(&self) -> bool {
        self.x.range == Range::Map
    }

    /// Draws axes and marks into `frame`; `left` is the room left of it.
    pub(super) fn draw(&self, canvas: &mut Canvas, frame: Frame, left: f64) {
        let (mut horizontal, mut vertical) = self.resolve();
        if self.is_map() {
            let unit = |axis: &Resolved, length: f64| (axis.range.1 - axis.range.0) / length;
            let unit = unit(&horizontal, frame.width).max(unit(&vertical, frame.height));
            for (axis, length) in [(&mut horizontal, frame.width), (&mut vertical, frame.height)] {
                let middle = 0.5 * (axis.range.0 + axis.range.1);
                axis.range = (middle - 0.5 * unit * length, middle + 0.5 * unit * length);
            }
        }
        let y_ticks = self.y_ticks(&vertical, frame.height);
        let x_ticks = self.x.ticks(&horizontal, frame.width, 26.0);
        let ground = Ground { frame, horizontal, vertical };
        let grid = Stroke::new(GRID, 0.5);
        for y in y_ticks.major.iter().filter_map(|t| ground.y(t.0)) {
            canvas.line((frame.x, y), (frame.right(), y), &grid);
        }
        for x in x_ticks.major.iter().filter_map(|t| ground.x(t.0)) {
            canvas.line((x, frame.y), (x, frame.bottom()), &grid);
        }
        for mark in &self.marks {
            mark.draw(canvas, &ground);
        }
        if self.is_map() {
            canvas.frame(frame, &SPINE);
        }
        canvas.line((frame.x, frame.y), (frame.x, frame.bottom()), &SPINE);
        canvas.line((frame.x, frame.bottom()), (frame.right(), frame.bottom()), &SPINE);
        self.draw_x(canvas, &ground, &x_ticks);
        self.draw_y(canvas, &ground, &y_ticks, left);
    }

    fn draw_x(&self, canvas: &mut Canvas, ground: &Ground, ticks: &Ticks) {
        let frame = ground.frame;
        let base = frame.bottom();
        let mut free_from = f64::NEG_INFINITY;
        for (value, label) in &ticks.major {
            let Some(x) = ground.x(*value) else { continue };
            canvas.line((x, base), (x, base + TICK), &SPINE);
            let half = label.width(SMALL) / 2.0;
            if x - half < free_from {
                continue;
            }
            free_from = x + half + 3.0;
            let y = base + TICK + GAP + SMALL * CAP_HEIGHT;
            canvas.text((x, y), label, Style::new(SMALL, Anchor::Middle));
        }
        for x in ticks.minor.iter().filter_map(|&v| ground.x(v)) {
            canvas.line((x, base), (x, base + TICK * 0.6), &SPINE);
        }
        let y = base + self.below() - LABEL * 0.35;
        let (label, size) = fitted(&self.x.label, frame.width + theme::MARGIN * 2.0);
        canvas.text((frame.x + frame.width / 2.0, y), &label, Style::new(size, Anchor::Middle));
    }

    fn draw_y(&self, canvas: &mut Canvas, ground: &Ground, ticks: &Ticks, left: f64) {
        let frame = ground.frame;
        for (value, label) in &ticks.major {
            let Some(y) = ground.y(*value) else { continue };
            canvas.line((frame.x - TICK, y), (frame.x, y), &SPINE);
            canvas.text_centred((frame.x - TICK - GAP, y), label, Style::new(SMALL, Anchor::End));
        }
        for y in ticks.minor.iter().filter_map(|&v| ground.y(v)) {
            canvas.line((frame.x - TICK * 0.6, y), (frame.x, y), &SPINE);
        }
        let x = frame.x - left + LABEL * 0.55;
        let (label, size) = fitted(&self.y.label, frame.height + 12.0);
        canvas.text_centred((x, frame.y + frame.height / 2.0), &label, Style::new(size, Anchor::Middle).upwards());
    }
}

/// An axis label no longer than `limit`: smaller if need be, down to the size of notes, then cut.
fn fitted(label: &Label, limit: f64) -> (Label, f64) {
    let size = (LABEL * limit / label.width(LABEL).max(1.0)).clamp(theme::NOTE, LABEL);
    (label.fit(size, limit + 0.01), size)
}
