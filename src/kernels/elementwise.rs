//! Sums and rectifiers over whole buffers.

use super::isa::multiversion;
use super::{CHUNK, Isa, Write};
use rayon::prelude::*;

/// `y = a + b`.
pub fn add(isa: Isa, a: &[f32], b: &[f32], y: &mut [f32]) {
    assert!(a.len() == y.len() && b.len() == y.len(), "{} + {} values into {}", a.len(), b.len(), y.len());
    let chunks = y.par_chunks_mut(CHUNK).zip(a.par_chunks(CHUNK)).zip(b.par_chunks(CHUNK));
    chunks.for_each(|((y, a), b)| add_chunk(isa, a, b, y));
}

/// `y (+)= x`.
pub fn pass(isa: Isa, x: &[f32], write: Write, y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "lengths");
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| match write {
        Write::Replace => y.copy_from_slice(x),
        Write::Add => add_to(isa, x, y),
    });
}

/// `y = max(0, x)`; a NaN stays one.
pub fn relu_forward(isa: Isa, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "lengths");
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| rectify(isa, x, y));
}

/// `dx (+)= dy` where `y > 0`.
pub fn relu_backward(isa: Isa, y: &[f32], dy: &[f32], write: Write, dx: &mut [f32]) {
    assert!(y.len() == dx.len() && dy.len() == dx.len(), "lengths");
    let chunks = dx.par_chunks_mut(CHUNK).zip(y.par_chunks(CHUNK)).zip(dy.par_chunks(CHUNK));
    chunks.for_each(|((dx, y), dy)| gate(isa, y, dy, write, dx));
}

multiversion! {
    fn add_chunk(a: &[f32], b: &[f32], y: &mut [f32]) {
        for ((y, &a), &b) in y.iter_mut().zip(a).zip(b) {
            *y = a + b;
        }
    }
}

multiversion! {
    fn add_to(x: &[f32], y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y += x;
        }
    }
}

multiversion! {
    fn rectify(x: &[f32], y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = if x < 0.0 { 0.0 } else { x };
        }
    }
}

multiversion! {
    fn gate(y: &[f32], dy: &[f32], write: Write, dx: &mut [f32]) {
        for ((dx, &y), &dy) in dx.iter_mut().zip(y).zip(dy) {
            let before = if write == Write::Add { *dx } else { 0.0 };
            *dx = before + if y > 0.0 { dy } else { 0.0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_rectifiers() {
        let x = [-1.0, -0.0, 0.0, 2.0, f32::NAN];
        let dy = [1.0, 2.0, 3.0, 4.0, 5.0];
        for isa in Isa::available() {
            let mut y = [9.0; 5];
            relu_forward(isa, &x, &mut y);
            assert!(y[..4] == [0.0, 0.0, 0.0, 2.0] && y[4].is_nan());
            let mut dx = [10.0; 5];
            // The gradient at 0 is 0.
            relu_backward(isa, &y, &dy, Write::Add, &mut dx);
            assert_eq!(dx, [10.0, 10.0, 10.0, 14.0, 10.0]);
            relu_backward(isa, &y, &dy, Write::Replace, &mut dx);
            assert_eq!(dx, [0.0, 0.0, 0.0, 4.0, 0.0]);
            add(isa, &dy, &dy, &mut dx);
            assert_eq!(dx, [2.0, 4.0, 6.0, 8.0, 10.0]);
            pass(isa, &dy, Write::Add, &mut dx);
            assert_eq!(dx, [3.0, 6.0, 9.0, 12.0, 15.0]);
            pass(isa, &dy, Write::Replace, &mut dx);
            assert_eq!(dx, dy);
        }
    }
}
