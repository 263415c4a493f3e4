//! Pooling over channels-last images: maximum over 2 x 2 windows, average over all positions.

use super::isa::multiversion;
use super::{Isa, Write};
use rayon::prelude::*;

/// Rows, columns and channels of an input image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Channels.
    pub channels: usize,
}

impl Image {
    pub(super) fn len(&self) -> usize {
        self.height * self.width * self.channels
    }

    /// Values of the image pooled 2 x 2; an odd last row or column is left out, as in PyTorch.
    pub(super) fn pooled_len(&self) -> usize {
        (self.height / 2) * (self.width / 2) * self.channels
    }

    /// Where the four values of the pooled pixel's window start, in row-major order.
    pub(super) fn window(&self, row: usize, column: usize) -> [usize; 4] {
        let first = (2 * row * self.width + 2 * column) * self.channels;
        let below = first + self.width * self.channels;
        [first, first + self.channels, below, below + self.channels]
    }
}

/// Maxima of 2 x 2 windows: `x` [n, H, W, C] to `y` [n, H/2, W/2, C].
pub fn max_forward(isa: Isa, image: Image, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len() / image.len(), y.len() / image.pooled_len(), "batch sizes of input and output");
    y.par_chunks_mut(image.pooled_len()).zip(x.par_chunks(image.len())).for_each(|(y, x)| maxima(isa, image, x, y));
}

/// Gradient of [`max_forward`]; the first of equal maxima takes it.
pub fn max_backward(isa: Isa, image: Image, x: &[f32], dy: &[f32], write: Write, dx: &mut [f32]) {
    assert_eq!((x.len(), x.len() / image.len()), (dx.len(), dy.len() / image.pooled_len()), "batch sizes");
    let images = dx.par_chunks_mut(image.len()).zip(x.par_chunks(image.len()));
    images.zip(dy.par_chunks(image.pooled_len())).for_each(|((dx, x), dy)| {
        if write == Write::Replace {
            dx.fill(0.0);
        }
        route(isa, image, x, dy, dx);
    });
}

multiversion! {
    fn maxima(image: Image, x: &[f32], y: &mut [f32]) {
        let c = image.channels;
        for row in 0..image.height / 2 {
            for column in 0..image.width / 2 {
                let [a, b, d, e] = image.window(row, column).map(|at| &x[at..at + c]);
                let y = &mut y[(row * (image.width / 2) + column) * c..][..c];
                for i in 0..c {
                    y[i] = larger(larger(larger(a[i], b[i]), d[i]), e[i]);
                }
            }
        }
    }
}

/// The larger value; a NaN wins, as in PyTorch.
#[inline(always)]
#[allow(clippy::eq_op)]
fn larger(first: f32, second: f32) -> f32 {
    if second > first || second != second { second } else { first }
}

multiversion! {
    fn route(image: Image, x: &[f32], dy: &[f32], dx: &mut [f32]) {
        let c = image.channels;
        for row in 0..image.height / 2 {
            for column in 0..image.width / 2 {
                let window = image.window(row, column);
                let [a, b, d, e] = window.map(|at| &x[at..at + c]);
                let dy = &dy[(row * (image.width / 2) + column) * c..][..c];
                let (upper, lower) = dx.split_at_mut(window[2]);
                let (dx_a, dx_b) = upper[window[0]..window[1] + c].split_at_mut(c);
                let (dx_d, dx_e) = lower[..2 * c].split_at_mut(c);
                for i in 0..c {
                    let maximum = larger(larger(larger(a[i], b[i]), d[i]), e[i]);
                    let in_a = a[i] == maximum;
                    let in_b = !in_a & (b[i] == maximum);
                    let in_d = !in_a & !in_b & (d[i] == maximum);
                    let in_e = !in_a & !in_b & !in_d;
                    dx_a[i] += if in_a { dy[i] } else { 0.0 };
                    dx_b[i] += if in_b { dy[i] } else { 0.0 };
                    dx_d[i] += if in_d { dy[i] } else { 0.0 };
                    dx_e[i] += if in_e { dy[i] } else { 0.0 };
                }
            }
        }
    }
}

/// Averages over all positions: `x` [n, H, W, C] to `y` [n, C].
pub fn average_forward(isa: Isa, image: Image, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len() / image.len(), y.len() / image.channels, "batch sizes of input and output");
    y.par_chunks_mut(image.channels).zip(x.par_chunks(image.len())).for_each(|(y, x)| average(isa, x, y));
}

multiversion! {
    fn average(x: &[f32], y: &mut [f32]) {
        let channels = y.len();
        y.fill(0.0);
        for position in x.chunks_exact(channels) {
            for (sum, &value) in y.iter_mut().zip(position) {
                *sum += value;
            }
        }
        let share = 1.0 / (x.len() / channels) as f32;
        for sum in y {
            *sum *= share;
        }
    }
}

/// Gradient of [`average_forward`].
pub fn average_backward(isa: Isa, image: Image, dy: &[f32], write: Write, dx: &mut [f32]) {
    assert_eq!(dx.len() / image.len(), dy.len() / image.channels, "batch sizes of input and output");
    dx.par_chunks_mut(image.len()).zip(dy.par_chunks(image.channels)).for_each(|(dx, dy)| spread(isa, dy, write, dx));
}

multiversion! {
    fn spread(dy: &[f32], write: Write, dx: &mut [f32]) {
        let share = 1.0 / (dx.len() / dy.len()) as f32;
        for position in dx.chunks_exact_mut(dy.len()) {
            for (dx, &dy) in position.iter_mut().zip(dy) {
                let before = if write == Write::Add { *dx } else { 0.0 };
                *dx = before + dy * share;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::reference::{self, check, check_gradient, values, wide};

    const SHAPES: [(usize, usize, usize); 5] = [(4, 4, 16), (5, 7, 3), (8, 6, 48), (2, 3, 5), (3, 2, 32)];

    fn image((height, width, channels): (usize, usize, usize)) -> Image {
        Image { height, width, channels }
    }

    #[test]
    fn maxima_agree_with_the_reference() {
        for image in SHAPES.map(image) {
            let x = values(1, 3 * image.len());
            let dy = values(2, 3 * image.pooled_len());
            let y_expected = reference::max_pool(image, &wide(&x));
            let dx_expected = reference::max_pool_gradient(image, &wide(&x), &wide(&dy));
            for isa in Isa::available() {
                let mut y = vec![f32::NAN; dy.len()];
                max_forward(isa, image, &x, &mut y);
                check("forward", &y, &y_expected, 1e-7);
                let mut dx = vec![f32::NAN; x.len()];
                max_backward(isa, image, &x, &dy, Write::Replace, &mut dx);
                check("backward", &dx, &dx_expected, 1e-7);
                max_backward(isa, image, &x, &dy, Write::Add, &mut dx);
                let doubled: Vec<f64> = dx_expected.iter().map(|d| 2.0 * d).collect();
                check("backward, added", &dx, &doubled, 1e-7);
            }
        }
    }

    #[test]
    fn reference_gradient_agrees_with_central_differences() {
        for image in SHAPES.map(image) {
            let (x, dy) = (wide(&values(1, 2 * image.len())), wide(&values(2, 2 * image.pooled_len())));
            let dx = reference::max_pool_gradient(image, &x, &dy);
            check_gradient("maximum", &x, &dy, &dx, |x| reference::max_pool(image, x));
        }
    }

    /// Guards against a known fault of other libraries: the mean of the mask instead of the mask.
    #[test]
    fn max_pool_gradient_is_not_a_quarter() {
        let image = image((2, 2, 1));
        let mut dx = vec![0.0; 4];
        max_backward(Isa::best(), image, &[0.0, 3.0, 1.0, 2.0], &[1.0], Write::Replace, &mut dx);
        assert_eq!(dx, [0.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn the_first_of_equal_maxima_takes_the_gradient() {
        for isa in Isa::available() {
            let mut dx = vec![0.0; 4 * 17];
            max_backward(isa, image((2, 2, 17)), &[1.0; 4 * 17], &[2.0; 17], Write::Replace, &mut dx);
            assert!(dx[..17].iter().all(|&d| d == 2.0) && dx[17..].iter().all(|&d| d == 0.0));
        }
    }

    #[test]
    fn a_nan_stays_visible() {
        let mut y = [0.0];
        for at in 0..4 {
            let mut x = [1.0; 4];
            x[at] = f32::NAN;
            max_forward(Isa::best(), image((2, 2, 1)), &x, &mut y);
            assert!(y[0].is_nan(), "{at}");
        }
    }

    #[test]
    fn averages_and_their_gradient() {
        for image in SHAPES.map(image) {
            let (x, dy) = (values(1, 3 * image.len()), values(2, 3 * image.channels));
            let positions = image.height * image.width;
            let mut y_expected = vec![0.0; dy.len()];
            let mut dx_expected = vec![0.0; x.len()];
            for i in 0..x.len() {
                let k = i / image.len() * image.channels + i % image.channels;
                y_expected[k] += f64::from(x[i]) / positions as f64;
                dx_expected[i] = f64::from(dy[k]) / positions as f64;
            }
            for isa in Isa::available() {
                let mut y = vec![f32::NAN; dy.len()];
                average_forward(isa, image, &x, &mut y);
                check("forward", &y, &y_expected, 1e-6);
                let mut dx = vec![f32::NAN; x.len()];
                average_backward(isa, image, &dy, Write::Replace, &mut dx);
                check("backward", &dx, &dx_expected, 1e-6);
                average_backward(isa, image, &dy, Write::Add, &mut dx);
                let doubled: Vec<f64> = dx_expected.iter().map(|d| 2.0 * d).collect();
                check("backward, added", &dx, &doubled, 1e-6);
            }
        }
    }
}
