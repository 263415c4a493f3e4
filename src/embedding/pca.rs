//! Principal components (K. Pearson 1901), exact, with signs that do not depend on the algorithm: the entry of largest
//! magnitude of every component is positive.

use super::eigen;
use crate::error::Result;
use crate::kernels::product::{Matrix, Target, product};

/// Principal components of a set of points.
#[derive(Clone, Debug)]
pub struct Pca {
    mean: Vec<f64>,
    /// Orthonormal, [number of components, width].
    components: Vec<f64>,
    /// Variance along each component (divided by n - 1), descending. Directions without any are left out.
    pub variances: Vec<f64>,
    /// The variance in all directions.
    pub total_variance: f64,
}

impl Pca {
    /// At most `most` components of `points`, [n, width].
    ///
    /// # Errors
    /// A value that is not finite.
    pub fn fit(points: &[f32], width: usize, most: usize) -> Result<Pca> {
        let n = points.len() / width.max(1);
        let mut mean = vec![0.0; width];
        for point in points.chunks_exact(width.max(1)) {
            mean.iter_mut().zip(point).for_each(|(mean, &value)| *mean += f64::from(value));
        }
        mean.iter_mut().for_each(|mean| *mean /= n.max(1) as f64);
        let centred = centre(points, &mean);
        let freedom = n.saturating_sub(1).max(1) as f64;
        let total_variance = centred.iter().map(|value| value * value).sum::<f64>() / freedom;
        // Of the two products, the smaller one: they share the eigenvalues.
        let is_tall = n >= width;
        let side = if is_tall { width } else { n };
        let mut gram = vec![0.0; side * side];
        let matrix = Matrix::new(&centred, n, width);
        match is_tall {
            true => product(&mut gram, Target::Fresh, matrix.t(), matrix),
            false => product(&mut gram, Target::Fresh, matrix, matrix.t()),
        }
        let found = eigen::symmetric(gram, side)?;
        let least = found.values.first().copied().unwrap_or(0.0) * 1e-13 * n.max(width) as f64;
        let kept = found.values.iter().take(most).take_while(|&&value| value > least).count();
        let mut components = Vec::with_capacity(kept * width);
        for (value, vector) in found.values.iter().zip(found.vectors.chunks_exact(side.max(1))).take(kept) {
            let mut component = match is_tall {
                true => vector.to_vec(),
                false => {
                    let mut component = vec![0.0; width];
                    for (&weight, point) in vector.iter().zip(centred.chunks_exact(width)) {
                        component.iter_mut().zip(point).for_each(|(sum, value)| *sum += weight * value);
                    }
                    component.iter_mut().for_each(|sum| *sum /= value.sqrt());
                    component
                }
            };
            // The first of the largest: equal magnitudes must not be decided by rounding.
            let size = component.iter().fold(0.0f64, |size, entry| size.max(entry.abs()));
            let largest = component.iter().find(|entry| entry.abs() >= size * (1.0 - 1e-9));
            if largest.is_some_and(|entry| *entry < 0.0) {
                component.iter_mut().for_each(|entry| *entry = -*entry);
            }
            components.extend(component);
        }
        let variances = found.values[..kept].iter().map(|value| value / freedom).collect();
        Ok(Pca { mean, components, variances, total_variance })
    }

    /// Coordinates along the first `count` components, [n, count]; zeros where there are fewer components.
    pub fn scores(&self, points: &[f32], count: usize) -> Vec<f32> {
        let width = self.mean.len();
        let kept = self.variances.len().min(count);
        let n = points.len() / width.max(1);
        let centred = centre(points, &self.mean);
        let mut scores = vec![0.0; n * kept];
        let components = Matrix::new(&self.components[..kept * width], kept, width);
        product(&mut scores, Target::Fresh, Matrix::new(&centred, n, width), components.t());
        let mut padded = vec![0.0; n * count];
        if kept > 0 {
            for (padded, scores) in padded.chunks_exact_mut(count).zip(scores.chunks_exact(kept)) {
                padded.iter_mut().zip(scores).for_each(|(padded, &score)| *padded = score as f32);
            }
        }
        padded
    }

    /// Component number `i`, [width].
    pub fn component(&self, i: usize) -> &[f64] {
        let width = self.mean.len();
        &self.components[i * width..(i + 1) * width]
    }
}

fn centre(points: &[f32], mean: &[f64]) -> Vec<f64> {
    let rows = points.chunks_exact(mean.len().max(1));
    rows.flat_map(|point| point.iter().zip(mean).map(|(&value, mean)| f64::from(value) - mean)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Streams;

    fn close(found: &[f64], expected: &[f64]) {
        let fits = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-6;
        assert!(found.len() == expected.len() && found.iter().zip(expected).all(fits), "{found:?}, {expected:?}");
    }

    #[test]
    fn points_on_a_line() {
        // (1, 1) + t (3, -4), t = -1, 0, 1: one component, (-3, 4) / 5 by the sign rule, variance 25.
        let points = [-2.0, 5.0, 1.0, 1.0, 4.0, -3.0];
        let pca = Pca::fit(&points, 2, 2).unwrap();
        close(&pca.variances, &[25.0]);
        close(pca.component(0), &[-0.6, 0.8]);
        assert!((pca.total_variance - 25.0).abs() < 1e-12);
        let scores = pca.scores(&points, 2);
        close(&scores.iter().map(|&v| f64::from(v)).collect::<Vec<_>>(), &[5.0, 0.0, 0.0, 0.0, -5.0, 0.0]);
    }

    #[test]
    fn an_ellipse() {
        // Two orthogonal pairs, tilted by 45 degrees: variances 2 * 8 / 3 and 2 * 2 / 3.
        let points = [2.0, 2.0, -2.0, -2.0, 1.0, -1.0, -1.0, 1.0];
        let pca = Pca::fit(&points, 2, 5).unwrap();
        close(&pca.variances, &[16.0 / 3.0, 4.0 / 3.0]);
        let half = std::f64::consts::FRAC_1_SQRT_2;
        close(pca.component(0), &[half, half]);
        close(pca.component(1), &[half, -half]);
    }

    #[test]
    fn wide_and_tall_agree() {
        // Ten points in 30 dimensions, once as they are, once repeated so often that the other product is taken.
        let (n, width) = (10, 30);
        let wide = Streams::new(2, "pca").stream("values").normals(n * width, 1.0);
        let tall = wide.repeat(4);
        let (a, b) = (Pca::fit(&wide, width, 4).unwrap(), Pca::fit(&tall, width, 4).unwrap());
        for i in 0..4 {
            close(a.component(i), b.component(i));
            let freedom = (4 * n - 1) as f64 / (4 * (n - 1)) as f64;
            assert!((a.variances[i] - b.variances[i] * freedom).abs() < 1e-6 * a.variances[i]);
        }
        // Nine directions at most, whatever is asked for.
        assert_eq!(Pca::fit(&wide, width, 30).unwrap().variances.len(), 9);
    }

    #[test]
    fn equal_points_have_no_component() {
        let pca = Pca::fit(&[1.0, 2.0, 1.0, 2.0, 1.0, 2.0], 2, 2).unwrap();
        assert!(pca.variances.is_empty());
        assert_eq!(pca.scores(&[1.0, 2.0, 3.0, 4.0], 2), [0.0; 4]);
        assert!(Pca::fit(&[f32::NAN, 2.0], 1, 1).is_err());
    }
}
