//! Gates of a batch: a bit for every rectifier, and for every window of a pool the place of its largest value.
//!
//! Bit j of byte i belongs to value 8 i + j.

use super::isa::multiversion;
use super::pool::Image;
use super::{CHUNK, Isa, Write};
use rayon::prelude::*;

/// The bits of a rectifier's output `y`: whether a value is positive.
pub fn open(isa: Isa, y: &[f32]) -> Vec<u8> {
    let mut bits = vec![0; y.len().div_ceil(8)];
    bits.par_chunks_mut(CHUNK / 8).zip(y.par_chunks(CHUNK)).for_each(|(bits, y)| signs(isa, y, bits));
    bits
}

/// Sets `values` to 0 where their bit is 0.
///
/// # Panics
/// If there are not as many bits as values, up to a byte.
pub fn pass_through(isa: Isa, bits: &[u8], values: &mut [f32]) {
    assert_eq!(bits.len(), values.len().div_ceil(8), "a bit for every value");
    values.par_chunks_mut(CHUNK).zip(bits.par_chunks(CHUNK / 8)).for_each(|(values, bits)| shut(isa, bits, values));
}

multiversion! {
    fn signs(y: &[f32], bits: &mut [u8]) {
        for (bits, y) in bits.iter_mut().zip(y.chunks(8)) {
            *bits = y.iter().enumerate().fold(0, |bits, (j, &y)| bits | (u8::from(y > 0.0) << j));
        }
    }
}

multiversion! {
    fn shut(bits: &[u8], values: &mut [f32]) {
        let (chunks, rest) = values.as_chunks_mut::<8>();
        for (values, &bits) in chunks.iter_mut().zip(bits) {
            for (j, value) in values.iter_mut().enumerate() {
                // All ones or all zeros.
                let mask = (u32::from(bits >> j) & 1).wrapping_neg();
                *value = f32::from_bits(value.to_bits() & mask);
            }
        }
        if let Some(&bits) = bits.get(chunks.len()) {
            for (j, value) in rest.iter_mut().enumerate() {
                *value = if bits >> j & 1 == 1 { *value } else { 0.0 };
            }
        }
    }
}

/// For every value of `x` [n, H, W, C] pooled 2 x 2, which of the four of its window is the largest, the first among
/// equals; [n, H/2, W/2, C].
pub fn largest(image: Image, x: &[f32]) -> Vec<u8> {
    let mut places = vec![0; x.len() / image.len() * image.pooled_len()];
    places.par_chunks_mut(image.pooled_len()).zip(x.par_chunks(image.len())).for_each(|(places, x)| {
        for_windows(image, |window, pooled| {
            for c in 0..image.channels {
                let first = (1..4).fold(0, |best, k| if x[window[k] + c] > x[window[best] + c] { k } else { best });
                places[pooled + c] = first as u8;
            }
        });
    });
    places
}

/// The values of `x` [n, H, W, C] at `places` [n, H/2, W/2, C], into `y`.
pub fn pick(image: Image, places: &[u8], x: &[f32], y: &mut [f32]) {
    assert_eq!(places.len(), y.len(), "a place for every value");
    let images = y.par_chunks_mut(image.pooled_len()).zip(x.par_chunks(image.len()));
    images.zip(places.par_chunks(image.pooled_len())).for_each(|((y, x), places)| {
        for_windows(image, |window, pooled| {
            for c in 0..image.channels {
                y[pooled + c] = x[window[usize::from(places[pooled + c])] + c];
            }
        });
    });
}

/// The gradient of [`pick`].
pub fn put_back(image: Image, places: &[u8], dy: &[f32], write: Write, dx: &mut [f32]) {
    assert_eq!(places.len(), dy.len(), "a place for every value");
    let images = dx.par_chunks_mut(image.len()).zip(dy.par_chunks(image.pooled_len()));
    images.zip(places.par_chunks(image.pooled_len())).for_each(|((dx, dy), places)| {
        if write == Write::Replace {
            dx.fill(0.0);
        }
        for_windows(image, |window, pooled| {
            for c in 0..image.channels {
                dx[window[usize::from(places[pooled + c])] + c] += dy[pooled + c];
            }
        });
    });
}

/// Calls `each` with the starts of a window's four values, and the start of the pooled ones.
fn for_windows(image: Image, mut each: impl FnMut([usize; 4], usize)) {
    let columns = image.width / 2;
    for row in 0..image.height / 2 {
        for column in 0..columns {
            each(image.window(row, column), (row * columns + column) * image.channels);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::reference::values;
    use crate::kernels::{elementwise, pool};

    #[test]
    fn gates_of_a_rectifier_are_its_own() {
        for (n, isa) in
            [1, 8, 13, CHUNK + 21].into_iter().flat_map(|n| Isa::available().into_iter().map(move |isa| (n, isa)))
        {
            let (x, dy) = (values(1, n), values(2, n));
            let mut y = vec![f32::NAN; n];
            elementwise::relu_forward(isa, &x, &mut y);
            let bits = open(isa, &y);
            let mut gated = x;
            pass_through(isa, &bits, &mut gated);
            assert_eq!(gated, y);
            let (mut dx, mut gated) = (vec![f32::NAN; n], dy.clone());
            elementwise::relu_backward(isa, &y, &dy, Write::Replace, &mut dx);
            pass_through(isa, &bits, &mut gated);
            assert_eq!(gated, dx);
        }
    }

    #[test]
    fn places_of_a_pool_are_its_own() {
        for (height, width, channels) in [(4, 4, 16), (5, 7, 3), (2, 3, 5)] {
            let image = Image { height, width, channels };
            let mut x = values(1, 2 * image.len());
            // Equal values, as behind a rectifier.
            x.iter_mut().for_each(|x| *x = x.max(0.0));
            let dy = values(2, 2 * image.pooled_len());
            let places = largest(image, &x);
            let (mut expected, mut y) = (vec![f32::NAN; dy.len()], vec![f32::NAN; dy.len()]);
            pool::max_forward(Isa::best(), image, &x, &mut expected);
            pick(image, &places, &x, &mut y);
            assert_eq!(y, expected);
            for write in [Write::Replace, Write::Add] {
                let (mut expected, mut dx) = (vec![1.0; x.len()], vec![1.0; x.len()]);
                pool::max_backward(Isa::best(), image, &x, &dy, write, &mut expected);
                put_back(image, &places, &dy, write, &mut dx);
                assert_eq!(dx, expected);
            }
        }
    }
}
