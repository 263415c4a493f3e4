//! Figures of the quality one puts into a paper: what the `plot/*` stages share.
//!
//! A [`Sheet`] of [`Panel`]s is laid out at a paper's column or page width, in points, and written as SVG by
//! [`Canvas`]; [`finish`] renders the same document as PNG. Text stays text in the SVG. All text is measured, and
//! the PNG rendered, with one embedded face, so the same input gives the same bytes on every machine.
//!
//! There is no interaction, no animation, and no chart type that no stage draws.

pub mod canvas;
pub mod contour;
pub mod mark;
pub mod panel;
pub mod raster;
pub mod scale;
pub mod sheet;
pub mod text;
pub mod theme;

#[cfg(test)]
pub(crate) mod golden;

pub use canvas::{Anchor, Canvas, Style};
pub use mark::{Field, Key, Mark, Marker, Stroke};
pub use panel::{Axis, Panel, Range};
pub use scale::Spacing;
pub use sheet::{Bar, ColourBar, ColourScale, Sheet};
pub use text::Label;
pub use theme::{Colour, Width};

use crate::artifact::Figure;
use crate::error::Result;

/// Renders an SVG document of ours and makes it a figure.
///
/// # Errors
/// If the document cannot be rendered: a bug of the stage that wrote it.
pub fn finish(svg: String) -> Result<Figure> {
    let png = raster::png(&svg)?;
    Ok(Figure { svg, png })
}
