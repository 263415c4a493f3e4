//! The weight gradient of any convolution: a sum of outer products over output pixels.
//!
//! Its rows are the pairs of a tap and an input channel, its columns the output channels. Jobs share out the rows, so
//! that threads never write to one place. For a block of pixels a job gathers what its rows read, and the output
//! gradients in groups of columns, side by side: in the images themselves pixels lie a power of two apart, which
//! leaves L1 a few of its sets. Rows of several taps lie in one block, so a first layer's 27 are no special case.
#![allow(unsafe_code)]

use super::Plan;
use super::product::{self, Outer};
use super::scratch::{LOCAL, with_scratch};
use rayon::prelude::*;
use std::ops::Range;

/// Columns of the outer kernel come in multiples of this; missing ones are zeros.
const LANES: usize = 16;

/// Sums over the first `n` images into `dw`, [tap][in][out]; lengths were checked by the caller.
pub(super) fn weight_gradient(plan: &Plan, n: usize, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    let g = plan.geometry();
    let n_rows = g.n_taps() * g.in_channels;
    // Made here, not by whichever thread comes first.
    plan.weight_sources();
    // Multiples of six rows fill the registers; how rows are shared out does not change any sum.
    let per_job = (n_rows / (rayon::current_num_threads() * 4)).clamp(24, 96).next_multiple_of(6).min(n_rows);
    dw.par_chunks_mut(per_job * g.out_channels).enumerate().for_each(|(job, dw)| {
        let first = job * per_job;
        rows_of(plan, first..first + dw.len() / g.out_channels, n * g.out_pixels(), x, dy, dw);
    });
}

/// The rows `rows` of the gradient.
fn rows_of(plan: &Plan, rows: Range<usize>, n_pixels: usize, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    let g = plan.geometry();
    let columns = g.out_channels.next_multiple_of(LANES);
    let group = super::largest_share(columns, 64);
    let n_groups = columns / group;
    // Pixels at once; their number is part of the order of summation, so the shape alone decides it.
    let block = if columns > 128 { 64 } else { 128 };
    let sources = plan.weight_sources();
    with_scratch(&LOCAL, (block + columns) * rows.len() + block * columns, |scratch| {
        let (gathered, rest) = scratch.split_at_mut(block * rows.len());
        let (gradients, sums) = rest.split_at_mut(block * columns);
        for first in (0..n_pixels).step_by(block) {
            let n_block = block.min(n_pixels - first);
            let mut row = rows.start;
            while row < rows.end {
                let (tap, channel) = (row / g.in_channels, row % g.in_channels);
                let width = (g.in_channels - channel).min(rows.end - row);
                let table = &sources[tap * plan.capacity * g.out_pixels() + first..][..n_block];
                let targets = gathered.chunks_exact_mut(rows.len());
                for (target, &pixel) in targets.zip(table) {
                    let target = &mut target[row - rows.start..][..width];
                    match usize::try_from(pixel) {
                        Ok(pixel) => target.copy_from_slice(&x[pixel * g.in_channels + channel..][..width]),
                        Err(_) => target.fill(0.0),
                    }
                }
                row += width;
            }
            for (i, target) in gradients[..n_groups * n_block * group].chunks_exact_mut(group).enumerate() {
                let (column, pixel) = (i / n_block * group, first + i % n_block);
                let width = group.min(g.out_channels - column);
                target[..width].copy_from_slice(&dy[pixel * g.out_channels + column..][..width]);
                target[width..].fill(0.0);
            }
            for i in 0..n_groups {
                let call = Outer {
                    n: n_block,
                    rows: rows.len(),
                    columns: group,
                    a: gathered.as_ptr(),
                    b: gradients[i * n_block * group..].as_ptr(),
                    c: sums[i * rows.len() * group..].as_mut_ptr(),
                    add: first > 0,
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
