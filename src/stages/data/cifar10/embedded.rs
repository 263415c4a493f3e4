//! The subset of CIFAR-10 that is compiled into the binary: the first 500 training and the first 100 test images of
//! each class, in the official order.
//!
//! Stored under `assets/cifar10` as lossless WebP, one image under the other, so that a decoded mosaic already is
//! [N, 32, 32, 3]. `make.py` there makes the files from the official ones.

use super::super::images::Images;
use super::SIZE;
use crate::error::{Error, Result};
use rayon::prelude::*;

/// Training images of each class.
pub const TRAIN_PER_CLASS: usize = 500;
/// Test images of each class.
pub const TEST_PER_CLASS: usize = 100;

macro_rules! asset {
    ($name:literal) => {
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/cifar10/", $name))
    };
}

/// Mosaics of 500 images, the training images before the test images.
const MOSAICS: [&[u8]; 12] = [
    asset!("train_00.webp"),
    asset!("train_01.webp"),
    asset!("train_02.webp"),
    asset!("train_03.webp"),
    asset!("train_04.webp"),
    asset!("train_05.webp"),
    asset!("train_06.webp"),
    asset!("train_07.webp"),
    asset!("train_08.webp"),
    asset!("train_09.webp"),
    asset!("test_00.webp"),
    asset!("test_01.webp"),
];
const TRAIN_MOSAICS: usize = 10;
const TRAIN_LABELS: &[u8] = asset!("train_labels.u8");
const TEST_LABELS: &[u8] = asset!("test_labels.u8");

/// The training and the test images.
///
/// # Errors
/// A program that was built with damaged assets.
pub fn load() -> Result<(Images, Images)> {
    let mosaics = MOSAICS.par_iter().map(|bytes| decode(bytes)).collect::<Vec<Result<Vec<u8>>>>();
    let mosaics = mosaics.into_iter().collect::<Result<Vec<_>>>()?;
    let images = |mosaics: &[Vec<u8>], labels: &[u8]| {
        let images =
            Images { size: SIZE, pixels: mosaics.concat(), labels: labels.iter().map(|&l| i64::from(l)).collect() };
        let fits = images.pixels.len() == images.len() * images.image_bytes();
        fits.then_some(images).ok_or_else(|| Error::machine("the embedded images and labels do not fit together"))
    };
    let (train, test) = mosaics.split_at(TRAIN_MOSAICS);
    Ok((images(train, TRAIN_LABELS)?, images(test, TEST_LABELS)?))
}

/// [N, 32, 32, 3] of one mosaic, 32 pixels wide.
fn decode(bytes: &[u8]) -> Result<Vec<u8>> {
    match super::super::images::decode(bytes) {
        Ok(mosaic) if mosaic.size.1 == SIZE.1 => Ok(mosaic.pixels),
        Ok(mosaic) => Err(Error::machine(format!("an embedded mosaic is {} pixels wide, expected 32", mosaic.size.1))),
        Err(reason) => Err(Error::machine(format!("an embedded mosaic is unreadable: {reason}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the images of the official pickles, selected by an independent program.
    const TRAIN: &str = "23bb39d3e0069f54a767a673b8e8a902808f3bb98abbf8d66f3faef1e471e17b";
    const TEST: &str = "ca23e4c34ec007ee4d4cf29db3d769deacf5d6772d010f35ffaab11d92413d32";

    #[test]
    fn the_images_are_the_official_ones() {
        let (train, test) = load().expect("readable");
        assert_eq!((train.digest().to_string().as_str(), test.digest().to_string().as_str()), (TRAIN, TEST));
    }

    #[test]
    fn every_class_has_its_share_in_the_official_order() {
        let check = |labels: &[u8], rows: &[u8], per_class: usize| {
            let rows: Vec<u16> = rows.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
            assert_eq!((labels.len(), rows.len()), (10 * per_class, 10 * per_class));
            assert!(rows.windows(2).all(|w| w[0] < w[1]), "official rows ascend");
            for class in 0..10 {
                assert_eq!(labels.iter().filter(|&&l| l == class).count(), per_class);
            }
        };
        check(TRAIN_LABELS, asset!("train_rows.u16"), TRAIN_PER_CLASS);
        check(TEST_LABELS, asset!("test_rows.u16"), TEST_PER_CLASS);
    }

    #[test]
    fn the_assets_stay_small() {
        assert!(MOSAICS.iter().map(|m| m.len()).sum::<usize>() < 12_000_000);
    }
}
