//! Labelled images of one size in memory: what every reader of a dataset makes.
//!
//! Deliberately plain vectors: readers fill them row by row, stages cut them and turn them into a
//! [`Split`](crate::artifact::Split).

use crate::artifact::Split;
use crate::error::{Error, Result};
use crate::store::digest::Digest;
use image::imageops::FilterType;

/// Labelled images of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    /// Rows and columns of an image, in pixels.
    pub size: (usize, usize),
    /// uint8 RGB, [N, H, W, 3].
    pub pixels: Vec<u8>,
    /// Class of each image, [N].
    pub labels: Vec<i64>,
}

impl Images {
    /// No image yet; room for `n`.
    pub fn with_capacity(size: (usize, usize), n: usize) -> Images {
        Images { size, pixels: Vec::with_capacity(n * size.0 * size.1 * 3), labels: Vec::with_capacity(n) }
    }

    /// The number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Bytes of one image, H * W * 3.
    pub fn image_bytes(&self) -> usize {
        self.size.0 * self.size.1 * 3
    }

    /// Adds an image whose channels lie one after the other, [3, H, W], as in the official CIFAR files.
    pub fn push_planar(&mut self, planar: &[u8], label: i64) {
        let plane = self.size.0 * self.size.1;
        let (red, rest) = planar.split_at(plane);
        let (green, blue) = rest.split_at(plane);
        for ((&r, &g), &b) in red.iter().zip(green).zip(blue) {
            self.pixels.extend_from_slice(&[r, g, b]);
        }
        self.labels.push(label);
    }

    /// Adds images of the same size behind these.
    pub fn append(&mut self, mut other: Images) {
        debug_assert_eq!(self.size, other.size, "images of one size");
        self.pixels.append(&mut other.pixels);
        self.labels.append(&mut other.labels);
    }

    /// The rows `rows`, in that order.
    pub fn select(&self, rows: &[usize]) -> Images {
        let mut chosen = Images::with_capacity(self.size, rows.len());
        let bytes = self.image_bytes();
        for &row in rows {
            chosen.pixels.extend_from_slice(&self.pixels[row * bytes..(row + 1) * bytes]);
            chosen.labels.push(self.labels[row]);
        }
        chosen
    }

    /// These images with `n` black pixels more on every side.
    pub fn padded(&self, n: usize) -> Images {
        let (height, width) = self.size;
        let mut padded = Images::with_capacity((height + 2 * n, width + 2 * n), self.len());
        padded.labels.extend_from_slice(&self.labels);
        let (row, margin) = (3 * (width + 2 * n), 3 * n);
        padded.pixels.resize(self.len() * padded.image_bytes(), 0);
        for (source, target) in
            self.pixels.chunks_exact(self.image_bytes()).zip(padded.pixels.chunks_exact_mut(row * (height + 2 * n)))
        {
            for (source, target) in source.chunks_exact(3 * width).zip(target.chunks_exact_mut(row).skip(n)) {
                target[margin..margin + 3 * width].copy_from_slice(source);
            }
        }
        padded
    }

    /// The number of images of each class, `n_classes` of them; labels beyond are not counted.
    pub fn counts(&self, n_classes: usize) -> Vec<usize> {
        let mut counts = vec![0; n_classes];
        for &label in &self.labels {
            if let Some(count) = usize::try_from(label).ok().and_then(|label| counts.get_mut(label)) {
                *count += 1;
            }
        }
        counts
    }

    /// The first `n` images of each class, in the order in which they stand.
    ///
    /// # Errors
    /// A class with fewer images, or a label that is no class.
    pub fn first_per_class(&self, n: usize, classes: &[&str]) -> Result<Images> {
        self.some_per_class(n, classes, |position, _| position < n)
    }

    /// `n` images of each class, evenly spaced among those of the class, in the order in which they stand.
    ///
    /// # Errors
    /// As for [`first_per_class`](Self::first_per_class).
    pub fn spaced_per_class(&self, n: usize, classes: &[&str]) -> Result<Images> {
        // Of any `count` positions after another this holds for `n`, one in every `count / n` or so, the first among them.
        self.some_per_class(n, classes, |position, count| position * n % count < n)
    }

    /// The images of each class whose position among the images of the class, and their number, satisfy `is_kept`, of
    /// which there are `n`.
    fn some_per_class(&self, n: usize, classes: &[&str], is_kept: impl Fn(usize, usize) -> bool) -> Result<Images> {
        let counts = self.counts(classes.len());
        if let Some((count, class)) = counts.iter().zip(classes).find(|(count, _)| **count < n) {
            return Err(Error::user(format!("expected at least {n} images of class `{class}`, found {count}")));
        }
        let mut positions = vec![0usize; classes.len()];
        let mut rows = Vec::with_capacity(n * classes.len());
        for (row, &label) in self.labels.iter().enumerate() {
            let class = usize::try_from(label).ok().filter(|&class| class < classes.len());
            let Some(class) = class else {
                return Err(Error::stage(format!(
                    "image {row} has label {label}, expected 0 to {}",
                    classes.len() - 1
                )));
            };
            if is_kept(positions[class], counts[class]) {
                rows.push(row);
            }
            positions[class] += 1;
        }
        if rows.len() == self.len() { Ok(self.clone()) } else { Ok(self.select(&rows)) }
    }

    /// BLAKE3 over size, labels and pixels: the same images in the same order have the same digest, whatever they
    /// were read from.
    pub fn digest(&self) -> Digest {
        digest(self.size, &self.labels, &self.pixels)
    }

    /// The digests of consecutive blocks of `rows` images; the last block may be shorter.
    pub fn block_digests(&self, rows: usize) -> Vec<Digest> {
        use rayon::prelude::*;
        let pixels = self.pixels.par_chunks(rows * self.image_bytes());
        self.labels.par_chunks(rows).zip(pixels).map(|(labels, pixels)| digest(self.size, labels, pixels)).collect()
    }

    /// A clean split of these images.
    ///
    /// # Errors
    /// If pixels and labels do not fit together.
    pub fn into_split(self) -> Result<Split> {
        Split::clean(self.size, self.pixels, self.labels)
    }

    /// Mean and standard deviation of each channel over all pixels, in [0, 1]. Sums are whole numbers, so the result
    /// does not depend on their order. A channel without any contrast gets a deviation of 1, so that normalising by
    /// it stays finite.
    pub fn statistics(&self) -> ([f64; 3], [f64; 3]) {
        let (mut sums, mut squares) = ([0u64; 3], [0u64; 3]);
        for pixel in self.pixels.chunks_exact(3) {
            for (channel, &value) in pixel.iter().enumerate() {
                sums[channel] += u64::from(value);
                squares[channel] += u64::from(value) * u64::from(value);
            }
        }
        let n = (self.pixels.len() / 3).max(1) as u128;
        let mean = sums.map(|sum| sum as f64 / n as f64 / 255.0);
        let mut std = [1.0; 3];
        for channel in 0..3 {
            // n·Σx² - (Σx)² is exact in whole numbers; it is zero only without contrast.
            let spread = n * u128::from(squares[channel]) - u128::from(sums[channel]) * u128::from(sums[channel]);
            if spread > 0 {
                std[channel] = (spread as f64).sqrt() / n as f64 / 255.0;
            }
        }
        (mean, std)
    }
}

fn digest(size: (usize, usize), labels: &[i64], pixels: &[u8]) -> Digest {
    let mut hasher = blake3::Hasher::new_derive_key("runner 2026-11 labelled images");
    for number in [labels.len(), size.0, size.1] {
        hasher.update(&(number as u64).to_le_bytes());
    }
    for label in labels {
        hasher.update(&label.to_le_bytes());
    }
    hasher.update(pixels);
    hasher.finalize().into()
}

/// One decoded image: rows, columns, and uint8 RGB [H, W, 3].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// Rows and columns.
    pub size: (usize, usize),
    /// [H, W, 3].
    pub pixels: Vec<u8>,
}

impl Decoded {
    /// The image resized to `size`, rows and columns; the aspect ratio is not kept. Linear filter, widened when shrinking
    /// so that nothing aliases: what PIL and torchvision call bilinear, to within one level.
    ///
    /// # Errors
    /// Pixels that do not fill the image.
    pub fn resized(self, size: (usize, usize)) -> Result<Decoded, String> {
        if self.size == size {
            return Ok(self);
        }
        Ok(rgb(image::imageops::resize(&self.buffer()?, size.1 as u32, size.0 as u32, FilterType::Triangle)))
    }

    /// The part of the image from `top` and `left` up to, but not with, `bottom` and `right`.
    ///
    /// # Errors
    /// An empty part, or one that reaches beyond the image.
    pub fn cropped(self, Region { left, top, right, bottom }: Region) -> Result<Decoded, String> {
        let (rows, columns) = self.size;
        if left >= right || top >= bottom || right > columns || bottom > rows {
            return Err(format!(
                "rows {top} to {bottom} and columns {left} to {right} are no part of {rows}x{columns} pixels"
            ));
        }
        let [x, y, width, height] = [left, top, right - left, bottom - top].map(|side| side as u32);
        Ok(rgb(image::imageops::crop_imm(&self.buffer()?, x, y, width, height).to_image()))
    }

    fn buffer(self) -> Result<image::RgbImage, String> {
        image::RgbImage::from_raw(self.size.1 as u32, self.size.0 as u32, self.pixels)
            .ok_or_else(|| "the pixels do not fill the image".into())
    }
}

/// A part of an image, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// The first column.
    pub left: usize,
    /// The first row.
    pub top: usize,
    /// The first column behind it.
    pub right: usize,
    /// The first row below it.
    pub bottom: usize,
}

/// Decodes a PNG, JPEG, WebP or PNM file, told apart by its first bytes.
///
/// Grey becomes three equal channels, 16 bits become 8, and the alpha channel is dropped (not blended), all as
/// torchvision's `ImageFolder` does it. An EXIF orientation is not applied, which is torchvision's rule too.
///
/// # Errors
/// Whatever is wrong with the file, as a lower-case fragment.
pub fn decode(bytes: &[u8]) -> Result<Decoded, String> {
    Ok(rgb(image::load_from_memory(bytes).map_err(|error| error.to_string())?.into_rgb8()))
}

/// An image of the `image` crate as ours.
pub fn rgb(image: image::RgbImage) -> Decoded {
    let size = (image.height() as usize, image.width() as usize);
    Decoded { size, pixels: image.into_raw() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(labels: &[i64]) -> Images {
        let pixels = (0..labels.len() * 12).map(|i| i as u8).collect();
        Images { size: (2, 2), pixels, labels: labels.to_vec() }
    }

    #[test]
    fn planar_images_become_interleaved() {
        let mut images = Images::with_capacity((1, 2), 1);
        images.push_planar(&[1, 2, 3, 4, 5, 6], 7);
        assert_eq!((images.pixels, images.labels), (vec![1, 3, 5, 2, 4, 6], vec![7]));
    }

    #[test]
    fn parts_of_an_image() {
        let image = || Decoded { size: (2, 3), pixels: (0..18).collect() };
        let part = |left, top, right, bottom| image().cropped(Region { left, top, right, bottom });
        assert_eq!(part(0, 0, 3, 2), Ok(image()));
        assert_eq!(part(1, 1, 3, 2), Ok(Decoded { size: (1, 2), pixels: (12..18).collect() }));
        for (left, top, right, bottom) in [(1, 0, 1, 2), (0, 1, 2, 1), (0, 0, 4, 2), (0, 0, 3, 3), (2, 0, 1, 2)] {
            assert!(part(left, top, right, bottom).is_err_and(|reason| reason.ends_with("are no part of 2x3 pixels")));
        }
    }

    #[test]
    fn padding_puts_black_around() {
        let one = Images { size: (1, 2), pixels: vec![1, 2, 3, 4, 5, 6], labels: vec![0] };
        let [k, a, b] = [[0, 0, 0], [1, 2, 3], [4, 5, 6]];
        let expected = [k, k, k, k, k, a, b, k, k, k, k, k].concat();
        assert_eq!(one.padded(1), Images { size: (3, 4), pixels: expected, labels: vec![0] });
        assert_eq!(one.padded(0), one);
        assert_eq!(images(&[1, 0, 1, 5]).counts(2), [1, 2]);
    }

    #[test]
    fn the_first_images_of_each_class_keep_their_order() {
        let all = images(&[1, 0, 1, 1, 0, 0]);
        let cut = all.first_per_class(2, &["a", "b"]).expect("enough");
        assert_eq!(cut.labels, [1, 0, 1, 0]);
        assert_eq!(cut.pixels, [&all.pixels[..36], &all.pixels[48..60]].concat());
        let error = all.first_per_class(4, &["a", "b"]).expect_err("too many").to_string();
        assert_eq!(error, "expected at least 4 images of class `a`, found 3");
        assert!(all.first_per_class(1, &["a"]).is_err());
    }

    #[test]
    fn spaced_images_of_each_class() {
        for (count, n, expected) in [
            (7, 7, &[0, 1, 2, 3, 4, 5, 6][..]),
            (7, 1, &[0]),
            (7, 3, &[0, 3, 5]),
            (6, 3, &[0, 2, 4]),
            (8, 6, &[0, 2, 3, 4, 6, 7]),
        ] {
            // Two classes by turns; the second starts one row later.
            let all = images(&[0, 1].repeat(count));
            let kept = all.spaced_per_class(n, &["a", "b"]).expect("enough");
            let rows: Vec<usize> = expected.iter().flat_map(|position| [2 * position, 2 * position + 1]).collect();
            assert_eq!(kept, all.select(&rows), "{n} of {count}");
        }
        assert!(images(&[0, 1, 1]).spaced_per_class(2, &["a", "b"]).is_err());
    }

    #[test]
    fn digests_see_order_labels_and_size() {
        let one = images(&[0, 1]);
        assert_eq!(one.digest(), images(&[0, 1]).digest());
        assert_ne!(one.digest(), images(&[1, 0]).digest());
        assert_ne!(one.digest(), one.select(&[1, 0]).digest());
        assert_ne!(one.digest(), Images { size: (1, 4), ..one.clone() }.digest());
        assert_eq!(one.block_digests(1), [one.select(&[0]).digest(), one.select(&[1]).digest()]);
    }

    #[test]
    fn statistics_of_a_known_set() {
        let images = Images { size: (1, 2), pixels: vec![0, 255, 9, 255, 255, 9], labels: vec![0] };
        let (mean, std) = images.statistics();
        assert_eq!(mean, [0.5, 1.0, 9.0 / 255.0]);
        assert_eq!(std, [0.5, 1.0, 1.0]);
    }
}
