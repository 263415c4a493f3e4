//! A picture that is mixed into an image: the trigger of patch and blend attacks.
//!
//! A pixel of an image becomes `(1 - alpha) * image + alpha * trigger`, computed in f64 per channel on 0..255 and
//! rounded to the nearest whole number, halves upwards. The result is an 8-bit image again, as an attacker would have
//! to hand it in; crops and flips of a later augmentation move the trigger with the image.

use crate::error::{Error, IoExt, Result};
use crate::rng::Stream;
use crate::store::digest::Digest;
use std::path::Path;

/// A picture with an opacity per pixel.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    /// Rows and columns.
    pub size: (usize, usize),
    /// [H, W, 4]: red, green, blue, opacity.
    pub pixels: Vec<u8>,
}

/// An opaque or see-through pixel of a [`Picture`].
pub type Pixel = [u8; 4];

impl Picture {
    /// The picture whose pixel at (row, column) is `pixel(row, column)`, asked for in row order.
    pub fn of(size: (usize, usize), mut pixel: impl FnMut(usize, usize) -> Pixel) -> Picture {
        let mut pixels = Vec::with_capacity(size.0 * size.1 * 4);
        for row in 0..size.0 {
            for column in 0..size.1 {
                pixels.extend_from_slice(&pixel(row, column));
            }
        }
        Picture { size, pixels }
    }

    /// The same picture in black, as opaque as it is.
    pub fn darkened(&self) -> Picture {
        let pixels = self.pixels.chunks_exact(4).flat_map(|pixel| [0, 0, 0, pixel[3]]).collect();
        Picture { size: self.size, pixels }
    }

    /// The same picture in white, as opaque as it is.
    pub fn lightened(&self) -> Picture {
        let pixels = self.pixels.chunks_exact(4).flat_map(|pixel| [255, 255, 255, pixel[3]]).collect();
        Picture { size: self.size, pixels }
    }

    /// Opaque noise: independent uniform values, one per pixel if `channels` is grey, else three.
    pub fn noise(size: (usize, usize), channels: Channels, stream: &mut Stream) -> Picture {
        let mut draw = || stream.below(256) as u8;
        Picture::of(size, |_, _| match channels {
            Channels::Grey => {
                let value = draw();
                [value, value, value, 255]
            }
            Channels::Colour => [draw(), draw(), draw(), 255],
        })
    }

    /// The picture in the file at `path` (PNG, JPEG, WebP, PNM; transparency is kept), resized to `size` if given, and
    /// the digest of the file.
    ///
    /// # Errors
    /// A missing file, or one that is no picture.
    pub fn read(path: &Path, size: Option<(usize, usize)>) -> Result<(Picture, Digest)> {
        let bytes = std::fs::read(path).at("read", path)?;
        let decoded = image::load_from_memory(&bytes)
            .map_err(|error| {
                Error::user(format!("cannot read the picture `{}`: {error}", path.display()))
                    .hint("PNG, JPEG, WebP and PNM pictures are understood")
            })?
            .into_rgba8();
        let decoded = match size {
            Some((height, width)) if (width as u32, height as u32) != decoded.dimensions() => {
                let filter = image::imageops::FilterType::Triangle;
                image::imageops::resize(&decoded, width as u32, height as u32, filter)
            }
            _ => decoded,
        };
        let size = (decoded.height() as usize, decoded.width() as usize);
        Ok((Picture { size, pixels: decoded.into_raw() }, Digest::of(&bytes)))
    }
}

/// Whether noise has colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channels {
    /// Three equal channels.
    Grey,
    /// Three independent channels.
    Colour,
}

/// Where a picture lies in images of one size: inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    top: usize,
    left: usize,
    /// Columns of the images.
    width: usize,
}

impl Place {
    /// The place of a picture of `size` in images of `images` pixels, its upper left pixel at `row`, `column`, which
    /// count from the bottom and from the right when negative.
    ///
    /// # Errors
    /// If part of it would lie outside.
    pub fn of(size: (usize, usize), (row, column): (i64, i64), images: (usize, usize)) -> Result<Place> {
        let resolve = |at: i64, length: usize, extent: usize| {
            let start = if at < 0 { extent as i64 + at } else { at };
            usize::try_from(start).ok().filter(|start| start.saturating_add(length) <= extent)
        };
        match (resolve(row, size.0, images.0), resolve(column, size.1, images.1)) {
            (Some(top), Some(left)) => Ok(Place { top, left, width: images.1 }),
            _ => Err(Error::user(format!(
                "a trigger of {}x{} pixels at row {row}, column {column} does not fit into images of {}x{} pixels",
                size.0, size.1, images.0, images.1
            ))
            .hint("rows and columns count from 0; negative ones count from the bottom and the right")),
        }
    }
}

/// A picture at its place, with its weight.
#[derive(Clone, Debug)]
pub struct Overlay {
    /// The picture.
    pub picture: Picture,
    /// Its place, made for a picture of this size.
    pub place: Place,
    /// Its weight, between 0 and 1.
    pub alpha: f64,
}

impl Overlay {
    /// Mixes the picture into `image`, [H, W, 3].
    pub fn stamp(&self, image: &mut [u8]) {
        self.stamp_where(image, |_, _| true);
    }

    /// Adds the picture to `image`, [H, W, 3], `x + alpha * opacity * trigger`, rounded, halves upwards, and clipped to
    /// 255 before it becomes a byte.
    pub fn add(&self, image: &mut [u8]) {
        self.each(image, |_, _| true, |value, trigger, alpha| round(f64::from(value) + alpha * f64::from(trigger)));
    }

    /// Mixes those pixels of the picture into `image`, [H, W, 3], that `is_wanted(row, column)` of the picture names.
    pub fn stamp_where(&self, image: &mut [u8], is_wanted: impl Fn(usize, usize) -> bool) {
        self.each(image, is_wanted, mix);
    }

    /// Takes the colours of the pixels that the picture covers from `image`, [H, W, 3] in 0 to 255, into `picture`,
    /// which is of the same size; rounded.
    pub fn take(&self, picture: &mut Picture, image: &[f32]) {
        let (height, width) = self.picture.size;
        for row in 0..height {
            let start = 3 * ((self.place.top + row) * self.place.width + self.place.left);
            let target = picture.pixels[4 * row * width..4 * (row + 1) * width].chunks_exact_mut(4);
            for (target, source) in target.zip(image[start..start + 3 * width].chunks_exact(3)) {
                target.iter_mut().zip(source).for_each(|(target, &source)| *target = round(f64::from(source)));
            }
        }
    }

    /// Changes values of `image` to `meet(value, trigger's value, weight)`.
    fn each(&self, image: &mut [u8], is_wanted: impl Fn(usize, usize) -> bool, meet: impl Fn(u8, u8, f64) -> u8) {
        let (height, width) = self.picture.size;
        for row in 0..height {
            let start = 3 * ((self.place.top + row) * self.place.width + self.place.left);
            let source = &self.picture.pixels[4 * row * width..4 * (row + 1) * width];
            let pixels = image[start..start + 3 * width].chunks_exact_mut(3).zip(source.chunks_exact(4));
            for (_, (pixel, trigger)) in pixels.enumerate().filter(|(column, _)| is_wanted(row, *column)) {
                let alpha = self.alpha * f64::from(trigger[3]) / 255.0;
                for (value, &trigger) in pixel.iter_mut().zip(&trigger[..3]) {
                    *value = meet(*value, trigger, alpha);
                }
            }
        }
    }
}

/// `(1 - alpha) * image + alpha * trigger`, rounded to the nearest whole number, halves upwards.
fn mix(image: u8, trigger: u8, alpha: f64) -> u8 {
    round((1.0 - alpha) * f64::from(image) + alpha * f64::from(trigger))
}

fn round(value: f64) -> u8 {
    /// A decimal alpha has no exact binary form: what should be a half may come out just below it.
    const SLACK: f64 = 1e-9;
    (value + 0.5 + SLACK).floor().clamp(0.0, 255.0) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Streams;

    #[test]
    fn mixing_rounds_halves_upwards() {
        let check = |image, trigger, alpha, expected| {
            assert_eq!(mix(image, trigger, alpha), expected, "{image} and {trigger} at {alpha}");
        };
        check(17, 200, 0.0, 17);
        check(17, 200, 1.0, 200);
        check(0, 255, 0.6, 153);
        check(100, 255, 0.2, 131);
        check(100, 0, 0.2, 80);
        // Exact halves: 0.5, 2.5; 0.7 * 5 + 0.3 * 0 = 3.5; 0.9 * 255 = 229.5.
        check(0, 1, 0.5, 1);
        check(2, 3, 0.5, 3);
        check(5, 0, 0.3, 4);
        check(255, 0, 0.1, 230);
        check(0, 255, 0.1, 26);
        for value in 0..=255 {
            check(value, value, 0.37, value);
        }
    }

    #[test]
    fn see_through_pixels_leave_the_image() {
        let picture = Picture::of((1, 3), |_, column| [255, 255, 255, [0, 128, 255][column]]);
        let mut image = [10u8; 9];
        let place = Place::of((1, 3), (0, 0), (1, 3)).unwrap();
        Overlay { picture, place, alpha: 1.0 }.stamp(&mut image);
        assert_eq!(image, [10, 10, 10, 133, 133, 133, 255, 255, 255]);
    }

    #[test]
    fn places() {
        let check = |at, expected: Option<(usize, usize)>| {
            let place = Place::of((2, 3), at, (5, 7));
            assert_eq!(place.ok().map(|place| (place.top, place.left)), expected, "{at:?}");
        };
        check((0, 0), Some((0, 0)));
        check((3, 4), Some((3, 4)));
        check((-2, -3), Some((3, 4)));
        check((-5, -7), Some((0, 0)));
        check((4, 0), None);
        check((0, 5), None);
        check((-1, 0), None);
        check((-6, 0), None);
        check((i64::MIN, i64::MAX), None);
    }

    #[test]
    fn noise_has_the_channels_asked_for() {
        let noise = |channels| Picture::noise((8, 8), channels, &mut Streams::new(0, "s").stream("n")).pixels;
        assert!(noise(Channels::Grey).chunks(4).all(|p| p[0] == p[1] && p[1] == p[2] && p[3] == 255));
        assert!(noise(Channels::Colour).chunks(4).any(|p| p[0] != p[1]));
    }

    #[test]
    fn pictures_are_read_with_transparency_and_resized() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trigger.png");
        image::RgbaImage::from_fn(2, 1, |x, _| image::Rgba([9, 8, 7, 255 * x as u8])).save(&path).unwrap();
        let (picture, digest) = Picture::read(&path, None).unwrap();
        assert_eq!(picture, Picture { size: (1, 2), pixels: vec![9, 8, 7, 0, 9, 8, 7, 255] });
        assert_eq!(digest, Digest::of(&std::fs::read(&path).unwrap()));
        assert_eq!(Picture::read(&path, Some((4, 4))).unwrap().0.size, (4, 4));
        std::fs::write(&path, "no picture").unwrap();
        assert!(Picture::read(&path, None).unwrap_err().to_string().starts_with("cannot read the picture"));
    }
}
