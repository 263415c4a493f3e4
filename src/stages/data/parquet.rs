//! Images and labels in the Parquet files of the Hugging Face Hub: a column {`bytes`, `path`} and a column of labels.

use super::images::{Images, decode};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use rayon::prelude::*;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Rows that are decoded together.
const CHUNK: usize = 2000;

/// What a file must hold.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Rows and columns of an image.
    pub size: (usize, usize),
    /// The column of the images.
    pub image: &'static str,
    /// The column of the labels.
    pub label: &'static str,
    /// The number of images.
    pub n: usize,
}

/// The images of one Parquet file; every error is a sign of damage.
///
/// # Errors
/// Whatever is wrong with the file, as a lower-case fragment.
pub fn read(path: &Path, layout: Layout) -> Result<Images, String> {
    // The Parquet reader is written for files that are whole; some damage makes it panic.
    catch_unwind(AssertUnwindSafe(|| images(path, layout))).unwrap_or_else(|_| Err("no readable Parquet file".into()))
}

fn images(path: &Path, layout: Layout) -> Result<Images, String> {
    let text = |error: parquet::errors::ParquetError| error.to_string();
    let file = File::open(path).map_err(|error| error.to_string())?;
    let reader = SerializedFileReader::new(file).map_err(text)?;
    let rows = reader.metadata().file_metadata().num_rows();
    if usize::try_from(rows) != Ok(layout.n) {
        return Err(format!("expected {} images, found {rows}", layout.n));
    }
    let mut images = Images::with_capacity(layout.size, layout.n);
    let mut rows = reader.get_row_iter(None).map_err(text)?;
    loop {
        let fields = |row| fields(row, layout);
        let chunk =
            rows.by_ref().take(CHUNK).map(|row| fields(row.map_err(text)?)).collect::<Result<Vec<_>, String>>()?;
        if chunk.is_empty() {
            return Ok(images);
        }
        let decoded: Vec<Result<Vec<u8>, String>> =
            chunk.par_iter().map(|(image, _)| pixels(image, layout.size)).collect();
        for (pixels, (_, label)) in decoded.into_iter().zip(&chunk) {
            let pixels = pixels.map_err(|reason| format!("image {}: {reason}", images.len()))?;
            images.pixels.extend_from_slice(&pixels);
            images.labels.push(*label);
        }
    }
}

/// The encoded image and the label of a row.
fn fields(row: Row, layout: Layout) -> Result<(Vec<u8>, i64), String> {
    let (mut image, mut label) = (None, None);
    for (name, field) in row.into_columns() {
        match (name.as_str(), field) {
            (name, Field::Long(value)) if name == layout.label => label = Some(value),
            (name, Field::Group(group)) if name == layout.image => {
                image = group.into_columns().into_iter().find_map(|(name, field)| match field {
                    Field::Bytes(bytes) if name == "bytes" => Some(bytes.data().to_vec()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    image.zip(label).ok_or_else(|| format!("a row has no `{}.bytes` or no `{}`", layout.image, layout.label))
}

fn pixels(image: &[u8], size: (usize, usize)) -> Result<Vec<u8>, String> {
    let image = decode(image)?;
    if image.size == size {
        Ok(image.pixels)
    } else {
        Err(format!("expected {}x{} pixels, found {}x{}", size.0, size.1, image.size.0, image.size.1))
    }
}
