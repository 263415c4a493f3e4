//! Working memory that a thread keeps from call to call.

use std::cell::RefCell;
use std::thread::LocalKey;

/// Floats in a cache line.
const LINE: usize = 16;

thread_local! {
    /// Of the job in work.
    pub(super) static LOCAL: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// Sums of the job in work.
    pub(super) static SUMS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// Sums of all parts of the weight gradient in work, of the thread that waits for them.
    pub(super) static PARTS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Lends `length` floats, aligned to a cache line. Their values are arbitrary.
///
/// Taken out meanwhile: a thread that waits for its jobs may be given somebody else's, which then finds nothing.
pub(super) fn with_scratch<R>(
    kept: &'static LocalKey<RefCell<Vec<f32>>>,
    length: usize,
    work: impl FnOnce(&mut [f32]) -> R,
) -> R {
    let mut scratch = kept.take();
    if scratch.len() < length + LINE {
        scratch.resize(length + LINE, 0.0);
    }
    let start = scratch.as_ptr().align_offset(64).min(LINE);
    let result = work(&mut scratch[start..start + length]);
    kept.set(scratch);
    result
}
