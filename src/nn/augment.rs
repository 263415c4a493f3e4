//! Batches: packed uint8 images, cropped, flipped, cut out and normalised straight into the network's f32 input.
//!
//! PyTorch's `RandomCrop(size, padding)`, then `RandomHorizontalFlip`, then `Normalize`, as in BackdoorBench; then
//! cutout (DeVries & Taylor 2017, section 3). A trigger that is stamped into the image moves with it, as it does there,
//! and can be cut out. Differs from the cutout paper's code: a square of odd size keeps it, theirs loses a pixel.
//!
//! Where draws come from (Invariant 4): image `row` of epoch `epoch` draws from sub-stream `epoch * N + row` of the
//! stage's stream `augment`, N being the number of images of the split: row offset, column offset (if there is a
//! crop), mirror (if there are flips), row and column of the hole's centre (if there is a cutout). So a batch is the
//! same whatever the number of threads and whichever samples stand beside it, and what is switched off draws nothing.

use crate::artifact::Split;
use crate::error::{Error, Result};
use crate::kernels::Isa;
use crate::kernels::pixels::{self, Affine, View};
use crate::rng::Stream;
use rayon::prelude::*;
use std::ops::Range;

/// Images that one task prepares.
const IMAGES_PER_TASK: usize = 16;

/// `(value / 255 - mean) / std`, per channel.
#[derive(Clone, Debug)]
pub struct Normalise {
    affine: Affine,
    isa: Isa,
}

impl Normalise {
    /// From channel means and standard deviations in [0, 1]. Mean 0 and deviation 1 leave images in [0, 1].
    ///
    /// # Errors
    /// A deviation that is not above zero.
    pub fn new(mean: [f64; 3], std: [f64; 3]) -> Result<Normalise> {
        if let Some(bad) = std.iter().find(|&&s| s.is_nan() || s <= 0.0) {
            return Err(Error::stage(format!("cannot divide by a channel's standard deviation of {bad}"))
                .hint("set `normalise = false`, or use a dataset whose channels vary"));
        }
        let scale = std::array::from_fn(|i| (1.0 / (255.0 * std[i % 3])) as f32);
        let shift = std::array::from_fn(|i| (-mean[i % 3] / std[i % 3]) as f32);
        Ok(Normalise { affine: Affine { scale, shift }, isa: Isa::best() })
    }

    /// Images in [0, 1], as they are.
    pub fn none() -> Normalise {
        let affine = Affine { scale: [1.0 / 255.0; pixels::BLOCK], shift: [0.0; pixels::BLOCK] };
        Normalise { affine, isa: Isa::best() }
    }

    /// Three factors and three summands.
    #[cfg(feature = "cuda")]
    pub(super) fn factors(&self) -> [f32; 6] {
        std::array::from_fn(|i| if i < 3 { self.affine.scale[i] } else { self.affine.shift[i - 3] })
    }

    /// Factor of every channel: `d normalised / d value`.
    pub fn scale(&self) -> [f32; 3] {
        [self.affine.scale[0], self.affine.scale[1], self.affine.scale[2]]
    }

    /// Pixels between bytes: `source` f32 [n, 3] in 0..255 into `target` f32 [n, 3]; whole values as those of images.
    pub fn floats(&self, source: &[f32], target: &mut [f32]) {
        let Affine { scale, shift } = &self.affine;
        for (source, target) in source.chunks(pixels::BLOCK).zip(target.chunks_mut(pixels::BLOCK)) {
            for (((value, &pixel), scale), shift) in target.iter_mut().zip(source).zip(scale).zip(shift) {
                *value = pixel * scale + shift;
            }
        }
    }
}

/// Random changes to training images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Augment {
    /// Black pixels added on every side before a window of the original size is cut out; 0 for no crop.
    pub crop: usize,
    /// Whether half of the images are mirrored.
    pub flip: bool,
    /// Rows and columns of a square that becomes 0 after normalisation, which is the channels' mean; 0 for none. Its
    /// centre falls on any pixel equally often; what would lie outside of the image is left out.
    pub cutout: usize,
}

impl Augment {
    /// No change at all.
    pub const NONE: Augment = Augment { crop: 0, flip: false, cutout: 0 };

    /// What is seen of an image of `size`.
    fn view(self, size: (usize, usize), mut stream: Stream) -> View {
        let mut offset = || match self.crop {
            0 => 0,
            crop => stream.below(2 * crop as u64 + 1) as isize - crop as isize,
        };
        let (down, right) = (offset(), offset());
        let mirrored = self.flip && stream.chance(0.5);
        let mut stretch = |length: usize| -> Range<usize> {
            if self.cutout == 0 {
                return 0..0;
            }
            let first = stream.below(length as u64) as isize - (self.cutout / 2) as isize;
            first.max(0) as usize..first.saturating_add_unsigned(self.cutout).min(length as isize) as usize
        };
        let hole = (stretch(size.0), stretch(size.1));
        View { down, right, mirrored, hole }
    }
}

/// Writes the images `rows` of `split` as they are, normalised: `batch` f32 [rows, H, W, 3].
///
/// # Errors
/// A row that is not there, or a batch of another size.
pub fn plain(split: &Split, rows: &[usize], normalise: &Normalise, batch: &mut [f32]) -> Result<()> {
    fill(split, rows, normalise, batch, |_| View::WHOLE)
}

/// Writes the images `rows` of `split`, changed at random and normalised: `batch` f32 [rows, H, W, 3].
///
/// Image `row` of epoch `epoch` draws from sub-stream `epoch * split.len() + row` of `stream`.
///
/// # Errors
/// A row that is not there, or a batch of another size.
pub fn augmented(
    split: &Split,
    rows: &[usize],
    normalise: &Normalise,
    (augment, stream, epoch): (Augment, &Stream, usize),
    batch: &mut [f32],
) -> Result<()> {
    if augment == Augment::NONE {
        return plain(split, rows, normalise, batch);
    }
    let first = epoch as u64 * split.len() as u64;
    fill(split, rows, normalise, batch, |row| augment.view(split.size, stream.at(first + row as u64)))
}

/// The same for images made for this batch: image i of `made` stands for image `rows[i]` of a split of `n`, and draws
/// what that would.
///
/// # Errors
/// Another number of images, or a batch of another size.
pub fn augmented_anew(
    made: &Split,
    (rows, n): (&[usize], usize),
    normalise: &Normalise,
    (augment, stream, epoch): (Augment, &Stream, usize),
    batch: &mut [f32],
) -> Result<()> {
    if made.len() != rows.len() {
        return Err(Error::stage(format!("{} images were made for a batch of {}", made.len(), rows.len())));
    }
    let places: Vec<usize> = (0..rows.len()).collect();
    if augment == Augment::NONE {
        return plain(made, &places, normalise, batch);
    }
    let first = epoch as u64 * n as u64;
    fill(made, &places, normalise, batch, |i| augment.view(made.size, stream.at(first + rows[i] as u64)))
}

/// What [`augmented`] does to the images `rows` of a split of `n` images of `size`, holes aside: rows down, columns right,
/// whether mirrored (0 or 1).
#[cfg(feature = "cuda")]
pub fn draws(
    n: usize,
    size: (usize, usize),
    rows: &[usize],
    (augment, stream, epoch): (Augment, &Stream, usize),
) -> Vec<[i32; 3]> {
    let first = epoch as u64 * n as u64;
    let draw = |&row: &usize| {
        let View { down, right, mirrored, .. } = augment.view(size, stream.at(first + row as u64));
        [down as i32, right as i32, i32::from(mirrored)]
    };
    rows.par_iter().map(draw).collect()
}

fn fill(
    split: &Split,
    rows: &[usize],
    normalise: &Normalise,
    batch: &mut [f32],
    view: impl Fn(usize) -> View + Sync,
) -> Result<()> {
    let values = split.image_bytes();
    if batch.len() != rows.len() * values {
        return Err(Error::stage(format!("a batch of {} values for {} images of {values}", batch.len(), rows.len())));
    }
    if let Some(row) = rows.iter().find(|&&row| row >= split.len()) {
        return Err(Error::stage(format!("image {row} of a split of {}", split.len())));
    }
    if values == 0 {
        return Ok(());
    }
    let Normalise { affine, isa } = normalise;
    batch.par_chunks_mut(values * IMAGES_PER_TASK).zip(rows.par_chunks(IMAGES_PER_TASK)).for_each(|(images, rows)| {
        for (target, &row) in images.chunks_exact_mut(values).zip(rows) {
            pixels::write(*isa, split.image(row), split.size, &view(row), affine, target);
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests;
