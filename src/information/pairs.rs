//! Samples of two variables, and batches of them in the form that critics read.

/// Samples of one variable.
#[derive(Clone, Debug)]
pub enum Variable<'a> {
    /// Real coordinates, [n, width].
    Reals {
        /// Row-major.
        values: &'a [f32],
        /// Coordinates of a sample.
        width: usize,
    },
    /// Bytes that stand for [0, 1], such as the pixels of an image: one slice a sample, all of one length.
    Bytes {
        /// The samples.
        rows: Vec<&'a [u8]>,
    },
}

impl Variable<'_> {
    /// The number of samples.
    pub fn len(&self) -> usize {
        match self {
            Variable::Reals { values, width } => values.len() / (*width).max(1),
            Variable::Bytes { rows } => rows.len(),
        }
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Coordinates of a sample.
    pub fn width(&self) -> usize {
        match self {
            Variable::Reals { width, .. } => *width,
            Variable::Bytes { rows } => rows.first().map_or(0, |row| row.len()),
        }
    }

    /// Calls `each` with the coordinates of sample `at`.
    fn coordinates(&self, at: usize, mut each: impl FnMut(usize, f32)) {
        match self {
            Variable::Reals { values, width } => {
                values[at * width..(at + 1) * width].iter().enumerate().for_each(|(c, &value)| each(c, value));
            }
            Variable::Bytes { rows } => rows[at].iter().enumerate().for_each(|(c, &value)| each(c, f32::from(value))),
        }
    }
}

/// A map of each coordinate, value * scale + shift. Invertible, so it leaves mutual information as it is.
#[derive(Clone, Debug)]
pub struct Scaling {
    scale: Vec<f32>,
    shift: Vec<f32>,
}

/// A standard deviation below this counts as a constant coordinate, which is centred only.
const CONSTANT: f64 = 1e-6;

impl Scaling {
    /// Leaves real coordinates as they are and brings bytes to [0, 1].
    pub fn identity(variable: &Variable<'_>) -> Scaling {
        let scale = match variable {
            Variable::Reals { .. } => 1.0,
            Variable::Bytes { .. } => 1.0 / 255.0,
        };
        Scaling { scale: vec![scale; variable.width()], shift: vec![0.0; variable.width()] }
    }

    /// Brings every coordinate to mean 0 and variance 1 over the samples `at`.
    pub fn standard(variable: &Variable<'_>, at: &[usize]) -> Scaling {
        let width = variable.width();
        let (mut sum, mut squares) = (vec![0.0f64; width], vec![0.0f64; width]);
        // Deviations from the first sample keep the squares from cancelling.
        let mut origin = vec![0.0f32; width];
        if let Some(&first) = at.first() {
            variable.coordinates(first, |c, value| origin[c] = value);
        }
        for &at in at {
            variable.coordinates(at, |c, value| {
                let value = f64::from(value - origin[c]);
                sum[c] += value;
                squares[c] += value * value;
            });
        }
        let n = at.len().max(1) as f64;
        let (mut scale, mut shift) = (vec![0.0; width], vec![0.0; width]);
        for c in 0..width {
            let mean = sum[c] / n;
            let std = (squares[c] / n - mean * mean).max(0.0).sqrt();
            let factor = if std > CONSTANT { 1.0 / std } else { 1.0 };
            scale[c] = factor as f32;
            shift[c] = (-(mean + f64::from(origin[c])) * factor) as f32;
        }
        Scaling { scale, shift }
    }

    /// The samples `at`, scaled, one after the other into `out`: [at.len(), width].
    pub fn gather(&self, variable: &Variable<'_>, at: &[usize], out: &mut Vec<f32>) {
        let width = self.scale.len();
        out.resize(at.len() * width, 0.0);
        for (out, &at) in out.chunks_exact_mut(width.max(1)).zip(at) {
            let scaled = out.iter_mut().zip(&self.scale).zip(&self.shift);
            match variable {
                Variable::Reals { values, width } => {
                    for (((out, scale), shift), value) in scaled.zip(&values[at * width..(at + 1) * width]) {
                        *out = value * scale + shift;
                    }
                }
                Variable::Bytes { rows } => {
                    for (((out, scale), shift), &value) in scaled.zip(rows[at]) {
                        *out = f32::from(value) * scale + shift;
                    }
                }
            }
        }
    }
}

/// Samples of the joint distribution of A and B: sample i of one belongs to sample i of the other.
#[derive(Clone, Debug)]
pub struct Pairs<'a> {
    /// Samples of A.
    pub a: Variable<'a>,
    /// Samples of B, as many.
    pub b: Variable<'a>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_scaling_centres_and_normalises() {
        let values: Vec<f32> = vec![1000.0, 7.0, 1002.0, 7.0, 1004.0, 7.0];
        let reals = Variable::Reals { values: &values, width: 2 };
        let mut out = Vec::new();
        Scaling::standard(&reals, &[0, 2]).gather(&reals, &[2, 0, 1], &mut out);
        assert_eq!(out, [1.0, 0.0, -1.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn bytes_stand_for_shares() {
        let bytes = Variable::Bytes { rows: vec![&[0, 51], &[255, 102]] };
        assert_eq!((bytes.len(), bytes.width()), (2, 2));
        let mut out = Vec::new();
        Scaling::identity(&bytes).gather(&bytes, &[1, 0], &mut out);
        let want = [1.0, 0.4, 0.0, 0.2];
        assert!(out.iter().zip(want).all(|(o, w): (&f32, f32)| (o - w).abs() < 1e-6), "{out:?}");
    }
}
