//! CIFAR-10 from the Hugging Face Hub: two Parquet files with PNG images, repository `uoft-cs/cifar10`.
//!
//! Differs from candle-datasets, whose reader of these files returns every image transposed (rows and columns
//! exchanged), which moves a backdoor's trigger to another corner: PNG rows are kept as they are here.
//!
//! A download that was cut short or damaged on the way is an error that names the file to delete, never other images:
//! what counts is the [`Pin`] of the decoded images.

use super::super::hub::{Config, RemoteFile, fetch};
use super::super::images::Images;
use super::super::parquet::{self, Layout};
use super::pin::{Pin, arrange};
use super::{SIZE, THREE_WAYS};
use crate::error::{Error, Result, ResultExt};
use crate::stage::Context;
use std::path::Path;

/// The repository.
pub const REPOSITORY: &str = "uoft-cs/cifar10";
/// The commit that holds the Parquet files.
pub const REVISION: &str = "0b2714987fa478483af9968de7c934580d0bb9a2";
/// Training and test images.
pub const FILES: [&str; 2] = ["plain_text/train-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet"];

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
    parquet::read(path, Layout { size: SIZE, image: "img", label: "label", n })
}
