//! The weight gradient of any convolution: a sum of outer products over output pixels.
//!
//! Its rows are the pairs of a tap and an input channel, its columns the output channels. Where it is large, jobs share
//! out its rows, so that threads never write to one place. Where it is small, as in the first layers, they share out
//! the pixels and their sums are added up at the end; rows would have every job read all pixels. For a block of pixels
//! a job gathers what its rows read, and the output gradients in groups of columns, side by side: in the images
//! themselves pixels lie a power of two apart, which leaves L1 a few of its sets. Rows of several taps lie in one
//! block, so a first layer's 27 are no special case.
#![allow(unsafe_code)]

use super::Plan;
use super::product::{self, Outer};
use super::scratch::{LOCAL, PARTS, with_scratch};
use rayon::prelude::*;
use std::ops::Range;

/// Columns of the outer kernel come in multiples of this; missing ones are zeros.
const LANES: usize = 16;
/// Values of a gradient that counts as small: with what is gathered for it, it stays in L2.
const SMALL: usize = 20 * 1024;
/// Pixels of a part of a small gradient. The shape alone decides the order of summation, not the number of threads.
const PART: usize = 2048;

/// Sums over the first `n` images into `dw`, [tap][in][out]; lengths were checked by the caller.
pub(super) fn weight_gradient(plan: &Plan, n: usize, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    let g = plan.geometry();
    let (n_rows, n_pixels) = (g.n_taps() * g.in_channels, n * g.out_pixels());
    // Made here, not by whichever thread comes first.
    plan.weight_sources();
    if n_rows * g.out_channels.next_multiple_of(LANES) <= SMALL && n_pixels >= 2 * PART {
        let length = dw.len();
        return with_scratch(&PARTS, n_pixels.div_ceil(PART) * length, |parts| {
            parts.par_chunks_mut(length).enumerate().for_each(|(part, sums)| {
                let pixels = part * PART..n_pixels.min((part + 1) * PART);
                rows_of(plan, 0..n_rows, pixels, x, dy, sums);
            });
            let (first, others) = parts.split_at(length);
            dw.copy_from_slice(first);
            for part in others.chunks_exact(length) {
                dw.iter_mut().zip(part).for_each(|(sum, value)| *sum += value);
            }
        });
    }
    // Multiples of six rows fill the registers; how rows are shared out does not change any sum.
    let per_job = (n_rows / (rayon::current_num_threads() * 4)).clamp(24, 96).next_multiple_of(6).min(n_rows);
    dw.par_chunks_mut(per_job * g.out_channels).enumerate().for_each(|(job, dw)| {
        let first = job * per_job;
        rows_of(plan, first..first + dw.len() / g.out_channels, 0..n_pixels, x, dy, dw);
    });
}

/// The rows `rows` of the gradient, summed over `pixels`.
fn rows_of(plan: &Plan, rows: Range<usize>, pixels: Range<usize>, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    let g = plan.geometry();
    let columns = g.out_channels.next_multiple_of(LANES);
    let group = super::largest_share(columns, 64);
    let n_groups = columns / group;
    // A single group of whole vectors lies side by side already.
    let is_copied = n_groups > 1 || columns != g.out_channels;
    // Pixels at once; their number is part of the order of summation, so the shape alone decides it.
    let block = if columns > 128 { 64 } else { 128 };
    let sources = plan.weight_sources();
    with_scratch(&LOCAL, (block + columns) * rows.len() + block * columns, |scratch| {
        let (gathered, rest) = scratch.split_at_mut(block * rows.len());
        let (copies, sums) = rest.split_at_mut(block * columns);
        for first in pixels.clone().step_by(block) {
            let n_block = block.min(pixels.end - first);
            let mut row = rows.start;
            while row < rows.end {
                let (tap, channel) = (row / g.in_channels, row % g.in_channels);
                let width = (g.in_channels - channel).min(rows.end - row);
                let table = &sources[tap * plan.capacity * g.out_pixels() + first..][..n_block];
                let gather = Gather { x, in_channels: g.in_channels, channel, rows: rows.len(), row: row - rows.start };
                // Lengths known to the compiler: a copy of a first layer's three channels is shorter than a call.
                match width {
                    3 => gather.run::<3>(table, gathered),
                    16 => gather.run::<16>(table, gathered),
                    32 => gather.run::<32>(table, gathered),
                    _ => gather.run_any(width, table, gathered),
                }
                row += width;
            }
            if is_copied {
                for (i, target) in copies[..n_groups * n_block * group].chunks_exact_mut(group).enumerate() {
                    let (column, pixel) = (i / n_block * group, first + i % n_block);
                    let width = group.min(g.out_channels - column);
                    target[..width].copy_from_slice(&dy[pixel * g.out_channels + column..][..width]);
                    target[width..].fill(0.0);
                }
            }
            let gradients = if is_copied { &*copies } else { &dy[first * columns..][..n_block * columns] };
            for i in 0..n_groups {
                let call = Outer {
                    n: n_block,
                    rows: rows.len(),
                    columns: group,
                    a: gathered.as_ptr(),
                    b: gradients[i * n_block * group..].as_ptr(),
                    c: sums[i * rows.len() * group..].as_mut_ptr(),
                    add: first > pixels.start,
                };
                // SAFETY: `gathered` holds `n_block` rows of `rows.len()` values, `gradients` as many of `group` in
                // each group, `sums` `rows.len()` rows of `group`.
                unsafe { product::outer(plan.isa, &call) };
            }
        }
        for (row, dw) in dw.chunks_exact_mut(g.out_channels).enumerate() {
            for (i, dw) in dw.chunks_mut(group).enumerate() {
                dw.copy_from_slice(&sums[(i * rows.len() + row) * group..][..dw.len()]);
            }
        }
    });
}

/// Copies some channels of pixels into rows of a block.
struct Gather<'a> {
    x: &'a [f32],
    in_channels: usize,
    /// The first of them.
    channel: usize,
    /// Length of the block's rows, and where the channels go.
    rows: usize,
    row: usize,
}

impl Gather<'_> {
    /// `WIDTH` channels of the pixels of `table`, zeros for -1.
    fn run<const WIDTH: usize>(&self, table: &[i32], gathered: &mut [f32]) {
        for (target, &pixel) in gathered.chunks_exact_mut(self.rows).zip(table) {
            let mut values = [0.0; WIDTH];
            if let Ok(pixel) = usize::try_from(pixel) {
                values.copy_from_slice(&self.x[pixel * self.in_channels + self.channel..][..WIDTH]);
            }
            target[self.row..][..WIDTH].copy_from_slice(&values);
        }
    }

    /// Any number of channels.
    fn run_any(&self, width: usize, table: &[i32], gathered: &mut [f32]) {
        for (target, &pixel) in gathered.chunks_exact_mut(self.rows).zip(table) {
            let target = &mut target[self.row..][..width];
            match usize::try_from(pixel) {
                Ok(pixel) => target.copy_from_slice(&self.x[pixel * self.in_channels + self.channel..][..width]),
                Err(_) => target.fill(0.0),
            }
        }
    }
}
