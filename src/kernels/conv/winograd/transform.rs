//! The one-dimensional transforms of F(4, 3) and their transposes, on vectors.
//!
//! Toom-Cook interpolation at 0, +-A, +-B and infinity. A^2 = 1/2 and B^2 = 2 instead of Lavin's 1 and 4 keep the
//! matrices' entries close to 1, which divides the rounding error by about two (compare Barabasz et al. 2018,
//! arXiv:1803.10986, on the choice of points), and A^2 B^2 = 1 saves multiplications.
#![allow(unsafe_code)]

use crate::kernels::simd::Vector;

/// Outputs a tile has in each direction.
pub(super) const OUT: usize = 4;
/// Inputs that they depend on.
pub(super) const IN: usize = 6;
/// Products a tile costs for each pair of channels, instead of 144.
pub(super) const POSITIONS: usize = IN * IN;

const A2: f32 = 0.5;
const B2: f32 = 2.0;
const A: f32 = std::f32::consts::FRAC_1_SQRT_2;
const B: f32 = std::f32::consts::SQRT_2;
/// 1 / product of the differences between a point and the others: at +-A and at +-B (1 at the other two).
const SHARE_A: f32 = 1.0 / (2.0 * A2 * (A2 - B2));
const SHARE_B: f32 = 1.0 / (2.0 * B2 * (B2 - A2));

// SAFETY (all functions): the caller runs inside a function compiled for the vector's instruction set.

/// B' d: the input's values at the points.
#[inline(always)]
pub(super) unsafe fn input<V: Vector>(d: [V; IN]) -> [V; IN] {
    unsafe {
        let (even_a, odd_a) = (d[2].scaled_plus(-B2, d[4]), d[1].scaled_plus(-B2, d[3]));
        let (even_b, odd_b) = (d[2].scaled_plus(-A2, d[4]), d[1].scaled_plus(-A2, d[3]));
        [
            d[2].scaled_plus(-(A2 + B2), d[0].plus(d[4])),
            odd_a.scaled_plus(A, even_a),
            odd_a.scaled_plus(-A, even_a),
            odd_b.scaled_plus(B, even_b),
            odd_b.scaled_plus(-B, even_b),
            d[3].scaled_plus(-(A2 + B2), d[1].plus(d[5])),
        ]
    }
}

/// A' m: outputs from the products at the points.
#[inline(always)]
pub(super) unsafe fn output<V: Vector>(m: [V; IN]) -> [V; OUT] {
    unsafe {
        let (sum_a, difference_a) = (m[1].plus(m[2]), m[1].minus(m[2]));
        let (sum_b, difference_b) = (m[3].plus(m[4]), m[3].minus(m[4]));
        [
            m[0].plus(sum_a).plus(sum_b),
            difference_b.scaled_plus(B, difference_a.times(V::splat(A))),
            sum_b.scaled_plus(B2, sum_a.times(V::splat(A2))),
            difference_b.scaled_plus(B * B2, difference_a.scaled_plus(A * A2, m[5])),
        ]
    }
}

/// A y, the transpose of [`output`]: an output gradient's values at the points.
#[inline(always)]
pub(super) unsafe fn output_gradient<V: Vector>(y: [V; OUT]) -> [V; IN] {
    unsafe {
        let (even_a, odd_a) = (y[2].scaled_plus(A2, y[0]), y[3].scaled_plus(A2, y[1]));
        let (even_b, odd_b) = (y[2].scaled_plus(B2, y[0]), y[3].scaled_plus(B2, y[1]));
        [
            y[0],
            odd_a.scaled_plus(A, even_a),
            odd_a.scaled_plus(-A, even_a),
            odd_b.scaled_plus(B, even_b),
            odd_b.scaled_plus(-B, even_b),
            y[3],
        ]
    }
}

/// G g: the window's values at the points, with the interpolation's denominators.
#[inline(always)]
pub(super) unsafe fn window<V: Vector>(g: [V; 3]) -> [V; IN] {
    unsafe {
        let even_a = g[2].scaled_plus(A2, g[0]).times(V::splat(SHARE_A));
        let even_b = g[2].scaled_plus(B2, g[0]).times(V::splat(SHARE_B));
        [
            g[0],
            g[1].scaled_plus(A * SHARE_A, even_a),
            g[1].scaled_plus(-A * SHARE_A, even_a),
            g[1].scaled_plus(B * SHARE_B, even_b),
            g[1].scaled_plus(-B * SHARE_B, even_b),
            g[2],
        ]
    }
}

/// G' z, the transpose of [`window`]: a window's gradient from the sums of products at the points.
#[inline(always)]
pub(super) unsafe fn window_gradient<V: Vector>(z: [V; IN]) -> [V; 3] {
    unsafe {
        let sum_a = z[1].plus(z[2]).times(V::splat(SHARE_A));
        let sum_b = z[3].plus(z[4]).times(V::splat(SHARE_B));
        let (difference_a, difference_b) = (z[1].minus(z[2]), z[3].minus(z[4]));
        [
            z[0].plus(sum_a).plus(sum_b),
            difference_b.scaled_plus(B * SHARE_B, difference_a.times(V::splat(A * SHARE_A))),
            sum_b.scaled_plus(B2, sum_a.scaled_plus(A2, z[5])),
        ]
    }
}
