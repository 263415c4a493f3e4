//! Gaussian noise on activations, reproducible per sample.
//!
//! Bits come from the sample's own ChaCha sub-stream, so values depend neither on threads nor on the other samples.
//! The Box-Muller transform is done in f32 with our own series, sixteen lanes at a time: the same bits on every
//! machine, at about a tenth of the price of [`Stream::normal`]. Uniforms have 24 bits, so |z| < 5.9.

use super::Isa;
use super::isa::multiversion;
use crate::rng::Stream;
use rayon::prelude::*;

/// Names the sub-stream of one sample at one place and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Training step, or whatever counts calls; below 2^32.
    pub step: u64,
    /// Which noise layer; below 2^8.
    pub layer: u64,
}

impl Key {
    /// The sub-stream's number for a sample of the batch (below 2^24).
    fn index(self, sample: usize) -> u64 {
        (self.step << 32) | (self.layer << 24) | sample as u64
    }
}

/// Pairs of normals made at once.
const PAIRS: usize = 256;

/// `y = x + sigma * z` with z standard normal; both are [n, per_sample].
pub fn add(isa: Isa, stream: &Stream, key: Key, sigma: f32, per_sample: usize, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "lengths");
    let samples = y.par_chunks_mut(per_sample).zip(x.par_chunks(per_sample));
    samples.enumerate().for_each(|(sample, (y, x))| {
        let mut stream = stream.at(key.index(sample));
        let mut bits = [[0u32; PAIRS]; 2];
        let mut normals = [[0.0f32; PAIRS]; 2];
        for (y, x) in y.chunks_mut(2 * PAIRS).zip(x.chunks(2 * PAIRS)) {
            let [radius_bits, angle_bits] = &mut bits;
            for (radius, angle) in radius_bits.iter_mut().zip(angle_bits) {
                let word = stream.next_u64();
                (*radius, *angle) = (word as u32, (word >> 32) as u32);
            }
            box_muller(isa, &bits, &mut normals);
            add_scaled(isa, sigma, x, normals.as_flattened(), y);
        }
    });
}

multiversion! {
    fn add_scaled(sigma: f32, x: &[f32], z: &[f32], y: &mut [f32]) {
        for ((y, &x), &z) in y.iter_mut().zip(x).zip(z) {
            *y = x + sigma * z;
        }
    }
}

multiversion! {
    /// Two arrays of independent normals from two arrays of random bits.
    fn box_muller(bits: &[[u32; PAIRS]; 2], normals: &mut [[f32; PAIRS]; 2]) {
        let [first, second] = normals;
        for i in 0..PAIRS {
            // In (0, 1]: the logarithm is finite.
            let uniform = ((bits[0][i] >> 8) + 1) as f32 * (1.0 / 16_777_216.0);
            let radius = (-2.0 * logarithm(uniform)).sqrt();
            let (sine, cosine) = sine_cosine(bits[1][i]);
            first[i] = radius * cosine;
            second[i] = radius * sine;
        }
    }
}

/// Natural logarithm of a positive normal number, to 2e-7 absolutely near 1 and relatively elsewhere.
///
/// With x = m * 2^e and m in [1/sqrt 2, sqrt 2): ln m = 2 artanh s, s = (m - 1) / (m + 1), |s| < 0.172.
#[inline(always)]
fn logarithm(x: f32) -> f32 {
    /// Bits of 1/sqrt 2, rounded.
    const ROOT_HALF: u32 = 0x3f35_04f3;
    let shifted = x.to_bits().wrapping_sub(ROOT_HALF);
    let exponent = (shifted as i32) >> 23;
    let mantissa = f32::from_bits((shifted & 0x007f_ffff).wrapping_add(ROOT_HALF));
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let square = s * s;
    let series = 1.0 + square * (1.0 / 3.0 + square * (1.0 / 5.0 + square * (1.0 / 7.0 + square * (1.0 / 9.0))));
    exponent as f32 * std::f32::consts::LN_2 + 2.0 * s * series
}

/// Sine and cosine of 2 pi times the bits read as a fraction.
///
/// The top two bits are the quadrant; within it the angle is taken from the quadrant's middle, so |angle| <= pi / 4,
/// and Taylor series of degree 9 and 10 are exact to f32.
#[inline(always)]
fn sine_cosine(bits: u32) -> (f32, f32) {
    let fraction = ((bits << 2) >> 8) as f32 * (1.0 / 16_777_216.0) - 0.5;
    let angle = fraction * std::f32::consts::FRAC_PI_2;
    let x = angle * angle;
    let sine = angle * (1.0 + x * (-1.0 / 6.0 + x * (1.0 / 120.0 + x * (-1.0 / 5_040.0 + x * (1.0 / 362_880.0)))));
    let cosine =
        1.0 + x * (-0.5 + x * (1.0 / 24.0 + x * (-1.0 / 720.0 + x * (1.0 / 40_320.0 + x * (-1.0 / 3_628_800.0)))));
    // Quadrants are turns by 90 degrees of (cosine, sine). The overall turn by 45 degrees does not matter: the angle
    // is uniform over the circle all the same.
    let quadrant = bits >> 30;
    let is_odd = quadrant & 1 == 1;
    let (turned_cosine, turned_sine) = if is_odd { (-sine, cosine) } else { (cosine, sine) };
    if quadrant >= 2 { (-turned_sine, -turned_cosine) } else { (turned_sine, turned_cosine) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Streams;

    fn noise(step: u64, layer: u64, n: usize, per_sample: usize) -> Vec<f32> {
        let stream = Streams::new(1, "test").stream("noise");
        let mut y = vec![0.0; n * per_sample];
        let x = y.clone();
        add(Isa::best(), &stream, Key { step, layer }, 1.0, per_sample, &x, &mut y);
        y
    }

    #[test]
    fn moments_are_those_of_a_normal() {
        let values = noise(0, 0, 8, 65_536);
        let count = values.len() as f64;
        let moment = |power: i32| values.iter().map(|&v| f64::from(v).powi(power)).sum::<f64>() / count;
        // Standard errors at 524,288 draws: 0.0014, 0.002, 0.0053, 0.0135.
        assert!(moment(1).abs() < 0.007, "mean {}", moment(1));
        assert!((moment(2) - 1.0).abs() < 0.01, "variance {}", moment(2));
        assert!(moment(3).abs() < 0.027, "third {}", moment(3));
        assert!((moment(4) - 3.0).abs() < 0.07, "fourth {}", moment(4));
    }

    /// Kolmogorov's distance to the normal distribution; 1.63 / sqrt(n) is exceeded once in a hundred.
    #[test]
    fn distribution_is_normal() {
        let mut values = noise(3, 1, 4, 50_000);
        values.sort_by(f32::total_cmp);
        let n = values.len() as f64;
        let distance = values.iter().enumerate().map(|(i, &v)| {
            let expected = 0.5 * libm::erfc(-f64::from(v) / std::f64::consts::SQRT_2);
            (expected - (i as f64 + 0.5) / n).abs()
        });
        let distance = distance.fold(0.0, f64::max);
        assert!(distance < 1.63 / n.sqrt(), "{distance}");
    }

    #[test]
    fn elementary_functions_agree_with_libm() {
        for i in 1..=100_000u32 {
            let u = (i as f32) / 100_000.0;
            let expected = libm::log(f64::from(u));
            let error = (f64::from(logarithm(u)) - expected).abs();
            assert!(error < 3e-7 * expected.abs().max(1.0), "ln {u}: {error}");
            let bits = i.wrapping_mul(2_654_435_761);
            let angle = std::f64::consts::TAU * (f64::from(bits) / 4_294_967_296.0 - 0.125);
            let (sine, cosine) = sine_cosine(bits);
            assert!((f64::from(sine) - libm::sin(angle)).abs() < 3e-7, "sine of {bits}");
            assert!((f64::from(cosine) - libm::cos(angle)).abs() < 3e-7, "cosine of {bits}");
        }
    }

    #[test]
    fn a_sample_has_the_same_noise_in_every_batch() {
        let (alone, together) = (noise(5, 2, 1, 700), noise(5, 2, 3, 700));
        assert_eq!(alone, together[..700]);
        assert_ne!(together[..700], together[700..1400]);
        assert_ne!(alone, noise(6, 2, 1, 700), "steps differ");
        assert_ne!(alone, noise(5, 3, 1, 700), "layers differ");
    }

    #[test]
    fn all_instruction_sets_and_thread_counts_give_the_same_bits() {
        let expected = noise(1, 1, 5, 1_001);
        let stream = Streams::new(1, "test").stream("noise");
        for isa in Isa::available() {
            for threads in [1, 2] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let mut y = vec![0.0; expected.len()];
                let x = y.clone();
                pool.install(|| add(isa, &stream, Key { step: 1, layer: 1 }, 1.0, 1_001, &x, &mut y));
                assert_eq!(y, expected, "{} {threads}", isa.name());
            }
        }
    }
}
