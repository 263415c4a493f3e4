//! Images on their way into a network: packed uint8 to normalised f32, moved, mirrored and with a hole, in one pass.
//!
//! A [`View`] says what is seen of an image; [`write`] computes `value * scale + shift` for it. Work goes by blocks of
//! eight pixels, 24 values: the least common multiple of three channels and eight lanes, so that a lane's channel is
//! known when the code is compiled. The last block of a stretch overlaps the one before it instead of a loop over
//! single values, and black borders are written in whole blocks before the pixels beside them.

use super::isa::multiversion;
use std::ops::Range;

/// Values that are computed at a time: eight pixels of three channels.
pub const BLOCK: usize = 24;

/// What is seen of an image. The target shows, at row y and column x, row `y + down` and column `x + right` of the
/// source, black outside of it; then it is mirrored left to right, then the hole is cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Rows that the window lies lower than the source.
    pub down: isize,
    /// Columns that the window lies further right than the source.
    pub right: isize,
    /// Whether columns run from right to left.
    pub mirrored: bool,
    /// Rows and columns of the target that become 0, within the image; empty for no hole.
    pub hole: (Range<usize>, Range<usize>),
}

impl View {
    /// The image as it is.
    pub const WHOLE: View = View { down: 0, right: 0, mirrored: false, hole: (0..0, 0..0) };
}

/// `value * scale + shift` per channel, channel i % 3 at place i.
#[derive(Clone, Debug)]
pub struct Affine {
    /// Factors.
    pub scale: [f32; BLOCK],
    /// Summands: also what a black pixel becomes.
    pub shift: [f32; BLOCK],
}

multiversion! {
    /// Writes the view of `source` u8 [H, W, 3], (H, W) being `size`, into `target` f32 [H, W, 3].
    pub fn write(source: &[u8], size: (usize, usize), view: &View, affine: &Affine, target: &mut [f32]) {
        let (height, width) = size;
        assert!(source.len() == height * width * 3 && target.len() == source.len(), "bytes and values of an image");
        if view.down == 0 && view.right == 0 && !view.mirrored {
            straight(source, affine, target);
        } else {
            // Before mirroring, columns left..end of the target show columns left + right..end + right of the source.
            let left = view.right.min(0).unsigned_abs().min(width);
            let end = width.saturating_sub(view.right.max(0).unsigned_abs()).max(left);
            let start = left.saturating_add_signed(view.right);
            let (first, last) = if view.mirrored { (width - end, width - left) } else { (left, end) };
            for (y, row) in target.chunks_exact_mut(width * 3).enumerate() {
                match y.checked_add_signed(view.down).filter(|&y| y < height && left < end) {
                    None => black(affine, width, row),
                    Some(from) => {
                        let pixels = &source[(from * width + start) * 3..][..(end - left) * 3];
                        black(affine, first, row);
                        black_end(affine, width - last, row);
                        let seen = &mut row[first * 3..last * 3];
                        if view.mirrored { mirrored(pixels, affine, seen) } else { straight(pixels, affine, seen) }
                    }
                }
            }
        }
        let (rows, columns) = &view.hole;
        for y in rows.clone() {
            target[(y * width + columns.start) * 3..(y * width + columns.end) * 3].fill(0.0);
        }
    }
}

/// Whole pixels, in their order.
#[inline(always)]
fn straight(source: &[u8], affine: &Affine, target: &mut [f32]) {
    let (blocks, rest) = source.as_chunks::<BLOCK>();
    for (source, target) in blocks.iter().zip(target.as_chunks_mut::<BLOCK>().0) {
        block(source, affine, target);
    }
    match (source.last_chunk::<BLOCK>(), target.last_chunk_mut::<BLOCK>()) {
        _ if rest.is_empty() => {}
        (Some(source), Some(target)) => block(source, affine, target),
        _ => {
            for (i, (value, &byte)) in target.iter_mut().zip(source).enumerate() {
                *value = f32::from(byte) * affine.scale[i] + affine.shift[i];
            }
        }
    }
}

/// Whole pixels, the last one first.
#[inline(always)]
fn mirrored(source: &[u8], affine: &Affine, target: &mut [f32]) {
    let (rest, blocks) = source.as_rchunks::<BLOCK>();
    for (source, target) in blocks.iter().rev().zip(target.as_chunks_mut::<BLOCK>().0) {
        block(&reversed(source), affine, target);
    }
    match (source.first_chunk::<BLOCK>(), target.last_chunk_mut::<BLOCK>()) {
        _ if rest.is_empty() => {}
        (Some(source), Some(target)) => block(&reversed(source), affine, target),
        _ => {
            let pixels = source.chunks_exact(3).rev().flatten();
            for (i, (value, &byte)) in target.iter_mut().zip(pixels).enumerate() {
                *value = f32::from(byte) * affine.scale[i] + affine.shift[i];
            }
        }
    }
}

#[inline(always)]
fn block(source: &[u8; BLOCK], affine: &Affine, target: &mut [f32; BLOCK]) {
    for i in 0..BLOCK {
        target[i] = f32::from(source[i]) * affine.scale[i] + affine.shift[i];
    }
}

/// Eight pixels, the last one first.
#[inline(always)]
fn reversed(pixels: &[u8; BLOCK]) -> [u8; BLOCK] {
    std::array::from_fn(|i| pixels[BLOCK - 3 - i / 3 * 3 + i % 3])
}

/// The first `n` pixels of `row`, and perhaps more, become black.
#[inline(always)]
fn black(affine: &Affine, n: usize, row: &mut [f32]) {
    let values = row.len();
    for at in (0..n * 3).step_by(BLOCK) {
        let at = at.min(values.saturating_sub(BLOCK));
        match row[at..].first_chunk_mut::<BLOCK>() {
            Some(block) => *block = affine.shift,
            None => row.copy_from_slice(&affine.shift[..values]),
        }
    }
}

/// The last `n` pixels of `row`, and perhaps more, become black.
#[inline(always)]
fn black_end(affine: &Affine, n: usize, row: &mut [f32]) {
    let values = row.len();
    for at in (0..n * 3).step_by(BLOCK) {
        match row[..(values - at).max(BLOCK.min(values))].last_chunk_mut::<BLOCK>() {
            Some(block) => *block = affine.shift,
            None => row.copy_from_slice(&affine.shift[..values]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Isa;

    /// Values stay bytes, except that black is -1 and a hole 0.
    fn bytes() -> Affine {
        Affine { scale: [1.0; BLOCK], shift: [-1.0; BLOCK] }
    }

    /// The view of an image of `expected`'s size whose pixel (y, x) has the bytes 10 y + x + 2, plus the channel times
    /// 100; `expected` shows channel 0, less one: `.` is black, `#` the hole.
    fn check_pixels(view: View, expected: &[&str]) {
        let cells: Vec<Vec<&str>> = expected.iter().map(|row| row.split_whitespace().collect()).collect();
        let (height, width) = (cells.len(), cells[0].len());
        let places = (0..height).flat_map(|y| (0..width).map(move |x| (y, x)));
        let source: Vec<u8> = places.flat_map(|(y, x)| (0..3).map(move |c| (10 * y + x + 2 + 100 * c) as u8)).collect();
        let expected: Vec<f32> = cells
            .iter()
            .flatten()
            .flat_map(|cell| match *cell {
                "." => [-1.0; 3],
                "#" => [0.0; 3],
                number => [0.0, 100.0, 200.0].map(|channel| number.parse::<f32>().unwrap() + 1.0 + channel),
            })
            .collect();
        for isa in Isa::available() {
            let mut target = vec![f32::NAN; source.len()];
            write(isa, &source, (height, width), &view, &bytes(), &mut target);
            assert_eq!(target, expected, "{} {view:?}", isa.name());
        }
    }

    #[test]
    fn pixels_stand_where_the_view_says() {
        let view = |down, right| View { down, right, ..View::WHOLE };
        check_pixels(View::WHOLE, &["0 1 2", "10 11 12"]);
        check_pixels(view(1, 0), &["10 11 12", ". . ."]);
        check_pixels(view(-1, 1), &[". . .", "1 2 .", "11 12 ."]);
        check_pixels(view(0, -2), &[". . 0 1", ". . 10 11"]);
        check_pixels(view(0, 3), &[". . .", ". . ."]);
        check_pixels(view(2, 0), &[". . .", ". . ."]);
        check_pixels(View { mirrored: true, ..view(0, 0) }, &["2 1 0", "12 11 10"]);
        // Moved first, then mirrored: the border that was on the right is on the left.
        check_pixels(View { mirrored: true, ..view(0, 1) }, &[". 2 1", ". 12 11"]);
        // A whole block and an overlapping one, in both directions.
        check_pixels(view(0, 1), &["1 2 3 4 5 6 7 8 9 ."]);
        check_pixels(View { mirrored: true, ..view(0, -1) }, &["8 7 6 5 4 3 2 1 0 ."]);
    }

    #[test]
    fn holes_lie_on_what_is_seen() {
        let hole = |rows, columns| View { hole: (rows, columns), ..View::WHOLE };
        check_pixels(hole(0..1, 0..2), &["# # 2", "10 11 12"]);
        check_pixels(hole(1..2, 2..3), &["0 1 2", "10 11 #"]);
        check_pixels(hole(0..2, 0..3), &["# # #", "# # #"]);
        check_pixels(View { mirrored: true, ..hole(0..1, 0..1) }, &["# 1 0", "12 11 10"]);
        check_pixels(View { down: 1, ..hole(0..2, 0..1) }, &["# 11 12", "# . ."]);
    }

    /// As slowly as it is written down.
    fn reference(source: &[u8], (height, width): (usize, usize), view: &View, affine: &Affine) -> Vec<f32> {
        let mut values = Vec::new();
        for y in 0..height as isize {
            for x in 0..width as isize {
                let in_hole = view.hole.0.contains(&(y as usize)) && view.hole.1.contains(&(x as usize));
                let x = if view.mirrored { width as isize - 1 - x } else { x };
                let (from_y, from_x) = (y + view.down, x + view.right);
                let inside = (0..height as isize).contains(&from_y) && (0..width as isize).contains(&from_x);
                for channel in 0..3 {
                    let at = (from_y * width as isize + from_x) * 3 + channel as isize;
                    let byte = if inside { source[at as usize] } else { 0 };
                    let value = f32::from(byte) * affine.scale[channel] + affine.shift[channel];
                    values.push(if in_hole { 0.0 } else { value });
                }
            }
        }
        values
    }

    #[test]
    fn all_views_of_all_sizes_equal_the_definition() {
        let affine = Affine {
            scale: std::array::from_fn(|i| [0.0157, 0.0161, 0.0149][i % 3]),
            shift: std::array::from_fn(|i| [-1.9, -1.8, -1.7][i % 3]),
        };
        for size in [(32, 32), (28, 28), (5, 7), (1, 1), (2, 8), (3, 9), (7, 17), (4, 25), (64, 33)] {
            let source: Vec<u8> = (0..size.0 * size.1 * 3).map(|i| (i * 37 % 251) as u8).collect();
            for (down, right) in
                [(0, 0), (4, -4), (-3, 2), (0, 1), (1, 0), (-4, -4), (0, -12), (9, 0), (0, -9), (0, 64)]
            {
                for mirrored in [false, true] {
                    for hole in [(0..0, 0..0), (0..size.0.min(3), size.1 / 2..size.1), (size.0 - 1..size.0, 0..1)] {
                        let view = View { down, right, mirrored, hole };
                        let expected = reference(&source, size, &view, &affine);
                        for isa in Isa::available() {
                            let mut target = vec![f32::NAN; source.len()];
                            write(isa, &source, size, &view, &affine, &mut target);
                            assert!(target == expected, "{} {size:?} {view:?}", isa.name());
                        }
                    }
                }
            }
        }
    }
}
