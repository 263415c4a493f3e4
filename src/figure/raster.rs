//! SVG to PNG, at the resolution of print, with the embedded face only.

use super::text;
use crate::error::{Error, Result};
use resvg::{tiny_skia, usvg};
use std::sync::{Arc, LazyLock};

/// Pixels per inch of the PNG: what journals ask for.
pub const DPI: f64 = 300.0;
/// An SVG pixel is 1/96 in.
const CSS_DPI: f32 = 96.0;

static FONTS: LazyLock<Arc<usvg::fontdb::Database>> = LazyLock::new(|| {
    let mut fonts = usvg::fontdb::Database::new();
    for face in [text::REGULAR, text::OBLIQUE] {
        fonts.load_font_data(face.to_vec());
    }
    Arc::new(fonts)
});

/// Parses an SVG document with the embedded face.
///
/// # Errors
/// If it is not SVG.
pub fn parse(svg: &str) -> Result<usvg::Tree> {
    let options = usvg::Options { fontdb: FONTS.clone(), font_family: "DejaVu Sans".into(), ..Default::default() };
    usvg::Tree::from_str(svg, &options).map_err(|error| Error::stage(format!("cannot read a figure's SVG: {error}")))
}

/// Renders an SVG document at [`DPI`]; the file states its resolution, so that it is placed at its true size.
///
/// # Errors
/// If it is not SVG, or larger than memory.
pub fn png(svg: &str) -> Result<Vec<u8>> {
    let tree = parse(svg)?;
    let scale = DPI as f32 / CSS_DPI;
    let (width, height) = (tree.size().width() * scale, tree.size().height() * scale);
    let mut pixels = tiny_skia::Pixmap::new(width.round() as u32, height.round() as u32)
        .ok_or_else(|| Error::stage(format!("a figure of {width:.0} x {height:.0} pixels cannot be rendered")))?;
    resvg::render(&tree, tiny_skia::Transform::from_scale(scale, scale), &mut pixels.as_mut());
    let png = pixels.encode_png().map_err(|error| Error::stage(format!("cannot encode a figure as PNG: {error}")))?;
    Ok(with_resolution(&png))
}

/// Adds the chunk `pHYs` behind the header.
fn with_resolution(png: &[u8]) -> Vec<u8> {
    /// Signature, and the header chunk with its length, name and checksum.
    const HEAD: usize = 8 + 4 + 4 + 13 + 4;
    let per_metre = ((DPI / 0.0254).round() as u32).to_be_bytes();
    let body: Vec<u8> = [b"pHYs".as_slice(), &per_metre, &per_metre, &[1]].concat();
    let mut sum = flate2::Crc::new();
    sum.update(&body);
    let (head, rest) = png.split_at(HEAD.min(png.len()));
    [head, &9u32.to_be_bytes(), &body, &sum.sum().to_be_bytes(), rest].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn png_has_the_size_of_print() {
        let svg = r##"<svg xmlns="http://www.w3.org/2000/svg" width="72pt" height="36pt" viewBox="0 0 72 36">
            <rect width="72" height="36" fill="#ffffff"/><text x="3" y="20" font-family="DejaVu Sans">5</text></svg>"##;
        let png = png(svg).unwrap();
        let image = image::load_from_memory(&png).unwrap().to_luma8();
        assert_eq!((image.width(), image.height()), (300, 150));
        assert!(image.pixels().any(|p| p.0[0] < 20), "the text is not drawn");
        let at = png.windows(4).position(|w| w == b"pHYs").unwrap();
        assert_eq!(png[at + 4..at + 8], 11811u32.to_be_bytes());
        assert!(parse("<svg").is_err());
    }
}
