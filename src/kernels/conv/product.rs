//! Small matrix products on raw pointers: those of the Winograd domain, and the sums of the weight gradient.
#![allow(unsafe_code)]
// Loops of constant length over index and pointer alike stay in registers; iterators read worse here.
#![allow(clippy::needless_range_loop)]

use crate::kernels::Isa;
use crate::kernels::isa::Level;
use crate::kernels::simd::{Vector, vectorised};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m256, __m512};

/// Rows and columns of results that stay in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tile {
    pub(super) rows: usize,
    pub(super) columns: usize,
}

impl Tile {
    /// The tile for a multiple of 16 result columns.
    pub(super) fn for_columns(isa: Isa, columns: usize) -> Tile {
        debug_assert!(columns.is_multiple_of(16));
        match isa.level() {
            Level::Portable => Tile { rows: 4, columns: 8 },
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => Tile { rows: 6, columns: 16 },
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 if columns.is_multiple_of(32) => Tile { rows: 12, columns: 32 },
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => Tile { rows: 12, columns: 16 },
        }
    }
}

/// `c[i][j] = sum over k of a[i][k] * b[k][j]` for one panel of `tile.columns` columns.
#[derive(Clone, Copy)]
pub(super) struct Panel {
    /// A multiple of `tile.rows`.
    pub(super) rows: usize,
    pub(super) depth: usize,
    /// Rows `depth` apart.
    pub(super) a: *const f32,
    /// Rows `tile.columns` apart.
    pub(super) b: *const f32,
    pub(super) c: *mut f32,
    pub(super) c_stride: usize,
}

/// Runs a panel.
///
/// # Safety
/// `tile` comes from [`Tile::for_columns`] with `isa`; the pointers are valid for what [`Panel`] says, `c` for writing
/// and by nobody else.
pub(super) unsafe fn panel(isa: Isa, tile: Tile, call: &Panel) {
    // SAFETY: as the caller vouches.
    unsafe { if tile.columns == 32 { wide_panel(isa, call) } else { narrow_panel(isa, call) } }
}

vectorised! {
    unsafe fn wide_panel(call: &Panel) = panel_of<[[f32; 8], 4, 1], [__m256, 6, 2], [__m512, 12, 2]>
}
vectorised! {
    unsafe fn narrow_panel(call: &Panel) = panel_of<[[f32; 8], 4, 1], [__m256, 6, 2], [__m512, 12, 1]>
}

/// # Safety
/// See [`panel`].
#[inline(always)]
unsafe fn panel_of<V: Vector, const ROWS: usize, const VECTORS: usize>(call: &Panel) {
    // SAFETY: see `panel`.
    unsafe {
        let (mut a, mut c) = (call.a, call.c);
        for _ in 0..call.rows / ROWS {
            let mut sums = [[V::zero(); VECTORS]; ROWS];
            let mut b = call.b;
            for k in 0..call.depth {
                let mut row = [V::zero(); VECTORS];
                for j in 0..VECTORS {
                    row[j] = V::load(b.add(j * V::WIDTH));
                }
                b = b.add(VECTORS * V::WIDTH);
                for i in 0..ROWS {
                    let value = V::splat(*a.add(i * call.depth + k));
                    for j in 0..VECTORS {
                        sums[i][j] = value.times_plus(row[j], sums[i][j]);
                    }
                }
            }
            for i in 0..ROWS {
                for j in 0..VECTORS {
                    sums[i][j].store(c.add(i * call.c_stride + j * V::WIDTH));
                }
            }
            a = a.add(ROWS * call.depth);
            c = c.add(ROWS * call.c_stride);
        }
    }
}

/// `c[i][j] (+)= sum over t of a[t][i] * b[t][j]`.
#[derive(Clone, Copy)]
pub(super) struct Outer {
    /// Terms.
    pub(super) n: usize,
    /// Columns of `a`: rows of `c`, and the distance between rows of `a`.
    pub(super) rows: usize,
    /// Columns of `b` and `c`, a multiple of 16, and the distance between their rows.
    pub(super) columns: usize,
    pub(super) a: *const f32,
    pub(super) b: *const f32,
    pub(super) c: *mut f32,
    /// Whether `c` is added to.
    pub(super) add: bool,
}

/// Runs a sum of outer products.
///
/// # Safety
/// The pointers are valid for what [`Outer`] says, `c` for writing and by nobody else.
pub(super) unsafe fn outer(isa: Isa, call: &Outer) {
    // SAFETY: as the caller vouches.
    unsafe { if call.columns.is_multiple_of(32) { wide_outer(isa, call) } else { narrow_outer(isa, call) } }
}

vectorised! {
    unsafe fn wide_outer(call: &Outer) = outer_of<[[f32; 8], 4, 1], [__m256, 6, 2], [__m512, 8, 2]>
}
vectorised! {
    unsafe fn narrow_outer(call: &Outer) = outer_of<[[f32; 8], 4, 1], [__m256, 6, 2], [__m512, 16, 1]>
}

/// # Safety
/// See [`outer`].
#[inline(always)]
unsafe fn outer_of<V: Vector, const ROWS: usize, const VECTORS: usize>(call: &Outer) {
    // SAFETY: see `outer`.
    unsafe {
        let mut row = 0;
        while row + ROWS <= call.rows {
            outer_rows::<V, ROWS, VECTORS>(call, row);
            row += ROWS;
        }
        while row + 4 <= call.rows {
            outer_rows::<V, 4, VECTORS>(call, row);
            row += 4;
        }
        while row + 2 <= call.rows {
            outer_rows::<V, 2, VECTORS>(call, row);
            row += 2;
        }
        if row < call.rows {
            outer_rows::<V, 1, VECTORS>(call, row);
        }
    }
}

/// # Safety
/// See [`outer`].
#[inline(always)]
unsafe fn outer_rows<V: Vector, const ROWS: usize, const VECTORS: usize>(call: &Outer, first: usize) {
    // SAFETY: see `outer`.
    unsafe {
        for column in (0..call.columns).step_by(VECTORS * V::WIDTH) {
            let c = call.c.add(first * call.columns + column);
            let mut sums = [[V::zero(); VECTORS]; ROWS];
            let (mut a, mut b) = (call.a.add(first), call.b.add(column));
            for _ in 0..call.n {
                let mut row = [V::zero(); VECTORS];
                for j in 0..VECTORS {
                    row[j] = V::load(b.add(j * V::WIDTH));
                }
                for i in 0..ROWS {
                    let value = V::splat(*a.add(i));
                    for j in 0..VECTORS {
                        sums[i][j] = value.times_plus(row[j], sums[i][j]);
                    }
                }
                a = a.add(call.rows);
                b = b.add(call.columns);
            }
            // Added at the end: the blocks' sums are short chains of their own, which rounds less than one long chain.
            if call.add {
                for i in 0..ROWS {
                    for j in 0..VECTORS {
                        sums[i][j] = sums[i][j].plus(V::load(c.add(i * call.columns + j * V::WIDTH)));
                    }
                }
            }
            for i in 0..ROWS {
                for j in 0..VECTORS {
                    sums[i][j].store(c.add(i * call.columns + j * V::WIDTH));
                }
            }
        }
    }
}
