//! A Gaussian low-pass on pictures: what is left has no frequencies above about 1 / (2 pi sigma) per pixel.
//!
//! Separable, rows then columns, in f64; the picture is mirrored at its borders (the outermost pixel twice, SciPy's
//! `reflect`), so that the sum of all values stays, and the filter is its own transpose: a gradient on the filtered
//! picture becomes one on the unfiltered by filtering it.

/// The filter.
#[derive(Clone, Debug)]
pub struct LowPass {
    /// Weight at a distance in pixels, from 0 on; they add up to 1 over both sides.
    weights: Vec<f64>,
}

impl LowPass {
    /// A Gaussian of standard deviation `sigma` pixels, cut off `reach` pixels from its centre. A `sigma` of 0 leaves
    /// pictures as they are.
    pub fn new(sigma: f64, reach: usize) -> LowPass {
        let weight = |distance: usize| match sigma {
            0.0 => f64::from(distance == 0),
            _ => libm::exp(-0.5 * (distance as f64 / sigma).powi(2)),
        };
        let weights: Vec<f64> = (0..=reach).map(weight).collect();
        let sum = weights[0] + 2.0 * weights[1..].iter().sum::<f64>();
        LowPass { weights: weights.iter().map(|weight| weight / sum).collect() }
    }

    /// Filters a picture [H, W, 3] of `size`.
    pub fn apply(&self, picture: &[f64], (height, width): (usize, usize)) -> Vec<f64> {
        let rows = self.along(picture, width, 3, height);
        self.along(&rows, height, 3 * width, 1)
    }

    /// Filters along an axis of `n` places that lie `step` values apart, within each of `blocks` blocks.
    fn along(&self, values: &[f64], n: usize, step: usize, blocks: usize) -> Vec<f64> {
        let mut filtered = vec![0.0; values.len()];
        for block in 0..blocks {
            let base = block * n * step;
            for lane in 0..step {
                let at = |place: isize| values[base + mirrored(place, n) * step + lane];
                for place in 0..n {
                    let here = place as isize;
                    let pairs = self.weights.iter().enumerate().skip(1);
                    let around = pairs.map(|(d, weight)| weight * (at(here - d as isize) + at(here + d as isize)));
                    filtered[base + place * step + lane] = self.weights[0] * at(here) + around.sum::<f64>();
                }
            }
        }
        filtered
    }
}

/// The place among `n` that lies where `place` would, mirrored as often as it takes: -1 is 0, n is n - 1.
fn mirrored(place: isize, n: usize) -> usize {
    let period = 2 * n as isize;
    let place = place.rem_euclid(period) as usize;
    if place < n { place } else { 2 * n - 1 - place }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors() {
        let row: Vec<usize> = (-5..8).map(|place| mirrored(place, 3)).collect();
        assert_eq!(row, [1, 2, 2, 1, 0, 0, 1, 2, 2, 1, 0, 0, 1]);
        assert_eq!((-3..3).map(|place| mirrored(place, 1)).max(), Some(0));
    }

    /// exp(-1/2) = 0.60653, exp(-2) = 0.13534: 1 / (1 + 2 (0.60653 + 0.13534)) = 0.40262, 0.24420, 0.05449.
    #[test]
    fn an_impulse_by_hand() {
        let size = (7, 9);
        let mut picture = vec![0.0; 7 * 9 * 3];
        picture[(3 * 9 + 4) * 3 + 1] = 1.0;
        let found = LowPass::new(1.0, 2).apply(&picture, size);
        let weights = [0.40262, 0.24420, 0.05449];
        for row in 0..7usize {
            for column in 0..9usize {
                let weight = |distance: usize| weights.get(distance).copied().unwrap_or(0.0);
                let expected = weight(row.abs_diff(3)) * weight(column.abs_diff(4));
                let pixel = &found[(row * 9 + column) * 3..][..3];
                assert!((pixel[1] - expected).abs() < 1e-5 && pixel[0] == 0.0 && pixel[2] == 0.0, "{row}, {column}");
            }
        }
    }

    /// <a, L b> = <L a, b>, also where the filter is wider than the picture; constants stay.
    #[test]
    fn the_filter_is_its_own_transpose() {
        let size = (4, 5);
        let picture = |seed: usize| (0..60).map(|i| ((i * seed + 11) % 17) as f64 - 8.0).collect::<Vec<f64>>();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        for filter in [LowPass::new(1.0, 2), LowPass::new(6.0, 15)] {
            let (a, b) = (picture(7), picture(5));
            let (one, other) = (dot(&a, &filter.apply(&b, size)), dot(&filter.apply(&a, size), &b));
            assert!((one - other).abs() < 1e-9, "{one}, {other}");
            assert!(filter.apply(&[3.0; 60], size).iter().all(|value| (value - 3.0).abs() < 1e-12));
        }
        assert_eq!(LowPass::new(0.0, 3).apply(&picture(7), size), picture(7));
    }
}
