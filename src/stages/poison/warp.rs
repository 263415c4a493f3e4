//! A smooth random warp of the image plane: the trigger of WaNet.
//!
//! Nguyen & Tran 2021, arXiv:2102.10369, section 3.2, with the numbers of PyTorch's `interpolate(mode = "bicubic",
//! align_corners = True)` and `grid_sample(align_corners = True)`, which the authors' code calls. Their grid counts from
//! -1 to 1 over the image; here a place is counted in pixels, so that a warp of strength 0 is the identity exactly.

use crate::rng::Stream;

/// Offsets at the points of a coarse square grid, their mean absolute value 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Control {
    side: usize,
    /// Offsets to the right, [side, side].
    right: Vec<f64>,
    /// Offsets downwards, [side, side].
    down: Vec<f64>,
}

impl Control {
    /// Uniform on [-1, 1], divided by the mean absolute value over both directions (equation 5).
    pub fn draw(side: usize, stream: &mut Stream) -> Control {
        let mut draw = || (0..side * side).map(|_| stream.uniform_in(-1.0, 1.0)).collect::<Vec<f64>>();
        Control::of(side, draw(), draw())
    }

    fn of(side: usize, mut right: Vec<f64>, mut down: Vec<f64>) -> Control {
        let sum: f64 = right.iter().chain(&down).map(|value| value.abs()).sum();
        let mean = sum / (2 * side * side) as f64;
        if mean > 0.0 {
            right.iter_mut().chain(&mut down).for_each(|value| *value /= mean);
        }
        Control { side, right, down }
    }
}

/// Where each pixel of the warped image is taken from.
#[derive(Clone, Debug, PartialEq)]
pub struct Warp {
    size: (usize, usize),
    /// Row and column, [H, W]; inside the image.
    places: Vec<(f64, f64)>,
    /// The same, ready for sampling.
    taps: Vec<Tap>,
}

/// Four neighbouring pixels and how much of the right and the lower ones.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Tap {
    /// First byte of the upper left pixel.
    at: usize,
    /// Bytes to the pixel on its right, and to the one below; 0 at the border, where they have no weight.
    right: usize,
    down: usize,
    /// Weights of the right and of the lower pixels, in [0, 1].
    weights: (f32, f32),
}

impl Warp {
    /// `control`, enlarged to images of `size` rows and columns and multiplied by `strength`: a strength of 0.5 moves a
    /// pixel by a quarter of a pixel on average, for the authors' grid has two units where the image has W pixels.
    /// Places outside the image become the nearest inside.
    ///
    /// Differs from the paper: images need not be square; each direction is scaled by its own extent.
    pub fn new(control: &Control, size: (usize, usize), strength: f64) -> Warp {
        let (height, width) = size;
        let down = enlarge(&control.down, control.side, size);
        let right = enlarge(&control.right, control.side, size);
        let (unit_down, unit_right) = (unit(height), unit(width));
        let places = (0..height * width).map(|i| {
            let row = (i / width) as f64 + strength * unit_down * down[i];
            let column = (i % width) as f64 + strength * unit_right * right[i];
            (inside(row, height), inside(column, width))
        });
        Warp::of_places(places.collect(), size)
    }

    /// The warp that takes each pixel of images of `size` from `places`, [H, W], inside the image.
    pub fn of_places(places: Vec<(f64, f64)>, size: (usize, usize)) -> Warp {
        let taps = places.iter().map(|&place| Tap::at(place, size)).collect();
        Warp { size, places, taps }
    }

    /// Row and column that each pixel is taken from, in row order, [H, W].
    pub fn places(&self) -> &[(f64, f64)] {
        &self.places
    }

    /// Warps `image`, [H, W, 3].
    pub fn apply(&self, image: &mut [u8]) {
        let source = image.to_vec();
        for (pixel, tap) in image.chunks_exact_mut(3).zip(&self.taps) {
            tap.sample(&source, pixel);
        }
    }

    /// Warps `image`, each place moved by a jitter of its own: uniform on [-1, 1] / H in the authors' grid, so by half a
    /// pixel at most, in either direction.
    pub fn apply_jittered(&self, image: &mut [u8], stream: &mut Stream) {
        let source = image.to_vec();
        let (height, width) = self.size;
        let (unit_down, unit_right) = (unit(height), unit(width));
        for (pixel, &(row, column)) in image.chunks_exact_mut(3).zip(&self.places) {
            let column = column + unit_right * stream.uniform_in(-1.0, 1.0);
            let row = row + unit_down * stream.uniform_in(-1.0, 1.0);
            Tap::at((inside(row, height), inside(column, width)), self.size).sample(&source, pixel);
        }
    }
}

/// Pixels that 1 / extent of the authors' grid is: extent - 1 pixels are two units.
fn unit(extent: usize) -> f64 {
    (extent as f64 - 1.0) / 2.0 / extent as f64
}

fn inside(place: f64, extent: usize) -> f64 {
    place.clamp(0.0, extent as f64 - 1.0)
}

impl Tap {
    /// `row` and `column` lie inside the image.
    fn at((row, column): (f64, f64), (height, width): (usize, usize)) -> Tap {
        let (top, left) = (row as usize, column as usize);
        Tap {
            at: 3 * (top * width + left),
            right: if left + 1 < width { 3 } else { 0 },
            down: if top + 1 < height { 3 * width } else { 0 },
            weights: ((column - left as f64) as f32, (row - top as f64) as f32),
        }
    }

    /// The bilinear value of each channel, rounded to the nearest whole number.
    fn sample(&self, source: &[u8], pixel: &mut [u8]) {
        let (horizontal, vertical) = self.weights;
        let lerp = |a: f32, b: f32, weight: f32| a + (b - a) * weight;
        let read = |at: usize| -> [f32; 3] { std::array::from_fn(|channel| f32::from(source[at + channel])) };
        let (upper_left, upper_right) = (read(self.at), read(self.at + self.right));
        let (lower_left, lower_right) = (read(self.at + self.down), read(self.at + self.down + self.right));
        for (channel, value) in pixel.iter_mut().enumerate() {
            let upper = lerp(upper_left[channel], upper_right[channel], horizontal);
            let lower = lerp(lower_left[channel], lower_right[channel], horizontal);
            *value = (lerp(upper, lower, vertical) + 0.5) as u8;
        }
    }
}

/// Bicubic enlargement of `values` [side, side] to `size`, corners on corners.
fn enlarge(values: &[f64], side: usize, (height, width): (usize, usize)) -> Vec<f64> {
    let rows: Vec<_> = (0..height).map(|row| Cubic::at(row, height, side)).collect();
    let columns: Vec<_> = (0..width).map(|column| Cubic::at(column, width, side)).collect();
    let mut enlarged = Vec::with_capacity(height * width);
    for row in &rows {
        for column in &columns {
            let along = |r: usize| (0..4).map(|i| column.weights[i] * values[r * side + column.at[i]]).sum::<f64>();
            enlarged.push((0..4).map(|i| row.weights[i] * along(row.at[i])).sum());
        }
    }
    enlarged
}

/// Four neighbours in one direction, and their weights.
struct Cubic {
    at: [usize; 4],
    weights: [f64; 4],
}

impl Cubic {
    /// Position `i` of `n` over `side` points, the first on the first and the last on the last. Beyond the border stands
    /// the border's value.
    fn at(i: usize, n: usize, side: usize) -> Cubic {
        let place = if n > 1 { i as f64 * (side as f64 - 1.0) / (n as f64 - 1.0) } else { 0.0 };
        let first = place.floor();
        let t = place - first;
        let neighbour = |offset: f64| (first + offset).clamp(0.0, side as f64 - 1.0) as usize;
        Cubic {
            at: [neighbour(-1.0), neighbour(0.0), neighbour(1.0), neighbour(2.0)],
            weights: [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)],
        }
    }
}

/// The cubic convolution's parameter in PyTorch (Keys 1981 has -0.5).
const A: f64 = -0.75;

/// Weight at a distance of at most 1.
fn near(t: f64) -> f64 {
    ((A + 2.0) * t - (A + 3.0)) * t * t + 1.0
}

/// Weight at a distance between 1 and 2.
fn far(t: f64) -> f64 {
    ((A * t - 5.0 * A) * t + 8.0 * A) * t - 4.0 * A
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Streams;
    use serde::Deserialize;

    /// What `tests/peers/torch_warp.py` printed.
    #[derive(Deserialize)]
    struct Golden {
        side: usize,
        size: (usize, usize),
        strength: f64,
        /// Offsets before they are divided by their mean, [2, side, side]: right, down.
        control: Vec<f64>,
        /// Offsets in the authors' unit, [2, H, W].
        enlarged: Vec<f64>,
        image: Vec<u8>,
        /// Before rounding, [H, W, 3].
        warped: Vec<f64>,
        /// Offsets of a jitter in [-1, 1], [2, H, W], and the image warped with them.
        jitter: Vec<f64>,
        jittered: Vec<f64>,
    }

    fn golden() -> Vec<Golden> {
        serde_json::from_str(include_str!("../../../tests/golden/torch_warp.json")).unwrap()
    }

    fn control(golden: &Golden) -> Control {
        let (right, down) = golden.control.split_at(golden.side * golden.side);
        Control::of(golden.side, right.to_vec(), down.to_vec())
    }

    /// A byte is the rounded value; at a half, either neighbour.
    fn check_rounded(found: &[u8], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (i, (&found, &expected)) in found.iter().zip(expected).enumerate() {
            assert!((f64::from(found) - expected).abs() <= 0.5001, "byte {i}: {found} for {expected}");
        }
    }

    #[test]
    fn grids_and_pixels_are_those_of_pytorch() {
        for golden in golden() {
            let control = control(&golden);
            let (height, width) = golden.size;
            for (found, expected) in [&control.right, &control.down].iter().zip(golden.enlarged.chunks(height * width))
            {
                for (a, b) in enlarge(found, golden.side, golden.size).iter().zip(expected) {
                    assert!((a - b).abs() < 1e-9, "{a} for {b}");
                }
            }
            let warp = Warp::new(&control, golden.size, golden.strength);
            let mut image = golden.image.clone();
            warp.apply(&mut image);
            check_rounded(&image, &golden.warped);
            assert_ne!(image, golden.image);
            let (right, down) = golden.jitter.split_at(height * width);
            let mut image = golden.image.clone();
            for (i, pixel) in image.chunks_exact_mut(3).enumerate() {
                let (row, column) = warp.places[i];
                let moved = (row + unit(height) * down[i], column + unit(width) * right[i]);
                let place = (inside(moved.0, height), inside(moved.1, width));
                Tap::at(place, golden.size).sample(&golden.image, pixel);
            }
            check_rounded(&image, &golden.jittered);
        }
    }

    fn image(size: (usize, usize)) -> Vec<u8> {
        (0..size.0 * size.1 * 3).map(|i| (i * 37 % 256) as u8).collect()
    }

    fn draw(side: usize) -> Control {
        Control::draw(side, &mut Streams::new(3, "poison/wanet").stream("grid"))
    }

    #[test]
    fn strength_zero_is_the_identity() {
        for size in [(32, 32), (28, 28), (5, 7), (1, 1), (1, 9), (224, 224)] {
            let mut warped = image(size);
            Warp::new(&draw(4), size, 0.0).apply(&mut warped);
            assert_eq!(warped, image(size), "{size:?}");
        }
    }

    #[test]
    fn a_whole_pixel_to_the_right_shifts_the_image() {
        // Every offset 1 (and 0 downwards, so the mean is 1/2 and 1 becomes 2): strength 1 / (2 unit) is one pixel.
        let control = Control::of(2, vec![1.0; 4], vec![0.0; 4]);
        let size = (3, 4);
        let mut warped = image(size);
        Warp::new(&control, size, 0.5 / unit(4)).apply(&mut warped);
        let source = image(size);
        for row in 0..3 {
            for column in 0..4 {
                let from = row * 4 + (column + 1).min(3);
                assert_eq!(
                    warped[3 * (row * 4 + column)..][..3],
                    source[3 * from..][..3],
                    "row {row}, column {column}"
                );
            }
        }
    }

    #[test]
    fn offsets_have_mean_one_and_jitter_stays_within_half_a_pixel() {
        let control = draw(4);
        let mean = control.right.iter().chain(&control.down).map(|v| v.abs()).sum::<f64>() / 32.0;
        assert!((mean - 1.0).abs() < 1e-12);
        // An image whose value is its column: what comes out says where it was taken from.
        let size = (1, 200);
        let ramp: Vec<u8> = (0..600).map(|i| (i / 3) as u8).collect();
        let mut jittered = ramp.clone();
        Warp::new(&control, size, 0.0).apply_jittered(&mut jittered, &mut Streams::new(0, "s").stream("n"));
        assert!(jittered.iter().zip(&ramp).all(|(a, b)| a.abs_diff(*b) <= 1));
    }

    #[test]
    fn flat_images_stay_flat_under_any_warp() {
        let mut flat = vec![137u8; 32 * 32 * 3];
        let warp = Warp::new(&draw(4), (32, 32), 50.0);
        warp.apply(&mut flat);
        warp.apply_jittered(&mut flat, &mut Streams::new(0, "s").stream("n"));
        assert!(flat.iter().all(|&value| value == 137));
        assert!(warp.places().iter().all(|&(r, c)| (0.0..=31.0).contains(&r) && (0.0..=31.0).contains(&c)));
    }
}
