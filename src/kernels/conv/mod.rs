//! Convolution, forwards and backwards, as an implicit matrix product over channels-last images.
//!
//! Nothing is unfolded: a table, made once per shape, says which input pixel each (output pixel, tap) reads (or that
//! it lies in the padding, where a row of zeros stands), and the micro-kernel multiplies through pointers ("indirect
//! convolution", Dukhan 2019, arXiv:1907.02129). The input gradient is the same kernel with transposed weights; for
//! stride s there are s * s classes of input pixels, each with its own taps, and in small images pixels are sorted by
//! the taps that stay inside. The weight gradient is a sum of outer
//! products ([`gradient`]).
//!
//! Windows of 3x3 at stride 1, most of a residual network's work, go through [`winograd`] instead where the
//! channels are multiples of 16 and the image has at least three rows and columns: at 2x2 a tile would spend 36
//! products where the direct kernel, which leaves out what it would read in the padding, spends 16.
//!
//! Any number of channels works: the last panel of weights is padded with zeros and its results are copied out.
#![allow(unsafe_code)]

mod gradient;
mod micro;
mod product;
mod scratch;
mod winograd;

use super::{Isa, Write};
use micro::{Gather, MAX_ROWS, MAX_TILE, Tile};
use rayon::prelude::*;
use std::cell::RefCell;
use std::sync::OnceLock;

/// The shape of a convolution, batch size aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Geometry {
    /// Rows of the input.
    pub height: usize,
    /// Columns of the input.
    pub width: usize,
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Rows and columns of the window.
    pub kernel: usize,
    /// Distance between windows.
    pub stride: usize,
    /// Rows and columns of zeros around the input.
    pub padding: usize,
}

impl Geometry {
    /// Rows of the output.
    pub fn out_height(&self) -> usize {
        (self.height + 2 * self.padding - self.kernel) / self.stride + 1
    }

    /// Columns of the output.
    pub fn out_width(&self) -> usize {
        (self.width + 2 * self.padding - self.kernel) / self.stride + 1
    }

    /// Positions of the window.
    pub fn n_taps(&self) -> usize {
        self.kernel * self.kernel
    }

    /// Number of weights.
    pub fn n_weights(&self) -> usize {
        self.n_taps() * self.in_channels * self.out_channels
    }

    /// Floating-point operations of the forward pass for one image, a multiply-add counting as two.
    pub fn flops(&self) -> f64 {
        2.0 * (self.out_height() * self.out_width()) as f64 * self.n_weights() as f64
    }

    /// Pixels of an input.
    fn in_pixels(&self) -> usize {
        self.height * self.width
    }

    fn out_pixels(&self) -> usize {
        self.out_height() * self.out_width()
    }

    /// Whether padding is a large part of what windows read: then pixels are sorted by the taps that stay inside.
    fn is_small(&self) -> bool {
        self.in_pixels() <= 64
    }

    /// The input pixel that output pixel `pixel` reads through `tap`, or -1 in the padding. Both count over the batch.
    fn read_by(&self, pixel: usize, tap: usize) -> i32 {
        let (image, rest) = (pixel / self.out_pixels(), pixel % self.out_pixels());
        let (row, column) = (rest / self.out_width(), rest % self.out_width());
        let row = (row * self.stride + tap / self.kernel).wrapping_sub(self.padding);
        let column = (column * self.stride + tap % self.kernel).wrapping_sub(self.padding);
        // A position before the image wraps round and is larger than any size.
        if row >= self.height || column >= self.width {
            return -1;
        }
        ((image * self.height + row) * self.width + column) as i32
    }

    /// The output pixel that reads input pixel `pixel` through `tap`, or -1 if none does.
    fn reader_of(&self, pixel: usize, tap: usize) -> i32 {
        let (image, rest) = (pixel / self.in_pixels(), pixel % self.in_pixels());
        let (row, column) = (rest / self.width, rest % self.width);
        let (row, column) = (row + self.padding, column + self.padding);
        let (tap_row, tap_column) = (tap / self.kernel, tap % self.kernel);
        if row < tap_row || column < tap_column {
            return -1;
        }
        let (row, column) = (row - tap_row, column - tap_column);
        if !row.is_multiple_of(self.stride) || !column.is_multiple_of(self.stride) {
            return -1;
        }
        let (row, column) = (row / self.stride, column / self.stride);
        if row >= self.out_height() || column >= self.out_width() {
            return -1;
        }
        ((image * self.out_height() + row) * self.out_width() + column) as i32
    }
}

/// Destination pixels that are reached through the same taps.
struct Group {
    taps: Vec<usize>,
    /// Destination pixels, image by image.
    pixels: Vec<u32>,
    /// Source pixels or -1, [tile][tap][row of the tile].
    sources: Vec<i32>,
}

impl Group {
    fn new(taps: Vec<usize>, pixels: Vec<u32>, tile: Tile, source: impl Fn(usize, usize) -> i32) -> Group {
        let mut sources = vec![-1; pixels.len().div_ceil(tile.rows) * taps.len() * tile.rows];
        for (i, &pixel) in pixels.iter().enumerate() {
            for (t, &tap) in taps.iter().enumerate() {
                sources[(i / tile.rows * taps.len() + t) * tile.rows + i % tile.rows] = source(pixel as usize, tap);
            }
        }
        Group { taps, pixels, sources }
    }
}

/// Sorts the pixels of an image by the taps that `taps_of` says may reach them.
fn groups(
    n_pixels: usize,
    capacity: usize,
    tile: Tile,
    taps_of: impl Fn(usize) -> Vec<usize>,
    source: impl Fn(usize, usize) -> i32,
) -> Vec<Group> {
    let mut classes: Vec<(Vec<usize>, Vec<usize>)> = Vec::new();
    for pixel in 0..n_pixels {
        let taps = taps_of(pixel);
        match classes.iter_mut().find(|(known, _)| *known == taps) {
            Some((_, pixels)) => pixels.push(pixel),
            None => classes.push((taps, vec![pixel])),
        }
    }
    let of_class = |(taps, of_image): (Vec<usize>, Vec<usize>)| {
        let of_image = &of_image;
        let pixels =
            (0..capacity).flat_map(|image| of_image.iter().map(move |pixel| (image * n_pixels + pixel) as u32));
        Group::new(taps, pixels.collect(), tile, &source)
    };
    classes.into_iter().map(of_class).collect()
}

/// How a convolution is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    /// Products through tables of pointers; any shape.
    Direct,
    /// See [`winograd`].
    Winograd,
}

/// The tables of one convolution for batches of up to `capacity` images.
pub struct Plan {
    isa: Isa,
    geometry: Geometry,
    capacity: usize,
    algorithm: Algorithm,
    forward_tile: Tile,
    backward_tile: Tile,
    forward: Vec<Group>,
    /// Of input pixels. Made by the first backward pass.
    backward: OnceLock<Vec<Group>>,
    /// Source pixels or -1, [tap][output pixel]. Made by the first backward pass.
    weight_sources: OnceLock<Vec<i32>>,
    /// What is read in the padding, and the bias where there is none.
    zeros: Vec<f32>,
}

impl Plan {
    /// Plans a convolution.
    ///
    /// # Panics
    /// If the window has more than [`MAX_TAPS`] positions, or the batch more than 2^31 pixels.
    pub fn new(isa: Isa, geometry: Geometry, capacity: usize) -> Plan {
        let algorithm = if winograd::pays(&geometry) { Algorithm::Winograd } else { Algorithm::Direct };
        Plan::with_algorithm(isa, geometry, capacity, algorithm)
    }

    fn with_algorithm(isa: Isa, geometry: Geometry, capacity: usize, algorithm: Algorithm) -> Plan {
        assert!(geometry.n_taps() <= MAX_TAPS, "a window of {}", geometry.kernel);
        assert!(capacity * geometry.in_pixels().max(geometry.out_pixels()) <= i32::MAX as usize, "{capacity} images");
        let forward_tile = Tile::for_channels(isa, geometry.out_channels);
        let taps_of = |pixel: usize| -> Vec<usize> {
            (0..geometry.n_taps()).filter(|&tap| !geometry.is_small() || geometry.read_by(pixel, tap) >= 0).collect()
        };
        // Tables are for the direct kernels alone.
        let forward = match algorithm {
            Algorithm::Winograd => Vec::new(),
            Algorithm::Direct => {
                let source = |pixel: usize, tap: usize| geometry.read_by(pixel, tap);
                groups(geometry.out_pixels(), capacity, forward_tile, taps_of, source)
            }
        };
        Plan {
            isa,
            geometry,
            capacity,
            algorithm,
            forward_tile,
            backward_tile: Tile::for_channels(isa, geometry.in_channels),
            forward,
            backward: OnceLock::new(),
            weight_sources: OnceLock::new(),
            zeros: vec![0.0; (6 * geometry.in_channels.max(geometry.out_channels)).max(MAX_TILE)],
        }
    }

    /// The shape.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn backward_groups(&self) -> &[Group] {
        self.backward.get_or_init(|| {
            let g = &self.geometry;
            let taps_of = |pixel: usize| -> Vec<usize> {
                let (row, column) = (pixel / g.width + g.padding, pixel % g.width + g.padding);
                // The window that reads a row through a tap starts at their difference, a multiple of the stride.
                let reaches = |tap: &usize| match g.is_small() {
                    true => g.reader_of(pixel, *tap) >= 0,
                    false => {
                        row % g.stride == tap / g.kernel % g.stride && column % g.stride == tap % g.kernel % g.stride
                    }
                };
                (0..g.n_taps()).filter(reaches).collect()
            };
            groups(g.in_pixels(), self.capacity, self.backward_tile, taps_of, |pixel, tap| g.reader_of(pixel, tap))
        })
    }

    fn weight_sources(&self) -> &[i32] {
        self.weight_sources.get_or_init(|| {
            let g = &self.geometry;
            let n_pixels = self.capacity * g.out_pixels();
            (0..g.n_taps()).flat_map(|tap| (0..n_pixels).map(move |pixel| g.read_by(pixel, tap))).collect()
        })
    }
}

/// Weights as kernels read them.
#[derive(Clone, Copy)]
pub struct Filter<'a> {
    /// [tap][in][out].
    pub weights: &'a [f32],
    /// [out]; the input gradient does without.
    pub bias: Option<&'a [f32]>,
    /// What [`pack_forward`] or [`pack_backward`] made of them.
    pub packed: &'a [f32],
}

/// Weights laid out for [`forward`]: [panel][tap][in][column of the panel], then the bias, [panel][column]; or
/// transformed, or nothing, as the algorithm wants it.
///
/// `weights` are [tap][in][out]. Allocates on the first call only.
pub fn pack_forward(plan: &Plan, weights: &[f32], bias: Option<&[f32]>, packed: &mut Vec<f32>) {
    let g = &plan.geometry;
    if plan.algorithm == Algorithm::Winograd {
        return winograd::pack(plan.isa, g, winograd::Direction::Forward, weights, packed);
    }
    let columns = plan.forward_tile.columns;
    let depth = g.n_taps() * g.in_channels;
    let n_panels = g.out_channels.div_ceil(columns);
    assert_eq!(weights.len(), g.n_weights(), "weights of {g:?}");
    packed.resize(n_panels * (depth + 1) * columns, 0.0);
    let (panels, biases) = packed.split_at_mut(n_panels * depth * columns);
    panels.par_chunks_mut(depth * columns).enumerate().for_each(|(panel, packed)| {
        let first = panel * columns;
        let width = columns.min(g.out_channels - first);
        for (row, packed) in packed.chunks_exact_mut(columns).enumerate() {
            packed[..width].copy_from_slice(&weights[row * g.out_channels + first..][..width]);
        }
    });
    if let Some(bias) = bias {
        biases[..g.out_channels].copy_from_slice(bias);
    }
}

/// Weights laid out for [`backward_input`]: [panel of in][tap][out][column of the panel]; or as above.
///
/// `weights` are [tap][in][out]. Allocates on the first call only.
pub fn pack_backward(plan: &Plan, weights: &[f32], packed: &mut Vec<f32>) {
    /// Output channels transposed at once: a cache line.
    const BLOCK: usize = 16;
    let g = &plan.geometry;
    if plan.algorithm == Algorithm::Winograd {
        return winograd::pack(plan.isa, g, winograd::Direction::Backward, weights, packed);
    }
    let columns = plan.backward_tile.columns;
    let n_panels = g.in_channels.div_ceil(columns);
    assert_eq!(weights.len(), g.n_weights(), "weights of {g:?}");
    packed.resize(n_panels * g.n_taps() * g.out_channels * columns, 0.0);
    packed.par_chunks_mut(g.out_channels * columns).enumerate().for_each(|(chunk, packed)| {
        let (first, tap) = (chunk / g.n_taps() * columns, chunk % g.n_taps());
        let width = columns.min(g.in_channels - first);
        for (block, packed) in packed.chunks_mut(BLOCK * columns).enumerate() {
            for i in 0..width {
                let start = (tap * g.in_channels + first + i) * g.out_channels + block * BLOCK;
                let row = &weights[start..][..packed.len() / columns];
                for (packed, &weight) in packed.chunks_exact_mut(columns).zip(row) {
                    packed[i] = weight;
                }
            }
        }
    });
}

/// Output of the first `n` images. `x` is [capacity, H, W, in], `y` at least [n, H', W', out].
pub fn forward(plan: &Plan, n: usize, x: &[f32], filter: &Filter, y: &mut [f32]) {
    let g = &plan.geometry;
    if plan.algorithm == Algorithm::Winograd {
        return plan.winograd(winograd::Direction::Forward, x, filter, Write::Replace).run(n, y);
    }
    let packed = filter.packed;
    let columns = plan.forward_tile.columns;
    let n_panels = g.out_channels.div_ceil(columns);
    let (panels, biases) = packed.split_at(n_panels * g.n_taps() * g.in_channels * columns);
    assert!(n <= plan.capacity && x.len() >= plan.capacity * g.in_pixels() * g.in_channels, "input of {g:?}");
    assert!(y.len() >= n * g.out_pixels() * g.out_channels && biases.len() == n_panels * columns, "output of {g:?}");
    let pass = Pass {
        plan,
        tile: plan.forward_tile,
        source: x,
        depth: g.in_channels,
        panels,
        biases: Some(biases),
        channels: g.out_channels,
        write: Write::Replace,
    };
    for group in &plan.forward {
        // Every image has the same number of pixels of each class.
        pass.run(group, group.pixels.len() / plan.capacity * n, y);
    }
}

/// Gradient on the input of the first `n` images. `dy` is [capacity, H', W', out], `dx` at least [n, H, W, in].
pub fn backward_input(plan: &Plan, n: usize, dy: &[f32], filter: &Filter, write: Write, dx: &mut [f32]) {
    let g = &plan.geometry;
    if plan.algorithm == Algorithm::Winograd {
        let filter = Filter { bias: None, ..*filter };
        return plan.winograd(winograd::Direction::Backward, dy, &filter, write).run(n, dx);
    }
    let packed = filter.packed;
    let columns = plan.backward_tile.columns;
    assert!(n <= plan.capacity && dy.len() >= plan.capacity * g.out_pixels() * g.out_channels, "gradient of {g:?}");
    assert!(dx.len() >= n * g.in_pixels() * g.in_channels, "input gradient of {g:?}");
    assert!(
        packed.len() == g.in_channels.div_ceil(columns) * g.n_taps() * g.out_channels * columns,
        "weights of {g:?}"
    );
    let pass = Pass {
        plan,
        tile: plan.backward_tile,
        source: dy,
        depth: g.out_channels,
        panels: packed,
        biases: None,
        channels: g.in_channels,
        write,
    };
    for group in plan.backward_groups() {
        pass.run(group, group.pixels.len() / plan.capacity * n, dx);
    }
}

thread_local! {
    /// Pointers of the tiles in work. Kept from call to call; nothing below borrows it twice.
    static POINTERS: RefCell<Vec<*const f32>> = const { RefCell::new(Vec::new()) };
}

/// A destination that threads write to at places of their own.
#[derive(Clone, Copy)]
struct Shared(*mut f32);
// SAFETY: the users below hand each thread its own rows.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// Through a method, so that closures capture the whole and not the bare pointer.
    fn get(self) -> *mut f32 {
        self.0
    }
}

/// The largest window is 11 x 11.
pub const MAX_TAPS: usize = 121;

/// One run of the gather kernel over a batch; lengths were checked by the callers.
struct Pass<'a> {
    plan: &'a Plan,
    tile: Tile,
    source: &'a [f32],
    /// Channels of a source pixel.
    depth: usize,
    panels: &'a [f32],
    biases: Option<&'a [f32]>,
    /// Channels of a destination pixel.
    channels: usize,
    write: Write,
}

impl Pass<'_> {
    /// Computes the group's first `n_pixels` pixels of `destination`.
    fn run(&self, group: &Group, n_pixels: usize, destination: &mut [f32]) {
        /// Tiles that share a panel of weights before the next is fetched; their pixels stay in L2.
        const MAX_TILES: usize = 64;
        let n_tiles = n_pixels.div_ceil(self.tile.rows);
        let per_job = n_tiles.div_ceil(rayon::current_num_threads() * 4).clamp(1, MAX_TILES);
        let destination = Shared(destination.as_mut_ptr());
        (0..n_tiles.div_ceil(per_job)).into_par_iter().for_each(|job| {
            let tiles = job * per_job..((job + 1) * per_job).min(n_tiles);
            POINTERS.with_borrow_mut(|pointers| self.run_tiles(group, n_pixels, tiles, pointers, destination));
        });
    }

    fn run_tiles(
        &self,
        group: &Group,
        n_pixels: usize,
        tiles: std::ops::Range<usize>,
        pointers: &mut Vec<*const f32>,
        destination: Shared,
    ) {
        let Tile { rows, columns } = self.tile;
        let n_taps = group.taps.len();
        let per_tile = n_taps * rows;
        pointers.clear();
        let sources = &group.sources[tiles.start * per_tile..tiles.end * per_tile];
        pointers.extend(sources.iter().map(|&pixel| self.plan.pixel(self.source, self.depth, pixel)));
        let all_taps = self.plan.geometry.n_taps();
        let mut offsets = [0usize; MAX_ROWS];
        let mut panel_taps = [std::ptr::null::<f32>(); MAX_TAPS];
        let mut patch = [0.0f32; MAX_TILE];
        for (panel, first) in (0..self.channels).step_by(columns).enumerate() {
            let width = columns.min(self.channels - first);
            let is_whole = width == columns;
            for (pointer, &tap) in panel_taps.iter_mut().zip(&group.taps) {
                *pointer = self.panels[(panel * all_taps + tap) * self.depth * columns..].as_ptr();
            }
            let bias = self.biases.map_or(&self.plan.zeros[..columns], |biases| &biases[first..first + columns]);
            for (i, tile) in tiles.clone().enumerate() {
                let pixels = &group.pixels[tile * rows..n_pixels.min((tile + 1) * rows)];
                for (row, (offset, &pixel)) in offsets.iter_mut().zip(pixels).enumerate() {
                    *offset = if is_whole { pixel as usize * self.channels + first } else { row * columns };
                }
                let call = Gather {
                    n_taps,
                    depth: self.depth,
                    sources: pointers[i * per_tile..].as_ptr(),
                    weights: panel_taps.as_ptr(),
                    bias: bias.as_ptr(),
                    destination: if is_whole { destination.get() } else { patch.as_mut_ptr() },
                    offsets: offsets.as_ptr(),
                    rows: pixels.len(),
                    add: is_whole && self.write == Write::Add,
                };
                // SAFETY: the pointer tables are as long as `Gather` says; their pixels were checked by `pixel`;
                // destination pixels lie below `n_pixels`, which the callers checked against the length, and belong
                // to this tile alone; an edge panel writes to `patch`, which holds `rows * columns` values.
                unsafe { micro::gather(self.plan.isa, self.tile, &call) };
                if !is_whole {
                    for (row, &pixel) in pixels.iter().enumerate() {
                        for j in 0..width {
                            // SAFETY: as above, for the `width` channels from `first` on.
                            unsafe {
                                let value = destination.get().add(pixel as usize * self.channels + first + j);
                                let before = if self.write == Write::Add { *value } else { 0.0 };
                                *value = before + patch[row * columns + j];
                            }
                        }
                    }
                }
            }
        }
    }
}

impl Plan {
    fn winograd<'a>(
        &'a self,
        direction: winograd::Direction,
        source: &'a [f32],
        filter: &Filter<'a>,
        write: Write,
    ) -> winograd::Pass<'a> {
        winograd::Pass {
            isa: self.isa,
            geometry: &self.geometry,
            direction,
            source,
            weights: filter.weights,
            packed: filter.packed,
            bias: filter.bias,
            write,
            zeros: &self.zeros,
        }
    }

    /// A pointer to a pixel of `values`, or to zeros for -1.
    #[inline(always)]
    fn pixel(&self, values: &[f32], channels: usize, pixel: i32) -> *const f32 {
        let zeros = self.zeros.as_ptr();
        // Both computed, one selected: the loop over a table vectorises. A wrapping pointer may point anywhere as long
        // as it is not read.
        let inside = values.as_ptr().wrapping_offset(pixel as isize * channels as isize);
        if pixel < 0 { zeros } else { inside }
    }
}

/// Gradient on the weights, [tap][in][out], summed over the first `n` images. `x` is [capacity, H, W, in], `dy` at
/// least [n, H', W', out]. `dw` is overwritten.
pub fn backward_weights(plan: &Plan, n: usize, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    let g = &plan.geometry;
    if plan.algorithm == Algorithm::Winograd {
        return winograd::weight_gradient(plan.isa, g, n, (x, dy, &plan.zeros), dw);
    }
    let n_pixels = n * g.out_pixels();
    assert!(n <= plan.capacity && x.len() >= plan.capacity * g.in_pixels() * g.in_channels, "input of {g:?}");
    assert!(dy.len() >= n_pixels * g.out_channels && dw.len() == g.n_weights(), "gradients of {g:?}");
    gradient::weight_gradient(plan, n, x, dy, dw);
}

/// The largest multiple of 16 up to `limit` that divides `channels`, itself a multiple of 16.
fn largest_share(channels: usize, limit: usize) -> usize {
    (1..=limit / 16).rev().map(|n| n * 16).find(|&share| channels.is_multiple_of(share)).unwrap_or(16)
}

#[cfg(test)]
mod tests;
