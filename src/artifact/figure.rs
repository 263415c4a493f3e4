//! A figure: SVG with text as text, and the same rendered as PNG.

use super::{Files, Kind, Open, Save, Sink};
use crate::error::Result;

/// A figure.
#[derive(Clone, Debug)]
pub struct Figure {
    /// The SVG document.
    pub svg: String,
    /// The PNG file, rendered from the SVG.
    pub png: Vec<u8>,
}

impl Save for Figure {
    const KIND: Kind = Kind::Figure;

    fn save(&self, sink: &mut Sink) -> Result<()> {
        sink.bytes("figure.svg", self.svg.as_bytes())?;
        sink.bytes("figure.png", &self.png)
    }
}

impl Open for Figure {
    const KIND: Kind = Kind::Figure;

    fn open(files: &Files) -> Result<Figure> {
        Ok(Figure {
            svg: String::from_utf8_lossy(&files.read("figure.svg")?).into_owned(),
            png: files.read("figure.png")?,
        })
    }
}
