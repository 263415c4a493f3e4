//! Writes SVG: a handful of primitives, numbers with two decimals, elements in the order drawn.

use super::mark::{Outline, Stroke};
use super::text::{self, Label};
use super::theme::{self, Colour};
use crate::error::{Error, Result};
use image::ImageEncoder;
use std::fmt::{Display, Write};

/// A point on the paper, in points from the top left corner.
pub type Point = (f64, f64);

/// A rectangle on the paper.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Frame {
    /// Left edge.
    pub x: f64,
    /// Top edge.
    pub y: f64,
    /// Width.
    pub width: f64,
    /// Height.
    pub height: f64,
}

impl Frame {
    /// The right edge.
    pub fn right(&self) -> f64 {
        self.x + self.width
    }

    /// The bottom edge.
    pub fn bottom(&self) -> f64 {
        self.y + self.height
    }
}

/// Which part of a text stands at its point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// Its beginning.
    Start,
    /// Its middle.
    Middle,
    /// Its end.
    End,
}

/// How a text looks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Style {
    /// Font size in points.
    pub size: f64,
    /// Colour.
    pub colour: Colour,
    /// What stands at the point.
    pub anchor: Anchor,
    /// Reads upwards.
    pub upright: bool,
}

impl Style {
    /// Horizontal text in the colour of text.
    pub fn new(size: f64, anchor: Anchor) -> Style {
        Style { size, colour: theme::INK, anchor, upright: false }
    }

    /// In another colour.
    pub fn colour(self, colour: Colour) -> Style {
        Style { colour, ..self }
    }

    /// Turned by a quarter, to be read from below to above.
    pub fn upwards(self) -> Style {
        Style { upright: true, ..self }
    }
}

/// A growing SVG document.
#[derive(Clone, Debug, Default)]
pub struct Canvas {
    body: String,
}

/// Writing into a `String` cannot fail.
macro_rules! element {
    ($canvas:expr, $($format:tt)*) => {{
        let written = writeln!($canvas.body, $($format)*);
        debug_assert!(written.is_ok(), "a String takes every write");
    }};
}

impl Canvas {
    /// An empty canvas.
    pub fn new() -> Canvas {
        Canvas::default()
    }

    /// A straight line.
    pub fn line(&mut self, from: Point, to: Point, stroke: &Stroke) {
        let ((x1, y1), (x2, y2)) = (from, to);
        element!(self, r#"<line x1="{}" y1="{}" x2="{}" y2="{}"{stroke}/>"#, num(x1), num(y1), num(x2), num(y2));
    }

    /// Straight lines from point to point.
    pub fn polyline(&mut self, points: &[Point], stroke: &Stroke) {
        let join = r#" stroke-linejoin="round""#;
        element!(self, r#"<polyline points="{}" fill="none"{stroke}{join}/>"#, list(points));
    }

    /// A filled polygon with this share of opacity, without an outline.
    pub fn area(&mut self, points: &[Point], fill: Colour, opacity: f64) {
        let opacity = num(opacity);
        element!(self, r#"<polygon points="{}" fill="{fill}" fill-opacity="{opacity}"/>"#, list(points));
    }

    /// Round dots of one colour, as one path: strokes of no length with round ends.
    pub fn dots(&mut self, points: &[Point], fill: Colour, radius: f64) {
        if points.is_empty() {
            return;
        }
        let path: String = points.iter().map(|&(x, y)| format!("M{} {}h0", num(x), num(y))).collect();
        let width = num(2.0 * radius);
        element!(
            self,
            r#"<path d="{path}" fill="none" stroke="{fill}" stroke-width="{width}" stroke-linecap="round"/>"#
        );
    }

    /// A filled rectangle.
    pub fn rect(&mut self, frame: Frame, fill: impl Display) {
        let Frame { x, y, width, height } = frame;
        let (x, y, width, height) = (num(x), num(y), num(width), num(height));
        element!(self, r#"<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{fill}"/>"#);
    }

    /// The outline of a rectangle.
    pub fn frame(&mut self, frame: Frame, stroke: &Stroke) {
        let Frame { x, y, width, height } = frame;
        let (x, y, width, height) = (num(x), num(y), num(width), num(height));
        element!(self, r#"<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="none"{stroke}/>"#);
    }

    /// A marker's shape.
    pub fn shape(&mut self, outline: &Outline, fill: Colour, stroke: &Stroke) {
        match outline {
            Outline::Circle { centre: (x, y), radius } => {
                let (x, y, radius) = (num(*x), num(*y), num(*radius));
                element!(self, r#"<circle cx="{x}" cy="{y}" r="{radius}" fill="{fill}"{stroke}/>"#);
            }
            Outline::Polygon(points) => {
                let join = r#" stroke-linejoin="round""#;
                element!(self, r#"<polygon points="{}" fill="{fill}"{stroke}{join}/>"#, list(points));
            }
        }
    }

    /// A line of text whose base line goes through `at`.
    pub fn text(&mut self, at: Point, label: &Label, style: Style) {
        if label.is_empty() {
            return;
        }
        let (x, y) = (num(at.0), num(at.1));
        let anchor = match style.anchor {
            Anchor::Start => "",
            Anchor::Middle => r#" text-anchor="middle""#,
            Anchor::End => r#" text-anchor="end""#,
        };
        let turn = if style.upright { format!(r#" transform="rotate(-90 {x} {y})""#) } else { String::new() };
        let (size, colour, content) = (num(style.size), style.colour, label.to_svg(style.size));
        element!(self, r#"<text x="{x}" y="{y}" font-size="{size}" fill="{colour}"{anchor}{turn}>{content}</text>"#);
    }

    /// A line of text whose capitals are centred on `at` across the direction of reading.
    pub fn text_centred(&mut self, at: Point, label: &Label, style: Style) {
        let shift = text::CAP_HEIGHT * style.size / 2.0;
        let at = if style.upright { (at.0 + shift, at.1) } else { (at.0, at.1 + shift) };
        self.text(at, label, style);
    }

    /// Embeds a uint8 RGB image, [height, width, 3], as PNG, pixel by pixel without smoothing.
    ///
    /// # Errors
    /// If `rgb` is not as long as `size` says.
    pub fn image(&mut self, frame: Frame, size: (usize, usize), rgb: &[u8]) -> Result<()> {
        let mut png = Vec::new();
        let (rows, columns) = (u32::try_from(size.0).unwrap_or(0), u32::try_from(size.1).unwrap_or(0));
        if rgb.len() != size.0 * size.1 * 3 || rgb.is_empty() {
            return Err(Error::stage(format!("{} bytes are no RGB image of {rows}x{columns} pixels", rgb.len())));
        }
        image::codecs::png::PngEncoder::new_with_quality(
            &mut png,
            image::codecs::png::CompressionType::Best,
            image::codecs::png::FilterType::Adaptive,
        )
        .write_image(rgb, columns, rows, image::ExtendedColorType::Rgb8)
        .map_err(|error| Error::stage(format!("cannot encode an image: {error}")))?;
        let Frame { x, y, width, height } = frame;
        let (x, y, width, height) = (num(x), num(y), num(width), num(height));
        element!(
            self,
            r#"<image x="{x}" y="{y}" width="{width}" height="{height}" preserveAspectRatio="none" style="image-rendering:pixelated" href="data:image/png;base64,{}"/>"#,
            base64(&png)
        );
        Ok(())
    }

    /// Lines of a title, centred in `width` below `y`; returns where the rest may begin.
    pub fn title(&mut self, title: &str, width: f64, y: f64) -> f64 {
        let lines = text::wrap(title, theme::TITLE, width - 2.0 * theme::MARGIN);
        let mut y = y;
        for line in &lines {
            y += theme::TITLE * 1.25;
            self.text((width / 2.0, y - 0.25 * theme::TITLE), line, Style::new(theme::TITLE, Anchor::Middle));
        }
        if lines.is_empty() { y } else { y + 4.0 }
    }

    /// The document, `width` x `height` points on white paper. `title` is for programs that read figures aloud.
    pub fn finish(self, width: f64, height: f64, title: &str) -> String {
        let (width, height, family) = (num(width), num(height), text::FAMILY);
        let title = match title.trim() {
            "" => String::new(),
            some => format!("<title>{}</title>\n", text::escape(some)),
        };
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}pt\" height=\"{height}pt\" \
             viewBox=\"0 0 {width} {height}\" font-family=\"{family}\">\n{title}\
             <rect width=\"{width}\" height=\"{height}\" fill=\"{}\"/>\n{}</svg>\n",
            theme::PAPER,
            self.body
        )
    }
}

/// A length: at most two decimals, which is finer than any printer.
pub(super) fn num(value: f64) -> String {
    let rounded = (value * 100.0).round() / 100.0;
    // Adding zero turns -0 into 0.
    format!("{}", rounded + 0.0)
}

fn list(points: &[Point]) -> String {
    points.iter().map(|&(x, y)| format!("{},{}", num(x), num(y))).collect::<Vec<_>>().join(" ")
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0u32, |group, &byte| group << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let digit = DIGITS[(group >> (18 - 6 * i) & 63) as usize];
            text.push(if i <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_in_the_rfc() {
        // RFC 4648, section 10.
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [(1.0, "1"), (-0.001, "0"), (0.125, "0.13"), (-2.5, "-2.5"), (1234.567, "1234.57")] {
            assert_eq!(num(value), text);
        }
    }

    #[test]
    fn wrong_images_are_refused() {
        let frame = Frame { x: 0.0, y: 0.0, width: 1.0, height: 1.0 };
        assert!(Canvas::new().image(frame, (2, 2), &[0; 11]).is_err());
        assert!(Canvas::new().image(frame, (0, 0), &[]).is_err());
    }
}
