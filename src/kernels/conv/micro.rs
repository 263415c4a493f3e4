//! The innermost loops of convolution, one per instruction set, on raw pointers.
//!
//! The *gather* kernel computes a tile of pixels by channels from a table of pointers to the pixels that each tap
//! reads; it serves the forward pass and the input gradient.
#![allow(unsafe_code)]

use crate::kernels::Isa;
use crate::kernels::isa::Level;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Pixels by channels that a gather kernel computes at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tile {
    pub(super) rows: usize,
    pub(super) columns: usize,
}

/// Values in the largest tile.
pub(super) const MAX_TILE: usize = 14 * 32;
/// Rows of the largest tile.
pub(super) const MAX_ROWS: usize = 14;

impl Tile {
    /// The tile for `channels` results a pixel. Sizes fill the registers: 28 of 32 accumulate with AVX-512, 12 of 16
    /// with AVX2, 8 of 16 with SSE2.
    pub(super) fn for_channels(isa: Isa, channels: usize) -> Tile {
        match isa.level() {
            Level::Portable => Tile { rows: 4, columns: 8 },
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => Tile { rows: 6, columns: 16 },
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 if channels.is_multiple_of(32) => Tile { rows: 14, columns: 32 },
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => Tile { rows: 12, columns: 16 },
        }
        .checked_for(channels)
    }

    fn checked_for(self, channels: usize) -> Tile {
        debug_assert!(channels > 0 && self.rows <= MAX_ROWS && self.rows * self.columns <= MAX_TILE);
        self
    }
}

/// One tile: `destination[offsets[i] + j] (+)= bias[j] + sum over taps t, channels c of sources[t][i][c] * weights[t][c][j]`.
pub(super) struct Gather {
    pub(super) n_taps: usize,
    /// Channels of a source pixel.
    pub(super) depth: usize,
    /// `n_taps` times `tile.rows` pointers to `depth` values each.
    pub(super) sources: *const *const f32,
    /// `n_taps` pointers to `depth * tile.columns` values each.
    pub(super) weights: *const *const f32,
    /// `tile.columns` values.
    pub(super) bias: *const f32,
    pub(super) destination: *mut f32,
    /// `rows` offsets.
    pub(super) offsets: *const usize,
    /// Rows to store, at most `tile.rows`.
    pub(super) rows: usize,
    pub(super) add: bool,
}

/// Runs the gather kernel of `tile`.
///
/// # Safety
/// All pointers of `call` are valid for what its fields say; `destination[offset..offset + tile.columns]` may be
/// written for every offset, and no other thread touches it; `tile` comes from [`Tile::for_channels`] with `isa`.
pub(super) unsafe fn gather(isa: Isa, tile: Tile, call: &Gather) {
    // SAFETY: the caller vouches for the pointers, `isa` for the instructions.
    unsafe {
        match (isa.level(), tile.columns) {
            (Level::Portable, _) => gather_portable::<4, 8>(call),
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2, _) => gather_avx2::<6, 2>(call),
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, 32) => gather_avx512::<14, 2>(call),
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, _) => gather_avx512::<12, 1>(call),
        }
    }
}

/// # Safety
/// See [`gather`].
#[inline(always)]
unsafe fn gather_portable<const ROWS: usize, const COLUMNS: usize>(call: &Gather) {
    // SAFETY: see `gather`.
    unsafe {
        let mut sums = [*call.bias.cast::<[f32; COLUMNS]>(); ROWS];
        for t in 0..call.n_taps {
            let pixels = *call.sources.add(t * ROWS).cast::<[*const f32; ROWS]>();
            let weights = *call.weights.add(t);
            for c in 0..call.depth {
                let row = *weights.add(c * COLUMNS).cast::<[f32; COLUMNS]>();
                for i in 0..ROWS {
                    let value = *pixels[i].add(c);
                    for j in 0..COLUMNS {
                        sums[i][j] += value * row[j];
                    }
                }
            }
        }
        for (i, sum) in sums.iter().enumerate().take(call.rows) {
            let destination = call.destination.add(*call.offsets.add(i));
            for (j, &value) in sum.iter().enumerate() {
                let before = if call.add { *destination.add(j) } else { 0.0 };
                *destination.add(j) = before + value;
            }
        }
    }
}

/// The vector versions: the same text for two register widths.
#[cfg(target_arch = "x86_64")]
macro_rules! vector_kernels {
    ($gather:ident, $features:literal, $vector:ty, $width:literal,
     $zero:ident, $load:ident, $store:ident, $splat:ident, $fma:ident, $add:ident) => {
        /// # Safety
        /// See [`gather`].
        #[target_feature(enable = $features)]
        #[inline]
        unsafe fn $gather<const ROWS: usize, const VECTORS: usize>(call: &Gather) {
            // SAFETY: see `gather`.
            unsafe {
                let mut bias = [$zero(); VECTORS];
                for j in 0..VECTORS {
                    bias[j] = $load(call.bias.add(j * $width));
                }
                let mut sums: [[$vector; VECTORS]; ROWS] = [bias; ROWS];
                for t in 0..call.n_taps {
                    let pixels = *call.sources.add(t * ROWS).cast::<[*const f32; ROWS]>();
                    let mut weights = *call.weights.add(t);
                    let mut c = 0;
                    // A single vector a row leaves registers for four channels' weights at a time.
                    if VECTORS == 1 {
                        while c + 4 <= call.depth {
                            let row: [$vector; 4] = [
                                $load(weights),
                                $load(weights.add($width)),
                                $load(weights.add(2 * $width)),
                                $load(weights.add(3 * $width)),
                            ];
                            weights = weights.add(4 * $width);
                            for i in 0..ROWS {
                                let pixel = pixels[i].add(c);
                                for u in 0..4 {
                                    sums[i][0] = $fma($splat(*pixel.add(u)), row[u], sums[i][0]);
                                }
                            }
                            c += 4;
                        }
                    }
                    while c < call.depth {
                        let mut row = [$zero(); VECTORS];
                        for j in 0..VECTORS {
                            row[j] = $load(weights.add(j * $width));
                        }
                        weights = weights.add(VECTORS * $width);
                        for i in 0..ROWS {
                            let value = $splat(*pixels[i].add(c));
                            for j in 0..VECTORS {
                                sums[i][j] = $fma(value, row[j], sums[i][j]);
                            }
                        }
                        c += 1;
                    }
                }
                // `i < call.rows` inside a loop of constant length keeps `sums` in registers.
                if call.add {
                    for i in 0..ROWS {
                        if i < call.rows {
                            for j in 0..VECTORS {
                                let destination = call.destination.add(*call.offsets.add(i) + j * $width);
                                $store(destination, $add($load(destination), sums[i][j]));
                            }
                        }
                    }
                } else {
                    for i in 0..ROWS {
                        if i < call.rows {
                            for j in 0..VECTORS {
                                $store(call.destination.add(*call.offsets.add(i) + j * $width), sums[i][j]);
                            }
                        }
                    }
                }
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
vector_kernels!(
    gather_avx512,
    "avx512f",
    __m512,
    16,
    _mm512_setzero_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_set1_ps,
    _mm512_fmadd_ps,
    _mm512_add_ps
);
#[cfg(target_arch = "x86_64")]
vector_kernels!(
    gather_avx2,
    "avx2,fma",
    __m256,
    8,
    _mm256_setzero_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_set1_ps,
    _mm256_fmadd_ps,
    _mm256_add_ps
);
