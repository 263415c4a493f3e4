//! Text: labels with italic and raised parts, and how wide they are in the embedded face.

use skrifa::instance::{LocationRef, Size};
use skrifa::metrics::GlyphMetrics;
use skrifa::{FontRef, MetadataProvider};
use std::fmt::Write;
use std::sync::LazyLock;

/// The face of all figures. Free licence, in `assets/fonts/LICENSE`.
pub const REGULAR: &[u8] = include_bytes!("../../assets/fonts/DejaVuSans.ttf");
/// Its oblique.
pub const OBLIQUE: &[u8] = include_bytes!("../../assets/fonts/DejaVuSans-Oblique.ttf");
/// The `font-family` of every document.
pub const FAMILY: &str = "DejaVu Sans, Verdana, sans-serif";
/// Height of capitals and digits, in em.
pub const CAP_HEIGHT: f64 = 0.729;
/// Height of raised parts over the base line, in em, and their size.
const RAISED: (f64, f64) = (0.36, 0.7);

/// A line of text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Label(Vec<Span>);

#[derive(Clone, Debug, PartialEq)]
struct Span {
    text: String,
    face: Face,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Face {
    Regular,
    Oblique,
    Raised,
}

impl Label {
    /// Upright text, as it is.
    pub fn plain(text: impl Into<String>) -> Label {
        Label(vec![Span { text: printable(&text.into()), face: Face::Regular }])
    }

    /// Text with variables between asterisks: `"*I*(*X*;*T*) (nats)"`. For labels of our own, not for users' text.
    pub fn math(marked: &str) -> Label {
        let face = |i: usize| if i.is_multiple_of(2) { Face::Regular } else { Face::Oblique };
        let parts = marked.split('*').enumerate().filter(|(_, part)| !part.is_empty());
        Label(parts.map(|(i, part)| Span { text: printable(part), face: face(i) }).collect())
    }

    /// `factor` times ten to the `exponent`; no factor for exactly one power.
    pub fn power(factor: Option<&str>, exponent: i32) -> Label {
        let base = match factor {
            Some(factor) => format!("{factor}×10"),
            None => "10".to_string(),
        };
        let exponent = minus(&exponent.to_string());
        Label(vec![Span { text: base, face: Face::Regular }, Span { text: exponent, face: Face::Raised }])
    }

    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|span| span.text.is_empty())
    }

    /// Width in points at `size`.
    pub fn width(&self, size: f64) -> f64 {
        self.0
            .iter()
            .map(|span| match span.face {
                Face::Regular => width(&FACES.0, &span.text, size),
                Face::Oblique => width(&FACES.1, &span.text, size),
                Face::Raised => width(&FACES.0, &span.text, size * RAISED.1),
            })
            .sum()
    }

    /// The content of a `<text>` element at `size`.
    pub(super) fn to_svg(&self, size: f64) -> String {
        let mut svg = String::new();
        for span in &self.0 {
            let text = escape(&span.text);
            let written = match span.face {
                Face::Regular => write!(svg, "{text}"),
                Face::Oblique => write!(svg, r#"<tspan font-style="italic">{text}</tspan>"#),
                Face::Raised => {
                    let (rise, share) = RAISED;
                    let (dy, small) = (super::canvas::num(-rise * size), super::canvas::num(share * size));
                    write!(svg, r#"<tspan dy="{dy}" font-size="{small}">{text}</tspan>"#)
                }
            };
            debug_assert!(written.is_ok(), "a String takes every write");
        }
        svg
    }

    /// The same, cut short with an ellipsis where it is wider than `limit` at `size`.
    pub fn fit(&self, size: f64, limit: f64) -> Label {
        if self.width(size) <= limit {
            return self.clone();
        }
        let mut kept = self.clone();
        while kept.width(size) + width(&FACES.0, "…", size) > limit {
            let Some(last) = kept.0.last_mut() else { break };
            if last.text.pop().is_none() {
                kept.0.pop();
            }
        }
        if let Some(last) = kept.0.last_mut() {
            last.text.truncate(last.text.trim_end().len());
        }
        kept.0.push(Span { text: "…".into(), face: Face::Regular });
        kept
    }
}

/// Breaks `text` into lines no wider than `limit` at `size`; a single word that is wider is cut short.
pub fn wrap(text: &str, size: f64, limit: f64) -> Vec<Label> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        if let Some(line) = lines.last_mut() {
            let longer = format!("{line} {word}");
            if Label::plain(longer.as_str()).width(size) <= limit {
                *line = longer;
                continue;
            }
        }
        lines.push(word.to_string());
    }
    lines.into_iter().map(|line| Label::plain(line).fit(size, limit)).collect()
}

/// A number's text with a true minus sign.
pub fn minus(number: &str) -> String {
    number.replace('-', "−")
}

/// A column's name for people: `clean_accuracy` becomes `clean accuracy`.
pub fn spaced(name: &str) -> String {
    name.replace('_', " ")
}

struct Widths {
    /// Advance widths of U+0020..U+2300, in em.
    advance: Vec<f32>,
    fallback: f32,
}

static FACES: LazyLock<(Widths, Widths)> = LazyLock::new(|| (widths(REGULAR), widths(OBLIQUE)));

fn widths(face: &'static [u8]) -> Widths {
    const LAST: u32 = 0x2300;
    /// An em of the size that advances are asked at: one em is 1.
    const EM: f32 = 1.0;
    // The faces are constants of this crate: a face that cannot be read is a bug, and 0.6 em a glyph its symptom.
    let Ok(font) = FontRef::new(face) else { return Widths { advance: Vec::new(), fallback: 0.6 } };
    let metrics: GlyphMetrics = font.glyph_metrics(Size::new(EM), LocationRef::default());
    let characters = font.charmap();
    let fallback = metrics.advance_width(skrifa::GlyphId::NOTDEF).unwrap_or(0.6);
    let advance = (0..LAST)
        .map(|code| characters.map(code).and_then(|glyph| metrics.advance_width(glyph)).unwrap_or(fallback))
        .collect();
    Widths { advance, fallback }
}

fn width(face: &Widths, text: &str, size: f64) -> f64 {
    let ems = |c: char| f64::from(face.advance.get(c as usize).copied().unwrap_or(face.fallback));
    text.chars().map(ems).sum::<f64>() * size
}

/// Without characters that XML cannot hold.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') { ' ' } else { c }).collect()
}

/// For XML content and attributes.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_are_those_of_the_face() {
        // hmtx of DejaVu Sans 2.37: `0` 1303, `i` 569, `W` 2025 of 2048 units.
        let close = |text: &str, units: f64| {
            let width = Label::plain(text).width(10.0);
            assert!((width - units / 204.8).abs() < 1e-4, "{text}: {width}");
        };
        close("0", 1303.0);
        close("i", 569.0);
        close("W0i", 2025.0 + 1303.0 + 569.0);
    }

    #[test]
    fn long_labels_are_cut_and_wrapped() {
        let label = Label::plain("Speed limit (20 km/h)");
        assert_eq!(label.fit(7.0, 500.0), label);
        let cut = label.fit(7.0, 40.0);
        assert!(cut.width(7.0) <= 40.0 && cut.to_svg(7.0).ends_with('…'), "{cut:?}");
        let lines = wrap("one two three", 7.0, Label::plain("one two").width(7.0));
        assert_eq!(lines, [Label::plain("one two"), Label::plain("three")]);
        assert_eq!(wrap("  ", 7.0, 10.0), []);
    }

    #[test]
    fn markup_and_escapes() {
        assert_eq!(Label::math("*I*(*X*)").to_svg(8.0), {
            let i = |t: &str| format!(r#"<tspan font-style="italic">{t}</tspan>"#);
            format!("{}({})", i("I"), i("X"))
        });
        assert_eq!(Label::plain("a<b & \"c\"\u{1}").to_svg(8.0), "a&lt;b &amp; &quot;c&quot; ");
        assert_eq!(Label::power(None, -3).to_svg(10.0), r#"10<tspan dy="-3.6" font-size="7">−3</tspan>"#);
    }
}
