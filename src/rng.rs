//! Named, counter-based random streams.
//!
//! Invariant 4: every draw comes from a stream derived from (seed, stage, name). A stream is ChaCha8 under a key made
//! by BLAKE3, so adding a draw somewhere changes nothing elsewhere, and [`Stream::at`] jumps to an independent
//! sub-stream per sample, so results do not depend on the order or the number of threads.
//!
//! Distributions are written out here, not taken from `rand`: their values must never change between releases.
//! `libm` stands in for the platform's mathematical functions for the same reason.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// The streams of one stage under one seed.
#[derive(Clone, Debug)]
pub struct Streams {
    key: [u8; 32],
}

impl Streams {
    /// Streams of `stage` (its registry name, such as `poison/badnet`) under `seed`.
    pub fn new(seed: u64, stage: &str) -> Streams {
        let mut hasher = blake3::Hasher::new_derive_key("runner 2026-11 random streams of a stage");
        hasher.update(&seed.to_le_bytes());
        hasher.update(stage.as_bytes());
        Streams { key: *hasher.finalize().as_bytes() }
    }

    /// The streams of the part `name` of the stage: as many as the stage's own, and none of them.
    pub fn part(&self, name: &str) -> Streams {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(b"part ");
        hasher.update(name.as_bytes());
        Streams { key: *hasher.finalize().as_bytes() }
    }

    /// The stream called `name`, from its beginning.
    pub fn stream(&self, name: &str) -> Stream {
        let key = *blake3::keyed_hash(&self.key, name.as_bytes()).as_bytes();
        Stream { key, rng: ChaCha8Rng::from_seed(key), spare: None }
    }
}

/// One random stream.
#[derive(Clone, Debug)]
pub struct Stream {
    key: [u8; 32],
    rng: ChaCha8Rng,
    /// The second value of the last Box-Muller pair.
    spare: Option<f64>,
}

impl Stream {
    /// The key: with a sub-stream's number, all that its draws depend on.
    #[cfg(feature = "cuda")]
    pub(crate) fn key(&self) -> &[u8; 32] {
        &self.key
    }

    /// The independent sub-stream number `index`, from its beginning.
    pub fn at(&self, index: u64) -> Stream {
        let mut rng = ChaCha8Rng::from_seed(self.key);
        // Stream 0 is the parent itself.
        rng.set_stream(index.wrapping_add(1));
        Stream { key: self.key, rng, spare: None }
    }

    /// The independent stream called `name` under this one, with sub-streams of its own ([`Stream::at`] of a
    /// sub-stream counts from the same parent, so it does not nest).
    pub fn child(&self, name: &str) -> Stream {
        let key = *blake3::keyed_hash(&self.key, name.as_bytes()).as_bytes();
        Stream { key, rng: ChaCha8Rng::from_seed(key), spare: None }
    }

    /// Uniform 32 bits.
    pub fn next_u32(&mut self) -> u32 {
        self.rng.next_u32()
    }

    /// Uniform 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.rng.next_u64()
    }

    /// Uniform in [0, 1), 53 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in [low, high).
    pub fn uniform_in(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.uniform() < p
    }

    /// Uniform in 0..n, without bias (Lemire 2019).
    ///
    /// # Panics
    /// If `n` is zero.
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "a number below zero does not exist");
        let threshold = n.wrapping_neg() % n;
        loop {
            let product = u128::from(self.next_u64()) * u128::from(n);
            if product as u64 >= threshold {
                return (product >> 64) as u64;
            }
        }
    }

    /// Standard normal (Box-Muller in f64).
    pub fn normal(&mut self) -> f64 {
        if let Some(value) = self.spare.take() {
            return value;
        }
        // 1 - u lies in (0, 1], so the logarithm is finite.
        let radius = (-2.0 * libm::log(1.0 - self.uniform())).sqrt();
        let angle = std::f64::consts::TAU * self.uniform();
        self.spare = Some(radius * libm::sin(angle));
        radius * libm::cos(angle)
    }

    /// `n` draws from N(0, std²).
    pub fn normals(&mut self, n: usize, std: f64) -> Vec<f32> {
        (0..n).map(|_| (self.normal() * std) as f32).collect()
    }

    /// Shuffles in place (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }

    /// A random permutation of 0..n.
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        self.shuffle(&mut order);
        order
    }

    /// `k` of `items` without replacement, in the order in which they stand in `items`.
    pub fn pick<T: Copy>(&mut self, items: &[T], k: usize) -> Vec<T> {
        let mut chosen = self.permutation(items.len());
        chosen.truncate(k);
        chosen.sort_unstable();
        chosen.into_iter().map(|i| items[i]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Golden values: a change here changes every recorded result.
    #[test]
    fn streams_never_change() {
        let mut stream = Streams::new(7, "poison/badnet").stream("select");
        let words: Vec<u64> = (0..3).map(|_| stream.next_u64()).collect();
        let again: Vec<u64> = {
            let mut stream = Streams::new(7, "poison/badnet").stream("select");
            (0..3).map(|_| stream.next_u64()).collect()
        };
        assert_eq!(words, again);
        assert_ne!(words[0], Streams::new(8, "poison/badnet").stream("select").next_u64());
        assert_ne!(words[0], Streams::new(7, "poison/blend").stream("select").next_u64());
        assert_ne!(words[0], Streams::new(7, "poison/badnet").stream("other").next_u64());
        assert_eq!(words, GOLDEN);
    }

    const GOLDEN: [u64; 3] = [1_452_902_822_560_817_590, 1_421_563_711_629_672_582, 4_672_855_214_140_692_040];

    #[test]
    fn sub_streams_do_not_depend_on_what_was_drawn() {
        let mut drained = Streams::new(0, "s").stream("n");
        let fresh = drained.clone();
        for _ in 0..100 {
            drained.next_u64();
        }
        assert_eq!(drained.at(3).next_u64(), fresh.at(3).next_u64());
        assert_ne!(fresh.at(3).next_u64(), fresh.at(4).next_u64());
    }

    #[test]
    fn children_nest() {
        let parent = Streams::new(0, "s").stream("n");
        assert_eq!(parent.child("a").next_u64(), parent.child("a").next_u64());
        assert_ne!(parent.child("a").next_u64(), parent.child("b").next_u64());
        assert_ne!(parent.child("a").at(0).next_u64(), parent.child("b").at(0).next_u64());
        assert_ne!(parent.child("a").child("b").next_u64(), parent.child("b").next_u64());
    }

    #[test]
    fn normals_have_unit_variance() {
        let values = Streams::new(1, "s").stream("n").normals(100_000, 1.0);
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / 1e5;
        let variance = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / 1e5 - mean * mean;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "mean {mean}, variance {variance}");
    }

    #[test]
    fn below_is_uniform() {
        let mut stream = Streams::new(1, "s").stream("b");
        let mut counts = [0u32; 7];
        for _ in 0..70_000 {
            counts[stream.below(7) as usize] += 1;
        }
        assert!(counts.iter().all(|&c| (9_500..10_500).contains(&c)), "{counts:?}");
    }

    #[test]
    fn pick_takes_k_distinct_items_in_order() {
        let picked = Streams::new(1, "s").stream("p").pick(&[10, 20, 30, 40, 50], 3);
        assert_eq!(picked.len(), 3);
        assert!(picked.windows(2).all(|w| w[0] < w[1]));
    }
}
