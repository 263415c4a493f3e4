//! Convolution with 3x3 windows at stride 1 by F(4x4, 3x3): 36 products for 16 outputs instead of 144.
//!
//! Winograd's minimal filtering as in Lavin & Gray 2016 (arXiv:1509.09308): cut the output into tiles of 4x4, transform
//! the 6x6 inputs that each depends on, multiply position by position (36 matrix products, tiles by input channels by
//! output channels), transform back. The input gradient is the same with turned windows. The weight gradient is the
//! transpose of the forward pass: with inputs B'dB and output gradients A y A', it is G' (their products, summed over
//! tiles) G, so it too costs 36 products for 144. Its price is rounding: with normal weights and rectified normal inputs
//! an output's error is typically 7e-7 of the outputs' RMS at 64 channels and 1e-6 at 512 (plain f32 sums: 1e-7 and
//! 2e-7), the largest of some 25,000 4e-6 and 8e-6.
//!
//! A job takes a block of tiles through all three steps, so that what lies between them stays in L2. With few channels
//! the transformed weights are made once and shared; with many, where they are larger than a cache and tiles are few,
//! each job makes those of its own output channels and keeps them for all tiles.
//!
//! Where a tile reaches over the edge, zeros are read and results dropped.
#![allow(unsafe_code)]
// Loops of constant length over index and pointer alike stay in registers; iterators read worse here.
#![allow(clippy::needless_range_loop)]

mod transform;

use super::product::{self, Outer, Panel, Tile};
use super::scratch::{LOCAL, PARTS, SUMS, with_scratch};
use super::{Geometry, Shared, largest_share};
use crate::kernels::simd::{Vector, vectorised};
use crate::kernels::{Isa, Write};
use rayon::prelude::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m256, __m512};
use std::ops::Range;
use transform::{IN, OUT, POSITIONS};

/// Channels come in multiples of this: the widest vector.
const LANES: usize = 16;
/// Floats between two positions beyond what they hold: 36 streams a power of two apart would share one set of L1.
const SKEW: usize = 16;
/// Transformed weights of up to this many values (128 x 128 channels) are made once and shared by all jobs.
const SHARED_WEIGHTS: usize = POSITIONS * 128 * 128;
/// Output channels of a job that makes its own weights, at most.
const GROUP: usize = 64;

/// Whether this algorithm can run a convolution.
pub(super) fn covers(g: &Geometry) -> bool {
    (g.kernel, g.stride, g.padding) == (3, 1, 1)
        && g.in_channels.is_multiple_of(LANES)
        && g.out_channels.is_multiple_of(LANES)
}

/// Whether it is chosen where it can run. A tile spends 36 products on an image of 2x2, the direct kernel 16.
pub(super) fn pays(g: &Geometry) -> bool {
    covers(g) && g.height > 2 && g.width > 2
}

/// Which way images flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// Input to output.
    Forward,
    /// Output gradient to input gradient.
    Backward,
}

/// One direction of one convolution: `depth` channels come in, `channels` go out.
#[derive(Clone, Copy)]
struct Sizes {
    depth: usize,
    channels: usize,
}

impl Direction {
    fn sizes(self, g: &Geometry) -> Sizes {
        match self {
            Direction::Forward => Sizes { depth: g.in_channels, channels: g.out_channels },
            Direction::Backward => Sizes { depth: g.out_channels, channels: g.in_channels },
        }
    }
}

/// Tiles of an image.
#[derive(Clone, Copy)]
struct Grid {
    height: usize,
    width: usize,
    rows: usize,
    columns: usize,
}

impl Grid {
    fn new(g: &Geometry) -> Grid {
        Grid { height: g.height, width: g.width, rows: g.height.div_ceil(OUT), columns: g.width.div_ceil(OUT) }
    }

    fn tiles(&self) -> usize {
        self.rows * self.columns
    }

    /// Image of a tile, and the row and column of its first output.
    fn place(&self, tile: usize) -> (usize, usize, usize) {
        let (image, rest) = (tile / self.tiles(), tile % self.tiles());
        (image, rest / self.columns * OUT, rest % self.columns * OUT)
    }
}

/// Whether jobs share the transformed weights.
fn shares_weights(g: &Geometry) -> bool {
    POSITIONS * g.in_channels * g.out_channels <= SHARED_WEIGHTS
}

/// Transforms the weights, [tap][in][out], where all jobs share them; leaves `packed` empty otherwise.
pub(super) fn pack(isa: Isa, g: &Geometry, direction: Direction, weights: &[f32], packed: &mut Vec<f32>) {
    if !shares_weights(g) {
        return;
    }
    let Sizes { depth, channels } = direction.sizes(g);
    let slab = depth * channels + SKEW;
    packed.resize(POSITIONS * slab, 0.0);
    let columns = Tile::for_columns(isa, channels).columns;
    let to = Shared(packed.as_mut_ptr());
    (0..channels / columns).into_par_iter().for_each(|panel| {
        let call = Windows { geometry: g, direction, weights, first: panel * columns, columns, slab };
        // SAFETY: the weights have the geometry's size; each panel has `depth * columns` values of each slab.
        unsafe { windows(isa, &call, to.get().add(panel * depth * columns)) };
    });
}

/// One panel of weights to be transformed.
struct Windows<'a> {
    geometry: &'a Geometry,
    direction: Direction,
    /// [tap][in][out].
    weights: &'a [f32],
    /// First channel of the panel.
    first: usize,
    /// Channels of the panel.
    columns: usize,
    /// Distance between positions.
    slab: usize,
}

vectorised! {
    /// Writes [position][depth][column] of one panel.
    unsafe fn windows(call: &Windows<'_>, to: *mut f32) = windows_of<[[f32; 8]], [__m256], [__m512]>
}

/// # Safety
/// `to` is valid for writing `depth * columns` values at each multiple of the slab.
#[inline(always)]
unsafe fn windows_of<V: Vector>(call: &Windows<'_>, to: *mut f32) {
    /// Rows turned at once.
    const BLOCK: usize = 16;
    /// Columns of the widest panel.
    const MAX_COLUMNS: usize = 32;
    let g = call.geometry;
    let depth = call.direction.sizes(g).depth;
    let taps = g.in_channels * g.out_channels;
    assert_eq!(call.weights.len(), 9 * taps, "weights of {g:?}");
    let weights = call.weights.as_ptr();
    // SAFETY: reads stay inside the weights: taps below 9, channels below their numbers; writes as the caller vouches.
    unsafe {
        let mut turned = [0.0f32; 9 * BLOCK * MAX_COLUMNS];
        for block in (0..depth).step_by(BLOCK) {
            // Nine taps of `BLOCK` rows, one row behind the other.
            let (from, tap_stride, row_stride) = match call.direction {
                Direction::Forward => (weights.add(block * g.out_channels + call.first), taps, g.out_channels),
                Direction::Backward => {
                    for tap in 0..9 {
                        let from = weights.add((8 - tap) * taps + call.first * g.out_channels + block);
                        let to = turned.as_mut_ptr().add(tap * BLOCK * call.columns);
                        turn::<V>(from, g.out_channels, BLOCK, call.columns, to);
                    }
                    (turned.as_ptr(), BLOCK * call.columns, call.columns)
                }
            };
            for row in 0..BLOCK {
                for column in (0..call.columns).step_by(V::WIDTH) {
                    let from = from.add(row * row_stride + column);
                    let mut half = [[V::zero(); 3]; IN];
                    for x in 0..3 {
                        let g = transform::window([
                            V::load(from.add(x * tap_stride)),
                            V::load(from.add((3 + x) * tap_stride)),
                            V::load(from.add((6 + x) * tap_stride)),
                        ]);
                        for y in 0..IN {
                            half[y][x] = g[y];
                        }
                    }
                    let to = to.add((block + row) * call.columns + column);
                    for y in 0..IN {
                        let values = transform::window(half[y]);
                        for x in 0..IN {
                            values[x].store(to.add((y * IN + x) * call.slab));
                        }
                    }
                }
            }
        }
    }
}

/// Transposes `rows` columns of `columns` rows that lie `stride` apart: `to[row][column] = from[column][row]`.
///
/// # Safety
/// Pointers are valid for these sizes, multiples of 8.
#[inline(always)]
unsafe fn turn<V: Vector>(from: *const f32, stride: usize, rows: usize, columns: usize, to: *mut f32) {
    for column in (0..columns).step_by(8) {
        for row in (0..rows).step_by(8) {
            // SAFETY: inside the sizes.
            unsafe { V::turn8(from.add(column * stride + row), stride, to.add(row * columns + column), columns) };
        }
    }
}

/// What a pass over images computes with.
pub(super) struct Pass<'a> {
    pub(super) isa: Isa,
    pub(super) geometry: &'a Geometry,
    pub(super) direction: Direction,
    /// [n, H, W, depth].
    pub(super) source: &'a [f32],
    /// [tap][in][out].
    pub(super) weights: &'a [f32],
    /// What [`pack`] left.
    pub(super) packed: &'a [f32],
    /// [channels].
    pub(super) bias: Option<&'a [f32]>,
    pub(super) write: Write,
    /// At least six pixels of the larger number of channels.
    pub(super) zeros: &'a [f32],
}

impl Pass<'_> {
    /// Computes `n` images of `destination`, [n, H, W, channels].
    pub(super) fn run(&self, n: usize, destination: &mut [f32]) {
        let g = self.geometry;
        let Sizes { depth, channels } = self.direction.sizes(g);
        let grid = Grid::new(g);
        let n_tiles = n * grid.tiles();
        let pixels = n * g.height * g.width;
        assert!(self.source.len() >= pixels * depth && destination.len() >= pixels * channels, "images of {g:?}");
        assert!(self.zeros.len() >= IN * depth.max(channels), "zeros of {g:?}");
        let group = if shares_weights(g) { channels } else { largest_share(channels, GROUP) };
        let tile = Tile::for_columns(self.isa, group);
        let per_block = block_of(depth, group, tile, n_tiles);
        let n_blocks = n_tiles.div_ceil(per_block);
        let n_groups = channels / group;
        // Shared weights: every block is a job. Own weights: as few jobs as keep the threads busy. How tiles are cut
        // changes no output.
        let per_job = match n_groups {
            1 => 1,
            _ => n_blocks.div_ceil((2 * rayon::current_num_threads()).div_ceil(n_groups)),
        };
        let jobs_per_group = n_blocks.div_ceil(per_job);
        let destination = Shared(destination.as_mut_ptr());
        (0..n_groups * jobs_per_group).into_par_iter().for_each(|job| {
            let first = job / jobs_per_group * group;
            let blocks = job % jobs_per_group * per_job..n_blocks.min((job % jobs_per_group + 1) * per_job);
            let tiles = blocks.start * per_block..n_tiles.min(blocks.end * per_block);
            self.job(grid, tile, first..first + group, tiles, per_block, destination);
        });
    }

    fn job(
        &self,
        grid: Grid,
        tile: Tile,
        group: Range<usize>,
        tiles: Range<usize>,
        per_block: usize,
        destination: Shared,
    ) {
        let Sizes { depth, channels } = self.direction.sizes(self.geometry);
        let width = group.len();
        let weight_slab = depth * width + SKEW;
        let (in_slab, out_slab) = (per_block * depth + SKEW, per_block * width + SKEW);
        let own_weights = if self.packed.is_empty() { POSITIONS * weight_slab } else { 0 };
        with_scratch(&LOCAL, POSITIONS * (in_slab + out_slab) + own_weights, |scratch| {
            let (inputs, rest) = scratch.split_at_mut(POSITIONS * in_slab);
            let (products, own) = rest.split_at_mut(POSITIONS * out_slab);
            for panel in 0..if own.is_empty() { 0 } else { width / tile.columns } {
                let call = Windows {
                    geometry: self.geometry,
                    direction: self.direction,
                    weights: self.weights,
                    first: group.start + panel * tile.columns,
                    columns: tile.columns,
                    slab: weight_slab,
                };
                // SAFETY: `own` holds 36 slabs of `depth * width` values.
                unsafe { windows(self.isa, &call, own.as_mut_ptr().add(panel * depth * tile.columns)) };
            }
            let weights = if own.is_empty() { self.packed } else { own };
            assert!(weights.len() >= POSITIONS * weight_slab, "transformed weights of {:?}", self.geometry);
            for start in tiles.clone().step_by(per_block) {
                let block = start..tiles.end.min(start + per_block);
                let rows = block.len().next_multiple_of(tile.rows);
                let call = Images {
                    grid,
                    tiles: block.clone(),
                    channels: depth,
                    part: 0..depth,
                    slab: in_slab,
                    zeros: self.zeros.as_ptr(),
                };
                // SAFETY: sizes were checked by `run`; `inputs` and `products` hold 36 slabs of `per_block` rows, a
                // multiple of the tile's; the block's outputs belong to this job alone.
                unsafe {
                    inputs_of_tiles(self.isa, &call, self.source.as_ptr(), inputs.as_mut_ptr());
                    for position in 0..POSITIONS {
                        for panel in 0..width / tile.columns {
                            let call = Panel {
                                rows,
                                depth,
                                a: inputs.as_ptr().add(position * in_slab),
                                b: weights.as_ptr().add(position * weight_slab + panel * depth * tile.columns),
                                c: products.as_mut_ptr().add(position * out_slab + panel * tile.columns),
                                c_stride: width,
                            };
                            product::panel(self.isa, tile, &call);
                        }
                    }
                    let call = Images { channels, part: group.clone(), slab: out_slab, ..call };
                    let from = products.as_ptr();
                    let bias = self.bias.map_or(std::ptr::null(), |bias| bias[group.clone()].as_ptr());
                    outputs_of_tiles(self.isa, &call, from, bias, self.write == Write::Add, destination.get());
                }
            }
        });
    }
}

/// Tiles of one block: as many as share L2 with their products; at least some, so that weights are read seldom.
fn block_of(depth: usize, width: usize, tile: Tile, n_tiles: usize) -> usize {
    const BUDGET: usize = 112 * 1024;
    (BUDGET / (POSITIONS * (depth + width))).clamp(24, 96).min(n_tiles).next_multiple_of(tile.rows)
}

/// A run of tiles and where their channels lie.
#[derive(Clone)]
struct Images {
    grid: Grid,
    tiles: Range<usize>,
    /// Channels of a pixel.
    channels: usize,
    /// Those that are meant.
    part: Range<usize>,
    /// Distance between positions on the other side.
    slab: usize,
    /// Six pixels of zeros.
    zeros: *const f32,
}

impl Images {
    /// The pixels of a tile's rows and columns from `(top, left)` on, `N` each way: a pointer to each row's first
    /// column, zeros for rows outside, and the range of columns that lie inside.
    #[inline(always)]
    fn window<const N: usize>(
        &self,
        from: *const f32,
        image: usize,
        top: isize,
        left: isize,
    ) -> ([*const f32; N], Range<usize>) {
        let (height, width) = (self.grid.height as isize, self.grid.width as isize);
        let rows = std::array::from_fn(|r| {
            let row = top + r as isize;
            if row < 0 || row >= height {
                return self.zeros;
            }
            let pixel = (image as isize * height + row) * width + left;
            from.wrapping_offset(pixel * self.channels as isize + self.part.start as isize)
        });
        let columns = (-left).max(0) as usize..(width - left).clamp(0, N as isize) as usize;
        (rows, columns)
    }
}

vectorised! {
    /// B'dB of every tile: [position][tile][channel of the part].
    unsafe fn inputs_of_tiles(call: &Images, from: *const f32, to: *mut f32)
        = inputs_of_tiles_in<[[f32; 8]], [__m256], [__m512]>
}

/// # Safety
/// `from` holds the images of the tiles; `to` has room for the tiles in every slab.
#[inline(always)]
unsafe fn inputs_of_tiles_in<V: Vector>(call: &Images, from: *const f32, to: *mut f32) {
    let width = call.part.len();
    for (i, tile) in call.tiles.clone().enumerate() {
        let (image, top, left) = call.grid.place(tile);
        let (rows, inside) = call.window::<IN>(from, image, top as isize - 1, left as isize - 1);
        for c in (0..width).step_by(V::WIDTH) {
            // SAFETY: rows and columns inside the image, or zeros; `to` as the caller vouches.
            unsafe {
                let mut half = [[V::zero(); IN]; IN];
                for x in 0..IN {
                    if inside.contains(&x) {
                        let at = x * call.channels + c;
                        let column = transform::input(std::array::from_fn(|y| V::load(rows[y].wrapping_add(at))));
                        for y in 0..IN {
                            half[y][x] = column[y];
                        }
                    }
                }
                let to = to.add(i * width + c);
                for y in 0..IN {
                    let row = transform::input(half[y]);
                    for x in 0..IN {
                        row[x].store(to.add((y * IN + x) * call.slab));
                    }
                }
            }
        }
    }
}

vectorised! {
    /// A'mA of every tile into the images' part, plus the bias of the part unless it is null.
    unsafe fn outputs_of_tiles(call: &Images, from: *const f32, bias: *const f32, add: bool, to: *mut f32)
        = outputs_of_tiles_in<[[f32; 8]], [__m256], [__m512]>
}

/// # Safety
/// `from` holds the tiles in every slab; `to` the images, whose outputs nobody else touches.
#[inline(always)]
unsafe fn outputs_of_tiles_in<V: Vector>(call: &Images, from: *const f32, bias: *const f32, add: bool, to: *mut f32) {
    let width = call.part.len();
    let Grid { height, width: image_width, .. } = call.grid;
    for (i, tile) in call.tiles.clone().enumerate() {
        let (image, top, left) = call.grid.place(tile);
        let (n_rows, n_columns) = (OUT.min(height - top), OUT.min(image_width - left));
        let pixel = (image * height + top) * image_width + left;
        for c in (0..width).step_by(V::WIDTH) {
            // SAFETY: as the caller vouches; rows and columns stay inside the image.
            unsafe {
                let from = from.add(i * width + c);
                let to = to.add(pixel * call.channels + call.part.start + c);
                let mut half = [[V::zero(); IN]; OUT];
                for x in 0..IN {
                    let load = |y: usize| V::load(from.add((y * IN + x) * call.slab));
                    let column = transform::output(std::array::from_fn(load));
                    for y in 0..OUT {
                        half[y][x] = column[y];
                    }
                }
                let bias = if bias.is_null() { V::zero() } else { V::load(bias.add(c)) };
                for y in 0..OUT {
                    if y < n_rows {
                        let row = transform::output(half[y]);
                        for x in 0..OUT {
                            if x < n_columns {
                                let to = to.add((y * image_width + x) * call.channels);
                                let value = row[x].plus(bias);
                                let value = if add { value.plus(V::load(to)) } else { value };
                                value.store(to);
                            }
                        }
                    }
                }
            }
        }
    }
}

vectorised! {
    /// A y A' of every tile: [position][tile][channel of the part].
    unsafe fn gradients_of_tiles(call: &Images, from: *const f32, to: *mut f32)
        = gradients_of_tiles_in<[[f32; 8]], [__m256], [__m512]>
}

/// # Safety
/// As [`inputs_of_tiles_in`].
#[inline(always)]
unsafe fn gradients_of_tiles_in<V: Vector>(call: &Images, from: *const f32, to: *mut f32) {
    let width = call.part.len();
    for (i, tile) in call.tiles.clone().enumerate() {
        let (image, top, left) = call.grid.place(tile);
        let (rows, inside) = call.window::<OUT>(from, image, top as isize, left as isize);
        for c in (0..width).step_by(V::WIDTH) {
            // SAFETY: as in `inputs_of_tiles_in`.
            unsafe {
                let mut half = [[V::zero(); OUT]; IN];
                for x in 0..OUT {
                    if inside.contains(&x) {
                        let at = x * call.channels + c;
                        let load = |y: usize| V::load(rows[y].wrapping_add(at));
                        let column = transform::output_gradient(std::array::from_fn(load));
                        for y in 0..IN {
                            half[y][x] = column[y];
                        }
                    }
                }
                let to = to.add(i * width + c);
                for y in 0..IN {
                    let row = transform::output_gradient(half[y]);
                    for x in 0..IN {
                        row[x].store(to.add((y * IN + x) * call.slab));
                    }
                }
            }
        }
    }
}

/// How the weight gradient is cut, by shape and batch alone.
struct Cut {
    /// Input and output channels of a job.
    rows: usize,
    columns: usize,
    /// Parts of the tiles, each summed on its own; their sums are added in order.
    n_parts: usize,
    /// Tiles of a part.
    per_part: usize,
    /// Tiles at once.
    per_block: usize,
}

impl Cut {
    fn new(g: &Geometry, n_tiles: usize) -> Cut {
        /// Sums of all parts together, in values (4 MiB).
        const PARTIALS: usize = 1 << 20;
        let (rows, columns) = (largest_share(g.in_channels, 128), largest_share(g.out_channels, 128));
        let sums = POSITIONS * g.in_channels * g.out_channels;
        let n_parts = (PARTIALS / sums).clamp(1, 16).min(n_tiles.div_ceil(32));
        let per_part = n_tiles.div_ceil(n_parts);
        let per_block = (112 * 1024 / (POSITIONS * (rows + columns))).clamp(32, 96).min(per_part);
        Cut { rows, columns, n_parts: n_tiles.div_ceil(per_part), per_part, per_block }
    }
}

/// Gradient on the weights, [tap][in][out], of `n` images; `x` is [n, H, W, in], `dy` [n, H, W, out].
pub(super) fn weight_gradient(
    isa: Isa,
    g: &Geometry,
    n: usize,
    (x, dy, zeros): (&[f32], &[f32], &[f32]),
    dw: &mut [f32],
) {
    let grid = Grid::new(g);
    let n_tiles = n * grid.tiles();
    let pixels = n * g.height * g.width;
    assert!(x.len() >= pixels * g.in_channels && dy.len() >= pixels * g.out_channels, "images of {g:?}");
    assert!(dw.len() == g.n_weights() && zeros.len() >= IN * g.in_channels.max(g.out_channels), "weights of {g:?}");
    let cut = Cut::new(g, n_tiles);
    let (n_rows, n_columns) = (g.in_channels / cut.rows, g.out_channels / cut.columns);
    let dw = Shared(dw.as_mut_ptr());
    let slab = cut.rows * cut.columns + SKEW;
    let sums_of = |part: usize, row: usize, column: usize, sums: *mut f32| {
        let call = Sums {
            isa,
            grid,
            tiles: part * cut.per_part..n_tiles.min((part + 1) * cut.per_part),
            per_block: cut.per_block,
            x: (x, g.in_channels, row * cut.rows..(row + 1) * cut.rows),
            dy: (dy, g.out_channels, column * cut.columns..(column + 1) * cut.columns),
            zeros,
            slab,
        };
        call.run(sums);
    };
    let finish = |n_parts: usize, rows: Range<usize>, row: usize, column: usize, sums: *const f32| {
        let call = Finish {
            geometry: g,
            n_parts,
            rows,
            columns: cut.columns,
            first: (row * cut.rows, column * cut.columns),
            slab,
            part_stride: POSITIONS * slab,
        };
        // SAFETY: the sums are 36 slabs a part; rows and columns of `dw` belong to this job alone.
        unsafe { window_gradients(isa, &call, sums, dw.get()) };
    };
    if cut.n_parts == 1 {
        (0..n_rows * n_columns).into_par_iter().for_each(|job| {
            let (row, column) = (job / n_columns, job % n_columns);
            with_scratch(&SUMS, POSITIONS * slab, |sums| {
                sums_of(0, row, column, sums.as_mut_ptr());
                finish(1, 0..cut.rows, row, column, sums.as_ptr());
            });
        });
        return;
    }
    let per_group = cut.n_parts * POSITIONS * slab;
    with_scratch(&PARTS, n_rows * n_columns * per_group, |sums| {
        let shared = Shared(sums.as_mut_ptr());
        (0..n_rows * n_columns * cut.n_parts).into_par_iter().for_each(|job| {
            let (group, part) = (job / cut.n_parts, job % cut.n_parts);
            // SAFETY: every job has sums of its own.
            let sums = unsafe { shared.get().add(job * POSITIONS * slab) };
            sums_of(part, group / n_columns, group % n_columns, sums);
        });
        let row_jobs = cut.rows.div_ceil(LANES);
        (0..n_rows * n_columns * row_jobs).into_par_iter().for_each(|job| {
            let (group, rows) = (job / row_jobs, job % row_jobs * LANES);
            // SAFETY: inside the sums.
            let sums = unsafe { shared.get().add(group * per_group) };
            finish(cut.n_parts, rows..cut.rows.min(rows + LANES), group / n_columns, group % n_columns, sums);
        });
    });
}

/// Sums of products over tiles for a block of input by output channels.
struct Sums<'a> {
    isa: Isa,
    grid: Grid,
    tiles: Range<usize>,
    per_block: usize,
    /// Images, channels of a pixel, those that are meant.
    x: (&'a [f32], usize, Range<usize>),
    dy: (&'a [f32], usize, Range<usize>),
    zeros: &'a [f32],
    slab: usize,
}

impl Sums<'_> {
    /// Writes [position][in][out] to `sums`.
    fn run(&self, sums: *mut f32) {
        let (rows, columns) = (self.x.2.len(), self.dy.2.len());
        let (x_slab, dy_slab) = (self.per_block * rows + SKEW, self.per_block * columns + SKEW);
        with_scratch(&LOCAL, POSITIONS * (x_slab + dy_slab), |scratch| {
            let (inputs, gradients) = scratch.split_at_mut(POSITIONS * x_slab);
            for start in self.tiles.clone().step_by(self.per_block) {
                let tiles = start..self.tiles.end.min(start + self.per_block);
                let of = |(_, channels, part): &(&[f32], usize, Range<usize>), slab: usize| Images {
                    grid: self.grid,
                    tiles: tiles.clone(),
                    channels: *channels,
                    part: part.clone(),
                    slab,
                    zeros: self.zeros.as_ptr(),
                };
                // SAFETY: the caller checked the images; the scratch holds 36 slabs of `per_block` tiles each, `sums`
                // 36 slabs of `rows * columns` values that are this job's.
                unsafe {
                    inputs_of_tiles(self.isa, &of(&self.x, x_slab), self.x.0.as_ptr(), inputs.as_mut_ptr());
                    let call = of(&self.dy, dy_slab);
                    gradients_of_tiles(self.isa, &call, self.dy.0.as_ptr(), gradients.as_mut_ptr());
                    for position in 0..POSITIONS {
                        let call = Outer {
                            n: tiles.len(),
                            rows,
                            columns,
                            a: inputs.as_ptr().add(position * x_slab),
                            b: gradients.as_ptr().add(position * dy_slab),
                            c: sums.add(position * self.slab),
                            add: start > self.tiles.start,
                        };
                        product::outer(self.isa, &call);
                    }
                }
            }
        });
    }
}

/// Sums to be turned into weight gradients.
struct Finish<'a> {
    geometry: &'a Geometry,
    n_parts: usize,
    /// Rows of the sums to finish.
    rows: Range<usize>,
    /// Columns of the sums.
    columns: usize,
    /// Input and output channel of the first sum.
    first: (usize, usize),
    slab: usize,
    part_stride: usize,
}

vectorised! {
    /// G' z G of the sums over parts z.
    unsafe fn window_gradients(call: &Finish<'_>, from: *const f32, dw: *mut f32)
        = window_gradients_of<[[f32; 8]], [__m256], [__m512]>
}

/// # Safety
/// `from` holds 36 slabs for each part, `dw` the weights' gradient.
#[inline(always)]
unsafe fn window_gradients_of<V: Vector>(call: &Finish<'_>, from: *const f32, dw: *mut f32) {
    let g = call.geometry;
    for row in call.rows.clone() {
        for column in (0..call.columns).step_by(V::WIDTH) {
            // SAFETY: as the caller vouches.
            unsafe {
                let from = from.add(row * call.columns + column);
                let mut half = [[V::zero(); IN]; 3];
                for x in 0..IN {
                    let mut z = [V::zero(); IN];
                    for (y, z) in z.iter_mut().enumerate() {
                        let from = from.add((y * IN + x) * call.slab);
                        *z = V::load(from);
                        for part in 1..call.n_parts {
                            *z = z.plus(V::load(from.add(part * call.part_stride)));
                        }
                    }
                    let z = transform::window_gradient(z);
                    for y in 0..3 {
                        half[y][x] = z[y];
                    }
                }
                let at = (call.first.0 + row) * g.out_channels + call.first.1 + column;
                for y in 0..3 {
                    let values = transform::window_gradient(half[y]);
                    for x in 0..3 {
                        values[x].store(dw.add((y * 3 + x) * g.in_channels * g.out_channels + at));
                    }
                }
            }
        }
    }
}
