//! The kernels: convolution, batch normalisation, pooling and the rest, forwards and backwards, on the CPU.
//!
//! Activations are f32 and channels-last, [N, H, W, C], from the images to the classifier. Convolution weights are
//! [tap][in][out], a tap being one position of the window in row-major order.
//!
//! Rules that every kernel keeps:
//! - The same bytes for any number of threads: an output element is computed by one thread in a fixed order, and
//!   reductions over rows go by chunks whose size depends on the shape alone, combined in order (Invariant 3).
//! - No allocation: the caller owns all buffers; what a kernel needs besides is sized on its first call.
//! - Buffers may be longer than the batch needs; kernels touch the first `n` images only.
//!
//! Each kernel takes the [`Isa`] to use, so that tests run all of them; an `Isa` exists only where the machine has it.

pub mod basis;
pub mod conv;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod elementwise;
pub mod gate;
mod isa;
pub mod joint;
pub mod l2;
pub mod linear;
pub mod noise;
pub mod norm;
pub mod pairwise;
pub mod peak;
pub mod pixels;
pub mod pool;
mod precision;
pub mod product;
#[cfg(test)]
pub(crate) mod reference;
mod simd;

pub use isa::Isa;
pub use precision::Precision;

/// Whether a result replaces what its buffer holds or is added to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// Overwrite.
    Replace,
    /// Accumulate.
    Add,
}

/// What follows a normalisation in the same pass over memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    None,
    /// max(0, x); its gradient at 0 is 0.
    Relu,
}

/// Values in one unit of parallel work of the kernels that stream through memory: 64 KiB, a share of L2.
pub(crate) const CHUNK: usize = 16_384;

/// `W` values from `at` on.
#[inline(always)]
pub(crate) fn lanes<const W: usize>(values: &[f32], at: usize) -> [f32; W] {
    let mut lanes = [0.0; W];
    lanes.copy_from_slice(&values[at..at + W]);
    lanes
}
