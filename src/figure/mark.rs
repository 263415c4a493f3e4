//! What stands in a panel: lines, bands, points with intervals, rules; and the keys that explain them.

use super::canvas::{Canvas, Frame, Point, num};
use super::panel::Ground;
use super::text::Label;
use super::theme::{self, Colour};
use std::fmt;

/// A line's look.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stroke {
    /// Colour.
    pub colour: Colour,
    /// Width in points.
    pub width: f64,
    /// A dash pattern of [`theme::DASHES`].
    pub dash: &'static str,
}

impl Stroke {
    /// A full line.
    pub const fn new(colour: Colour, width: f64) -> Stroke {
        Stroke { colour, width, dash: "" }
    }

    /// The same line, dashed.
    pub const fn dash(self, dash: &'static str) -> Stroke {
        Stroke { dash, ..self }
    }
}

impl fmt::Display for Stroke {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, r#" stroke="{}" stroke-width="{}""#, self.colour, num(self.width))?;
        if self.dash.is_empty() { Ok(()) } else { write!(f, r#" stroke-dasharray="{}""#, self.dash) }
    }
}

/// The shape of a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marker {
    /// ●
    Circle,
    /// ■
    Square,
    /// ▲
    Triangle,
    /// ◆
    Diamond,
    /// ▼
    TriangleDown,
    /// ★
    Star,
    /// ✚
    Plus,
    /// ⬟
    Pentagon,
    /// ✖
    Cross,
    /// ▶
    TriangleRight,
    /// ⬢
    Hexagon,
    /// ◀
    TriangleLeft,
}

/// A marker's outline on the paper.
#[derive(Clone, Debug, PartialEq)]
pub enum Outline {
    /// A circle.
    Circle {
        /// Centre.
        centre: Point,
        /// Radius.
        radius: f64,
    },
    /// A closed polygon.
    Polygon(Vec<Point>),
}

impl Marker {
    /// All shapes, those that differ most first.
    pub const ALL: [Marker; 12] = [
        Marker::Circle,
        Marker::Square,
        Marker::Triangle,
        Marker::Diamond,
        Marker::TriangleDown,
        Marker::Star,
        Marker::Plus,
        Marker::Pentagon,
        Marker::Cross,
        Marker::TriangleRight,
        Marker::Hexagon,
        Marker::TriangleLeft,
    ];

    /// The outline about `centre`, as large to the eye as a circle of this radius.
    pub fn outline(self, centre: Point, radius: f64) -> Outline {
        // Radii that give every shape about the circle's area.
        match self {
            Marker::Circle => Outline::Circle { centre, radius },
            Marker::Square => regular(centre, radius * 1.25, 4, 45.0),
            Marker::Diamond => regular(centre, radius * 1.3, 4, 0.0),
            Marker::Triangle => regular(centre, radius * 1.4, 3, 0.0),
            Marker::TriangleRight => regular(centre, radius * 1.4, 3, 90.0),
            Marker::TriangleDown => regular(centre, radius * 1.4, 3, 180.0),
            Marker::TriangleLeft => regular(centre, radius * 1.4, 3, 270.0),
            Marker::Pentagon => regular(centre, radius * 1.15, 5, 0.0),
            Marker::Hexagon => regular(centre, radius * 1.1, 6, 0.0),
            Marker::Star => star(centre, radius * 1.5),
            Marker::Plus => plus(centre, radius * 1.3, 0.0),
            Marker::Cross => plus(centre, radius * 1.35, 45.0),
        }
    }
}

/// The point at `radius` from `centre`, `degrees` clockwise from above.
fn around(centre: Point, radius: f64, degrees: f64) -> Point {
    let angle = degrees.to_radians();
    (centre.0 + radius * libm::sin(angle), centre.1 - radius * libm::cos(angle))
}

fn regular(centre: Point, radius: f64, corners: usize, turn: f64) -> Outline {
    let corner = |i: usize| around(centre, radius, turn + 360.0 * i as f64 / corners as f64);
    Outline::Polygon((0..corners).map(corner).collect())
}

fn star(centre: Point, radius: f64) -> Outline {
    let corner = |i: usize| around(centre, if i.is_multiple_of(2) { radius } else { radius * 0.45 }, 36.0 * i as f64);
    Outline::Polygon((0..10).map(corner).collect())
}

/// A plus with arms as long as `arm` and 0.6 times as thick, turned by `turn` degrees.
fn plus(centre: Point, arm: f64, turn: f64) -> Outline {
    let (tip, half) = (libm::hypot(arm, 0.3 * arm), 0.3 * arm * std::f64::consts::SQRT_2);
    let spread = libm::atan(0.3).to_degrees();
    let arm_at = |quarter: usize| {
        let middle = turn + 90.0 * quarter as f64;
        [
            around(centre, tip, middle - spread),
            around(centre, tip, middle + spread),
            around(centre, half, middle + 45.0),
        ]
    };
    Outline::Polygon((0..4).flat_map(arm_at).collect())
}

/// Something drawn in a panel, in the units of its axes. Points that are not finite are left out.
#[derive(Clone, Debug)]
pub enum Mark {
    /// A line through points, with a marker on each if asked.
    Line {
        /// (x, y).
        points: Vec<(f64, f64)>,
        /// Its look.
        stroke: Stroke,
        /// The marker, filled in the line's colour.
        marker: Option<Marker>,
    },
    /// An interval along x.
    Band {
        /// (x, low, high).
        points: Vec<(f64, f64, f64)>,
        /// Its colour; drawn pale.
        colour: Colour,
    },
    /// A thin bar from one point to another: one arm of an interval's cross.
    Bar {
        /// One end.
        from: (f64, f64),
        /// The other.
        to: (f64, f64),
        /// Its colour.
        colour: Colour,
    },
    /// A single point.
    Dot {
        /// Where.
        at: (f64, f64),
        /// Its shape.
        marker: Marker,
        /// What it is filled with.
        fill: Colour,
        /// Its radius: [`DOT`], or less where many dots stand close.
        radius: f64,
    },
    /// Many small round points of one colour, written as one path.
    Cloud {
        /// (x, y).
        points: Vec<(f64, f64)>,
        /// What they are filled with.
        fill: Colour,
        /// Their radius.
        radius: f64,
    },
    /// A grid of equal fields, each of one colour.
    Field(Field),
    /// A faint line across the panel at this x; drawn only where the data leave it in range.
    Upright(f64),
    /// A faint line across the panel at this y; drawn only where the data leave it in range.
    Level(f64),
}

/// A rectangle cut into fields.
#[derive(Clone, Debug)]
pub struct Field {
    x: (f64, f64),
    y: (f64, f64),
    size: (usize, usize),
    rgb: Vec<u8>,
}

impl Field {
    /// `rows` of fields between two corners, the upper left one first; `colours` goes row by row.
    ///
    /// # Panics
    /// If there is not a colour for every field.
    pub fn new(upper_left: (f64, f64), lower_right: (f64, f64), rows: usize, colours: &[Colour]) -> Field {
        assert!(rows > 0 && !colours.is_empty() && colours.len().is_multiple_of(rows), "fields and colours");
        let rgb = colours.iter().flat_map(|colour| [16, 8, 0].map(|shift| (colour.0 >> shift & 0xff) as u8)).collect();
        let size = (rows, colours.len() / rows);
        Field { x: (upper_left.0, lower_right.0), y: (upper_left.1, lower_right.1), size, rgb }
    }
}

/// The look of [`Mark::Upright`] and [`Mark::Level`].
pub const RULE: Stroke = Stroke::new(theme::GREY, 0.6).dash("2.5 1.8");
/// Radius of a dot.
pub const DOT: f64 = 2.6;
/// Radius of a marker on a line.
pub const ON_LINE: f64 = 1.5;
/// The outline of a dot: keeps light fills visible on white paper.
const DOT_EDGE: Stroke = Stroke::new(theme::INK, 0.4);
/// The outline of a marker on a line: parts it from the line.
const ON_LINE_EDGE: Stroke = Stroke::new(theme::PAPER, 0.4);

impl Mark {
    /// The points that an axis should cover.
    pub(super) fn reach(&self) -> Vec<(f64, f64)> {
        match self {
            Mark::Line { points, .. } | Mark::Cloud { points, .. } => points.clone(),
            Mark::Band { points, .. } => points.iter().flat_map(|&(x, low, high)| [(x, low), (x, high)]).collect(),
            Mark::Bar { from, to, .. } => vec![*from, *to],
            Mark::Dot { at, .. } => vec![*at],
            Mark::Field(Field { x, y, .. }) => vec![(x.0, y.0), (x.1, y.1)],
            Mark::Upright(_) | Mark::Level(_) => Vec::new(),
        }
    }

    /// Draws it onto the panel's ground.
    pub(super) fn draw(&self, canvas: &mut Canvas, ground: &Ground) {
        let Frame { x: left, y: top, .. } = ground.frame;
        match self {
            Mark::Line { points, stroke, marker } => {
                let points: Vec<Point> = points.iter().filter_map(|&p| ground.point(p)).collect();
                if points.len() > 1 {
                    canvas.polyline(&points, stroke);
                }
                // A line of a single point would be invisible.
                let marker = if points.len() == 1 { Some(marker.unwrap_or(Marker::Circle)) } else { *marker };
                for (marker, &point) in marker.iter().flat_map(|m| points.iter().map(move |p| (m, p))) {
                    canvas.shape(&marker.outline(point, ON_LINE), stroke.colour, &ON_LINE_EDGE);
                }
            }
            Mark::Band { points, colour } => {
                let low = points.iter().filter_map(|&(x, low, _)| ground.point((x, low)));
                let high = points.iter().rev().filter_map(|&(x, _, high)| ground.point((x, high)));
                let outline: Vec<Point> = low.chain(high).collect();
                if outline.len() > 2 {
                    canvas.area(&outline, *colour, 0.18);
                }
            }
            Mark::Bar { from, to, colour } => {
                if let (Some(from), Some(to)) = (ground.point(*from), ground.point(*to)) {
                    canvas.line(from, to, &Stroke::new(*colour, 0.6));
                }
            }
            Mark::Dot { at, marker, fill, radius } => {
                if let Some(at) = ground.point(*at) {
                    canvas.shape(&marker.outline(at, *radius), *fill, &DOT_EDGE);
                }
            }
            Mark::Cloud { points, fill, radius } => {
                let points: Vec<Point> = points.iter().filter_map(|&p| ground.point(p)).collect();
                canvas.dots(&points, *fill, *radius);
            }
            Mark::Field(Field { x, y, size, rgb }) => {
                if let (Some(upper), Some(lower)) = (ground.point((x.0, y.0)), ground.point((x.1, y.1))) {
                    let frame = Frame { x: upper.0, y: upper.1, width: lower.0 - upper.0, height: lower.1 - upper.1 };
                    let drawn = canvas.image(frame, *size, rgb);
                    debug_assert!(drawn.is_ok(), "a field has as many colours as it says");
                }
            }
            Mark::Upright(x) => {
                if let Some(x) = ground.x(*x).filter(|&x| x >= left && x <= ground.frame.right()) {
                    canvas.line((x, top), (x, ground.frame.bottom()), &RULE);
                }
            }
            Mark::Level(y) => {
                if let Some(y) = ground.y(*y).filter(|&y| y >= top && y <= ground.frame.bottom()) {
                    canvas.line((left, y), (ground.frame.right(), y), &RULE);
                }
            }
        }
    }
}

/// One entry of a legend.
#[derive(Clone, Debug)]
pub struct Key {
    /// What it stands for.
    pub label: Label,
    /// The line, if it is one.
    pub stroke: Option<Stroke>,
    /// The marker and its fill, if it has one.
    pub marker: Option<(Marker, Colour)>,
}

impl Key {
    /// Width of the sample in front of the label.
    pub(super) fn sample_width(&self) -> f64 {
        if self.stroke.is_some() { 15.0 } else { 2.0 * DOT + 1.0 }
    }

    /// Draws the sample, centred at height `y`, from `x` on.
    pub(super) fn draw_sample(&self, canvas: &mut Canvas, x: f64, y: f64) {
        let width = self.sample_width();
        if let Some(stroke) = &self.stroke {
            canvas.line((x, y), (x + width, y), stroke);
        }
        if let Some((marker, fill)) = self.marker {
            let (radius, edge) = match self.stroke {
                Some(_) => (ON_LINE, ON_LINE_EDGE),
                None => (DOT, DOT_EDGE),
            };
            canvas.shape(&marker.outline((x + width / 2.0, y), radius), fill, &edge);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_centred_and_of_a_size() {
        for marker in Marker::ALL {
            let points = match marker.outline((0.0, 0.0), 1.0) {
                Outline::Circle { .. } => continue,
                Outline::Polygon(points) => points,
            };
            let n = points.len() as f64;
            let mean = points.iter().fold((0.0, 0.0), |sum, p| (sum.0 + p.0 / n, sum.1 + p.1 / n));
            assert!(libm::hypot(mean.0, mean.1) < 1e-9, "{marker:?} is off centre by {mean:?}");
            let next = points.iter().cycle().skip(1);
            let area: f64 = points.iter().zip(next).map(|(a, b)| (a.0 * b.1 - a.1 * b.0) / 2.0).sum();
            assert!((2.0..4.0).contains(&area), "{marker:?} has an area of {area}");
        }
    }
}
