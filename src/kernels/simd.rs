//! Vectors of f32 as wide as an instruction set has them, so that a kernel is written once for all.
//!
//! A kernel is a generic function over [`Vector`], inlined whole into one function per instruction set by
//! [`vectorised`]: the methods below become single instructions there. Elsewhere they must not be called.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// A register of floats.
///
/// # Safety
/// All methods: the caller runs inside a function compiled for the vector's instruction set; pointers are valid for
/// [`Vector::WIDTH`] values and need no alignment.
pub(crate) trait Vector: Copy {
    /// Number of floats.
    const WIDTH: usize;

    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn plus(self, other: Self) -> Self;
    unsafe fn minus(self, other: Self) -> Self;
    unsafe fn times(self, other: Self) -> Self;
    /// `self * factor + addend`, rounded once where the instruction set can.
    unsafe fn times_plus(self, factor: Self, addend: Self) -> Self;

    /// Zeros.
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: as the caller vouches.
        unsafe { Self::splat(0.0) }
    }

    /// Transposes 8 x 8 values whose rows lie `from_stride` and `to_stride` apart.
    #[inline(always)]
    unsafe fn turn8(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        for i in 0..8 {
            for j in 0..8 {
                // SAFETY: as the caller vouches.
                unsafe { *to.add(j * to_stride + i) = *from.add(i * from_stride + j) };
            }
        }
    }

    /// `self * factor + addend` for a constant factor.
    #[inline(always)]
    unsafe fn scaled_plus(self, factor: f32, addend: Self) -> Self {
        // SAFETY: as the caller vouches.
        unsafe { self.times_plus(Self::splat(factor), addend) }
    }
}

/// Two SSE or NEON registers; the compiler vectorises the loops.
impl Vector for [f32; 8] {
    const WIDTH: usize = 8;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        [value; 8]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: valid for eight values, says the caller.
        unsafe { from.cast::<[f32; 8]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: valid for eight values, says the caller.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(self) }
    }

    #[inline(always)]
    unsafe fn plus(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] + other[i])
    }

    #[inline(always)]
    unsafe fn minus(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] - other[i])
    }

    #[inline(always)]
    unsafe fn times(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] * other[i])
    }

    #[inline(always)]
    unsafe fn times_plus(self, factor: Self, addend: Self) -> Self {
        std::array::from_fn(|i| self[i] * factor[i] + addend[i])
    }
}

#[cfg(target_arch = "x86_64")]
macro_rules! register {
    ($register:ty, $width:literal, $splat:ident, $load:ident, $store:ident, $add:ident, $sub:ident, $mul:ident, $fma:ident) => {
        impl Vector for $register {
            const WIDTH: usize = $width;

            // SAFETY (all): the caller vouches for the instruction set and the pointers.
            #[inline(always)]
            unsafe fn splat(value: f32) -> Self {
                unsafe { $splat(value) }
            }

            #[inline(always)]
            unsafe fn load(from: *const f32) -> Self {
                unsafe { $load(from) }
            }

            #[inline(always)]
            unsafe fn store(self, to: *mut f32) {
                unsafe { $store(to, self) }
            }

            #[inline(always)]
            unsafe fn plus(self, other: Self) -> Self {
                unsafe { $add(self, other) }
            }

            #[inline(always)]
            unsafe fn minus(self, other: Self) -> Self {
                unsafe { $sub(self, other) }
            }

            #[inline(always)]
            unsafe fn times(self, other: Self) -> Self {
                unsafe { $mul(self, other) }
            }

            #[inline(always)]
            unsafe fn times_plus(self, factor: Self, addend: Self) -> Self {
                unsafe { $fma(self, factor, addend) }
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
register!(
    __m256,
    8,
    _mm256_set1_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_add_ps,
    _mm256_sub_ps,
    _mm256_mul_ps,
    _mm256_fmadd_ps
);
#[cfg(target_arch = "x86_64")]
register!(
    __m512,
    16,
    _mm512_set1_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_add_ps,
    _mm512_sub_ps,
    _mm512_mul_ps,
    _mm512_fmadd_ps
);

/// Defines `name(isa, ..)`, which runs the generic function `body` compiled for `isa`; the lists in angle brackets are
/// its generic arguments for the portable version, AVX2 and AVX-512.
macro_rules! vectorised {
    ($(#[$doc:meta])* $vis:vis unsafe fn $name:ident($($arg:ident: $ty:ty),* $(,)?)
     = $body:ident<[$($portable:tt)*], [$($avx2:tt)*], [$($avx512:tt)*]>) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        $vis unsafe fn $name(isa: $crate::kernels::Isa, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn avx512($($arg: $ty),*) {
                // SAFETY: as the caller of the outer function vouches.
                unsafe { $body::<$($avx512)*>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn avx2($($arg: $ty),*) {
                // SAFETY: as the caller of the outer function vouches.
                unsafe { $body::<$($avx2)*>($($arg),*) }
            }
            // SAFETY: an `Isa` exists only on a machine that has its instructions; the caller vouches for the rest.
            unsafe {
                match isa.level() {
                    $crate::kernels::isa::Level::Portable => $body::<$($portable)*>($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    $crate::kernels::isa::Level::Avx2 => avx2($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    $crate::kernels::isa::Level::Avx512 => avx512($($arg),*),
                }
            }
        }
    };
}
pub(crate) use vectorised;
