//! CIFAR-10 from the Hugging Face Hub: two Parquet files with PNG images, repository `uoft-cs/cifar10`.
//!
//! Differs from candle-datasets, whose reader of these files returns every image transposed (rows and columns
//! exchanged), which moves a backdoor's trigger to another corner: PNG rows are kept as they are here.
//!
//! A download that was cut short or damaged on the way is an error that names the file to delete, never other images:
//! what counts is the [`Pin`] of the decoded images.

use super::super::hub::{Config, RemoteFile, fetch};
use super::super::images::{Images, decode};
use super::pin::{Pin, arrange};
use super::{SIZE, THREE_WAYS};
use crate::error::{Error, Result, ResultExt};
use crate::stage::Context;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use rayon::prelude::*;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// The repository.
pub const REPOSITORY: &str = "uoft-cs/cifar10";
/// The commit that holds the Parquet files.
pub const REVISION: &str = "0b2714987fa478483af9968de7c934580d0bb9a2";
/// Training and test images.
pub const FILES: [&str; 2] = ["plain_text/train-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet"];

/// Rows that are decoded together.
const CHUNK: usize = 2000;

/// The training and the test images, which must be those of `pin`; brought into its order.
///
/// # Errors
/// A failed download, or a damaged file.
pub fn load(cx: &Context, config: &Config, pin: &Pin) -> Result<(Images, Images)> {
    let [train, test] = FILES;
    Ok((split(cx, config, train, pin, Part::Train)?, split(cx, config, test, pin, Part::Test)?))
}

#[derive(Clone, Copy)]
enum Part {
    Train,
    Test,
}

fn split(cx: &Context, config: &Config, name: &'static str, pin: &Pin, part: Part) -> Result<Images> {
    let file = RemoteFile { repository: REPOSITORY, revision: REVISION, name };
    let path = fetch(cx, config, file).hint(THREE_WAYS)?;
    // The cache links to a blob. It is the blob that must go: the client would link to it again.
    let path = path.canonicalize().unwrap_or(path);
    let digests = match part {
        Part::Train => &pin.train,
        Part::Test => &pin.test,
    };
    cx.check_stop()?;
    read(&path, digests.len() * pin.rows).and_then(|images| arrange(&images, digests, pin.rows)).map_err(|reason| {
        Error::machine(format!("the download `{}` is damaged: {reason}", path.display()))
            .hint(format!("delete `{}` and run again; or else, {THREE_WAYS}", path.display()))
    })
}

/// The images of one Parquet file, which must be `n`; every error is a sign of damage.
///
/// # Errors
/// Whatever is wrong with the file, as a lower-case fragment.
pub fn read(path: &Path, n: usize) -> Result<Images, String> {
    // The Parquet reader is written for files that are whole; some damage makes it panic.
    catch_unwind(AssertUnwindSafe(|| read_parquet(path, n))).unwrap_or_else(|_| Err("no readable Parquet file".into()))
}

fn read_parquet(path: &Path, n: usize) -> Result<Images, String> {
    let text = |error: parquet::errors::ParquetError| error.to_string();
    let file = File::open(path).map_err(|error| error.to_string())?;
    let reader = SerializedFileReader::new(file).map_err(text)?;
    let rows = reader.metadata().file_metadata().num_rows();
    if usize::try_from(rows) != Ok(n) {
        return Err(format!("expected {n} images, found {rows}"));
    }
    let mut images = Images::with_capacity(SIZE, n);
    let mut rows = reader.get_row_iter(None).map_err(text)?;
    loop {
        let chunk =
            rows.by_ref().take(CHUNK).map(|row| fields(row.map_err(text)?)).collect::<Result<Vec<_>, String>>()?;
        if chunk.is_empty() {
            return Ok(images);
        }
        let decoded: Vec<Result<Vec<u8>, String>> = chunk.par_iter().map(|(png, _)| pixels(png)).collect();
        for (pixels, (_, label)) in decoded.into_iter().zip(&chunk) {
            let pixels = pixels.map_err(|reason| format!("image {}: {reason}", images.len()))?;
            images.pixels.extend_from_slice(&pixels);
            images.labels.push(*label);
        }
    }
}

/// The encoded image and the label of a row: columns `img` {`bytes`, `path`} and `label`.
fn fields(row: Row) -> Result<(Vec<u8>, i64), String> {
    let (mut image, mut label) = (None, None);
    for (name, field) in row.into_columns() {
        match (name.as_str(), field) {
            ("img", Field::Group(group)) => {
                image = group.into_columns().into_iter().find_map(|(name, field)| match field {
                    Field::Bytes(bytes) if name == "bytes" => Some(bytes.data().to_vec()),
                    _ => None,
                });
            }
            ("label", Field::Long(value)) => label = Some(value),
            _ => {}
        }
    }
    image.zip(label).ok_or_else(|| "a row has no `img.bytes` or no `label`".into())
}

fn pixels(png: &[u8]) -> Result<Vec<u8>, String> {
    let image = decode(png)?;
    if image.size == SIZE {
        Ok(image.pixels)
    } else {
        Err(format!("expected 32x32 pixels, found {}x{}", image.size.0, image.size.1))
    }
}
