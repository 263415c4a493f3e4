//! The roof: how many multiply-adds a core does on registers alone. Benches measure kernels against it.
#![allow(unsafe_code)]

use super::Isa;
use super::isa::Level;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::hint::black_box;

/// Sums that run side by side. Two units with a latency of four or five cycles need eight to ten; twelve fit every
/// register file.
const CHAINS: usize = 12;

/// What the loop does again and again: `v = v * FACTOR + TERM`.
const FACTOR: f32 = 0.75;
const TERM: f32 = 0.5;

/// Does `rounds` rounds of independent multiply-adds on this thread, without touching memory. Returns the
/// floating-point operations done, a multiply-add counting as two, and the value that every lane ended with.
pub fn multiply_adds(isa: Isa, rounds: usize) -> (f64, f32) {
    let (factor, term) = (black_box(FACTOR), black_box(TERM));
    let (lanes, value) = match isa.level() {
        Level::Portable => (4, portable(rounds, factor, term)),
        // SAFETY: an `Isa` exists only on a machine that has its instructions.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => (8, unsafe { avx2(rounds, factor, term) }),
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => (16, unsafe { avx512(rounds, factor, term) }),
    };
    (2.0 * (rounds * CHAINS * lanes) as f64, value)
}

fn portable(rounds: usize, factor: f32, term: f32) -> f32 {
    let mut sums = [[1.0f32; 4]; CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = sum.map(|v| v * factor + term);
        }
    }
    // All of them are needed, so that none is computed in vain.
    sums.iter().flatten().fold(0.0, |largest: f32, &v| largest.max(v))
}

#[cfg(target_arch = "x86_64")]
macro_rules! fused {
    ($name:ident, $features:literal, $splat:ident, $fma:ident, $max:ident, $first:ident) => {
        #[target_feature(enable = $features)]
        fn $name(rounds: usize, factor: f32, term: f32) -> f32 {
            let (factor, term) = ($splat(factor), $splat(term));
            let mut sums = [$splat(1.0); CHAINS];
            for _ in 0..rounds {
                for sum in &mut sums {
                    *sum = $fma(*sum, factor, term);
                }
            }
            $first(sums.into_iter().fold($splat(0.0), |largest, sum| $max(largest, sum)))
        }
    };
}
#[cfg(target_arch = "x86_64")]
fused!(avx2, "avx2,fma", _mm256_set1_ps, _mm256_fmadd_ps, _mm256_max_ps, _mm256_cvtss_f32);
#[cfg(target_arch = "x86_64")]
fused!(avx512, "avx512f", _mm512_set1_ps, _mm512_fmadd_ps, _mm512_max_ps, _mm512_cvtss_f32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loop_does_what_it_counts() {
        for rounds in [0, 1, 7] {
            let expected = (0..rounds).fold(1.0, |v: f32, _| v * FACTOR + TERM);
            for isa in Isa::available() {
                let (flops, value) = multiply_adds(isa, rounds);
                assert!((value - expected).abs() < 1e-6, "{} {rounds}: {value} instead of {expected}", isa.name());
                assert_eq!(flops % (2 * CHAINS * 4) as f64, 0.0);
                assert_eq!(flops == 0.0, rounds == 0);
            }
        }
    }
}
