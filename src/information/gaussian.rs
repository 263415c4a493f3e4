//! Gaussian variables whose mutual information is known: what estimators are chosen and tested by.
//!
//! B ~ N(0, 3 I_b) and A = B[..a] + N(0, noise I_a), as in the estimator selection of the IB-backdoor code; noise is a
//! variance. I(A;B) = a/2 ln(1 + 3 / noise).

use crate::rng::Stream;

/// Variance of B's coordinates.
pub const VARIANCE: f64 = 3.0;

/// A joint distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gaussian {
    /// Coordinates of A and of B; A has at most as many as B.
    pub widths: (usize, usize),
    /// Variance of the noise between B and A; `None` for an A that is independent of B.
    pub noise: Option<f64>,
}

impl Gaussian {
    /// The pair of the estimator selection: 3/2 ln 7 = 2.919 nats.
    pub const PAIR: Gaussian = Gaussian { widths: (3, 5), noise: Some(0.5) };
    /// The same widths, independent: 0 nats.
    pub const INDEPENDENT: Gaussian = Gaussian { widths: (3, 5), noise: None };

    /// A linear channel of two coordinates: ln(1 + 3 / noise) nats.
    pub fn channel(noise: f64) -> Gaussian {
        Gaussian { widths: (2, 2), noise: Some(noise) }
    }

    /// I(A;B) in nats.
    pub fn information(self) -> f64 {
        self.noise.map_or(0.0, |noise| 0.5 * self.widths.0 as f64 * libm::log1p(VARIANCE / noise))
    }

    /// `n` samples of A, [n, a], and of B, [n, b].
    pub fn sample(self, n: usize, stream: &Stream) -> (Vec<f32>, Vec<f32>) {
        let (a, b) = self.widths;
        let of_b = stream.at(0).normals(n * b, VARIANCE.sqrt());
        let mut draws = stream.at(1);
        let Some(noise) = self.noise else {
            return (draws.normals(n * a, VARIANCE.sqrt()), of_b);
        };
        let of_a = of_b
            .chunks_exact(b)
            .flat_map(|row| &row[..a])
            .map(|&value| (f64::from(value) + draws.normal() * noise.sqrt()) as f32)
            .collect();
        (of_a, of_b)
    }
}

/// The most that A, a sum of anything and independent noise of variance `noise` per coordinate, can share with any
/// variable that does not know the noise, in nats: Σ ½ ln(var Aⱼ / noise), reached by independent Gaussian coordinates.
///
/// `values` is [n, width]; `noise` above zero.
pub fn channel_limit(values: &[f32], width: usize, noise: f64) -> f64 {
    let n = values.len() / width.max(1);
    (0..width)
        .map(|c| {
            let of = || values.iter().skip(c).step_by(width).map(|&value| f64::from(value));
            let mean = of().sum::<f64>() / n as f64;
            let variance = of().map(|value| (value - mean).powi(2)).sum::<f64>() / n as f64;
            // A sample's variance may fall below the noise's.
            0.5 * libm::log((variance / noise).max(1.0))
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Streams;

    #[test]
    fn closed_forms() {
        assert!((Gaussian::PAIR.information() - 2.919).abs() < 5e-4);
        assert_eq!(Gaussian::INDEPENDENT.information(), 0.0);
        assert!((Gaussian::channel(1.0).information() - 4f64.ln()).abs() < 1e-15);
    }

    /// Of a Gaussian channel, the limit is the information of every coordinate.
    #[test]
    fn channel_limit_is_reached_by_a_gaussian_channel() {
        let stream = Streams::new(31, "gaussian").stream("samples");
        let (a, _) = Gaussian::channel(0.5).sample(20_000, &stream);
        let limit = channel_limit(&a, 2, 0.5);
        assert!((limit - Gaussian::channel(0.5).information()).abs() < 0.02, "{limit}");
        assert_eq!(channel_limit(&[1.0; 8], 2, 0.5), 0.0);
    }

    #[test]
    fn samples_have_their_correlation() {
        let stream = Streams::new(32, "gaussian").stream("samples");
        for gaussian in [Gaussian::PAIR, Gaussian::INDEPENDENT, Gaussian::channel(2.0)] {
            let n = 20_000;
            let (a, b) = gaussian.sample(n, &stream);
            let (wa, wb) = gaussian.widths;
            let product = (0..n).map(|i| f64::from(a[i * wa]) * f64::from(b[i * wb])).sum::<f64>() / n as f64;
            let want = if gaussian.noise.is_some() { VARIANCE } else { 0.0 };
            assert!((product - want).abs() < 0.1, "{gaussian:?}: {product}");
        }
    }
}
