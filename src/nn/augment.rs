//! Batches: packed uint8 images, cropped, flipped and normalised straight into the network's f32 input.
//!
//! PyTorch's `RandomCrop(size, padding)`, then `RandomHorizontalFlip`, then `Normalize`, as in BackdoorBench. Every
//! sample draws from a sub-stream of its own, so a batch is the same whatever the number of threads and whichever
//! samples stand beside it. A trigger that is stamped into the image moves with it, as it does there.

use crate::artifact::Split;
use crate::error::{Error, Result};
use crate::rng::Stream;
use rayon::prelude::*;

/// Values that the normalisation handles at a time: a multiple of the three channels and of a vector register.
const BLOCK: usize = 48;

/// Images that one task prepares.
const IMAGES_PER_TASK: usize = 16;

/// `(value / 255 - mean) / std`, per channel.
#[derive(Clone, Debug)]
pub struct Normalise {
    /// Factor and summand of channel i % 3, repeated so that a block of a row needs no channel arithmetic.
    scale: [f32; BLOCK],
    shift: [f32; BLOCK],
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
        Ok(Normalise {
            scale: std::array::from_fn(|i| (1.0 / (255.0 * std[i % 3])) as f32),
            shift: std::array::from_fn(|i| (-mean[i % 3] / std[i % 3]) as f32),
        })
    }

    /// Images in [0, 1], as they are.
    pub fn none() -> Normalise {
        Normalise { scale: [1.0 / 255.0; BLOCK], shift: [0.0; BLOCK] }
    }

    /// Three factors and three summands.
    #[cfg(feature = "cuda")]
    pub(super) fn factors(&self) -> [f32; 6] {
        std::array::from_fn(|i| if i < 3 { self.scale[i] } else { self.shift[i - 3] })
    }

    /// Whole pixels: `source` u8 [n, 3] into `target` f32 [n, 3].
    fn pixels(&self, source: &[u8], target: &mut [f32]) {
        for (source, target) in source.chunks(BLOCK).zip(target.chunks_mut(BLOCK)) {
            for (((value, &byte), scale), shift) in target.iter_mut().zip(source).zip(&self.scale).zip(&self.shift) {
                *value = f32::from(byte) * scale + shift;
            }
        }
    }

    /// Black pixels: `target` f32 [n, 3].
    fn black(&self, target: &mut [f32]) {
        for target in target.chunks_mut(BLOCK) {
            target.copy_from_slice(&self.shift[..target.len()]);
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
}

/// What happens to one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Draw {
    /// Rows and columns that the window moves down and to the right, each in -crop ..= crop.
    by: (isize, isize),
    mirrored: bool,
}

impl Draw {
    const NONE: Draw = Draw { by: (0, 0), mirrored: false };
}

impl Augment {
    fn draw(self, mut stream: Stream) -> Draw {
        let mut offset = || match self.crop {
            0 => 0,
            crop => stream.below(2 * crop as u64 + 1) as isize - crop as isize,
        };
        let by = (offset(), offset());
        Draw { by, mirrored: self.flip && stream.chance(0.5) }
    }
}

/// Writes the images `rows` of `split` as they are, normalised: `batch` f32 [rows, H, W, 3].
///
/// # Errors
/// A row that is not there, or a batch of another size.
pub fn plain(split: &Split, rows: &[usize], normalise: &Normalise, batch: &mut [f32]) -> Result<()> {
    fill(split, rows, normalise, batch, |_| Draw::NONE)
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
    let first = epoch as u64 * split.len() as u64;
    fill(split, rows, normalise, batch, |row| augment.draw(stream.at(first + row as u64)))
}

/// What [`augmented`] does to the images `rows` of a split of `n`: rows down, columns right, whether mirrored (0 or 1).
#[cfg(feature = "cuda")]
pub fn draws(n: usize, rows: &[usize], (augment, stream, epoch): (Augment, &Stream, usize)) -> Vec<[i32; 3]> {
    let first = epoch as u64 * n as u64;
    let draw = |&row: &usize| {
        let Draw { by, mirrored } = augment.draw(stream.at(first + row as u64));
        [by.0 as i32, by.1 as i32, i32::from(mirrored)]
    };
    rows.par_iter().map(draw).collect()
}

fn fill(
    split: &Split,
    rows: &[usize],
    normalise: &Normalise,
    batch: &mut [f32],
    draw: impl Fn(usize) -> Draw + Sync,
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
    batch.par_chunks_mut(values * IMAGES_PER_TASK).zip(rows.par_chunks(IMAGES_PER_TASK)).for_each(|(images, rows)| {
        for (target, &row) in images.chunks_exact_mut(values).zip(rows) {
            window(split.image(row), split.size, draw(row), normalise, target);
        }
    });
    Ok(())
}

/// One image: `target[y, x] = source[y + by.0, x + by.1]`, black where that lies outside, then mirrored.
fn window(source: &[u8], (height, width): (usize, usize), draw: Draw, normalise: &Normalise, target: &mut [f32]) {
    let (down, right) = draw.by;
    // Columns left..end of the target show columns left + right..end + right of the source.
    let left = right.min(0).unsigned_abs().min(width);
    let end = width.saturating_sub(right.max(0).unsigned_abs()).max(left);
    for (y, row) in target.chunks_exact_mut(width * 3).enumerate() {
        match y.checked_add_signed(down).filter(|&y| y < height) {
            None => normalise.black(row),
            Some(from) => {
                let start = from * width + left.saturating_add_signed(right);
                normalise.black(&mut row[..left * 3]);
                // A crop wider than the image can leave nothing of it.
                if left < end {
                    normalise.pixels(&source[start * 3..][..(end - left) * 3], &mut row[left * 3..end * 3]);
                }
                normalise.black(&mut row[end * 3..]);
                if draw.mirrored {
                    let (pixels, _) = row.as_chunks_mut::<3>();
                    pixels.reverse();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Streams;

    fn split(n: usize, size: (usize, usize)) -> Split {
        let pixels = (0..n * size.0 * size.1 * 3).map(|i| (i * 37 % 251) as u8).collect();
        Split::clean(size, pixels, vec![0; n]).unwrap()
    }

    /// Pad, cut out, mirror and normalise, as slowly as it is written down.
    fn reference(split: &Split, row: usize, draw: Draw, (mean, std): ([f64; 3], [f64; 3])) -> Vec<f64> {
        let (height, width) = split.size;
        let mut values = Vec::new();
        for y in 0..height as isize {
            for x in 0..width as isize {
                let x = if draw.mirrored { width as isize - 1 - x } else { x };
                let (from_y, from_x) = (y + draw.by.0, x + draw.by.1);
                let inside = (0..height as isize).contains(&from_y) && (0..width as isize).contains(&from_x);
                for channel in 0..3 {
                    let at = (from_y * width as isize + from_x) * 3 + channel as isize;
                    let byte = if inside { split.image(row)[at as usize] } else { 0 };
                    values.push((f64::from(byte) / 255.0 - mean[channel]) / std[channel]);
                }
            }
        }
        values
    }

    fn check_window(size: (usize, usize), by: (isize, isize), mirrored: bool) {
        let split = split(2, size);
        let (mean, std) = ([0.49, 0.48, 0.45], [0.25, 0.24, 0.26]);
        let draw = Draw { by, mirrored };
        let mut target = vec![f32::NAN; split.image_bytes()];
        window(split.image(1), size, draw, &Normalise::new(mean, std).unwrap(), &mut target);
        for (ours, expected) in target.iter().zip(reference(&split, 1, draw, (mean, std))) {
            assert!((f64::from(*ours) - expected).abs() < 1e-5, "{size:?} {draw:?}: {ours} instead of {expected}");
        }
    }

    #[test]
    fn windows_equal_the_definition() {
        for size in [(32, 32), (5, 7), (1, 1)] {
            for by in [(0, 0), (4, -4), (-3, 2), (-4, -4), (4, 4), (9, 0), (0, -9)] {
                check_window(size, by, false);
                check_window(size, by, true);
            }
        }
    }

    #[test]
    fn every_offset_is_drawn_equally_often() {
        let stream = Streams::new(0, "s").stream("augment");
        let augment = Augment { crop: 1, flip: true };
        let mut counts = [[0; 9]; 2];
        for i in 0..18_000 {
            let Draw { by: (y, x), mirrored } = augment.draw(stream.at(i));
            counts[usize::from(mirrored)][((y + 1) * 3 + x + 1) as usize] += 1;
        }
        assert!(counts.iter().flatten().all(|&c| (850..1150).contains(&c)), "{counts:?}");
        assert_eq!(Augment { crop: 0, flip: false }.draw(stream.at(0)), Draw::NONE);
    }

    #[test]
    fn a_sample_does_not_depend_on_its_batch() {
        let (split, normalise) = (split(40, (6, 6)), Normalise::none());
        let stream = Streams::new(0, "s").stream("augment");
        let augment = Augment { crop: 2, flip: true };
        let batch = |rows: &[usize], epoch: usize| {
            let mut batch = vec![0.0; rows.len() * split.image_bytes()];
            augmented(&split, rows, &normalise, (augment, &stream, epoch), &mut batch).unwrap();
            batch
        };
        let all = batch(&(0..40).collect::<Vec<_>>(), 3);
        assert_eq!(batch(&[17], 3), all[17 * split.image_bytes()..][..split.image_bytes()]);
        assert_ne!(batch(&(0..40).collect::<Vec<_>>(), 4), all);
        assert!(plain(&split, &[40], &normalise, &mut [0.0; 108]).is_err());
        assert!(plain(&split, &[1], &normalise, &mut [0.0; 107]).is_err());
    }

    #[test]
    fn a_constant_channel_is_refused() {
        assert!(Normalise::new([0.5; 3], [0.2, 0.0, 0.2]).is_err());
    }
}
