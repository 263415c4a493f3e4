//! A GPU played by the host, for tests where there is none.
//!
//! The device code itself runs, compiled by the host's compiler (device/emulation.cpp); cuDNN is replaced by loops
//! over its documented layouts. So indices, arithmetic, arguments of launches, the order of operations and the layout
//! of weights are tested everywhere. Not tested: the driver, cuDNN, real concurrency, speed.

use super::conv::{Pass, Shape};
use super::gpu::Address;
use super::library;
use crate::kernels::Precision;
use std::alloc::Layout;
use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

type Emulate =
    unsafe extern "C" fn(*const c_char, c_uint, c_uint, c_uint, c_uint, *mut *mut c_void, *const usize) -> c_int;

/// The compiled device code. It keeps blocks and threads in static variables: one launch at a time.
static CODE: OnceLock<Mutex<usize>> = OnceLock::new();

/// Compiles the device code for the host and opens it.
fn compile() -> Mutex<usize> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kernels/cuda/device/emulation.cpp");
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("emulation.so");
    // Bound to its own symbols: the C library has names of its own, such as `advance`.
    let status = Command::new("c++")
        .args(["-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-fno-gnu-unique", "-Wl,-Bsymbolic", "-o"])
        .args([&target, &source])
        .status()
        .expect("nvcc needs a C++ compiler, and so do these tests: expected `c++` on PATH");
    assert!(status.success(), "the device code does not compile for the host");
    let handle = library::open(&[target.to_str().unwrap()]).unwrap();
    Mutex::new(library::find(handle, "emulate\0").unwrap() as usize)
}

pub(super) struct Emulation;

impl Emulation {
    pub(super) fn new() -> Emulation {
        CODE.get_or_init(compile);
        Emulation
    }

    pub(super) fn launch(
        &self,
        name: &str,
        (grid_x, grid_y): (u32, u32),
        threads: u32,
        arguments: &mut [*mut c_void],
        sizes: &[usize],
    ) {
        let code = CODE.get_or_init(compile).lock().unwrap_or_else(PoisonError::into_inner);
        let c_name = CString::new(name).unwrap();
        // SAFETY: the function of emulation.cpp, which checks the number and the sizes of the arguments.
        let status = unsafe {
            let emulate = std::mem::transmute::<*mut c_void, Emulate>(*code as *mut c_void);
            let n = arguments.len() as c_uint;
            emulate(c_name.as_ptr(), grid_x, grid_y, threads, n, arguments.as_mut_ptr(), sizes.as_ptr())
        };
        drop(code);
        assert_eq!(status, 0, "`{name}`: 1 for no such kernel, 2 for other arguments than it takes");
    }
}

fn layout(bytes: usize) -> Layout {
    // The alignment that cuMemAlloc gives at least.
    Layout::from_size_align(bytes, 256).unwrap()
}

pub(super) fn allocate(bytes: usize) -> Address {
    // SAFETY: not of size zero.
    unsafe { std::alloc::alloc_zeroed(layout(bytes)) as Address }
}

pub(super) fn free(address: Address, bytes: usize) {
    // SAFETY: made by `allocate` with the same size.
    unsafe { std::alloc::dealloc(address as *mut u8, layout(bytes)) }
}

/// A tensor in emulated memory.
struct Values {
    address: Address,
    precision: Precision,
}

impl Values {
    fn get(&self, i: usize) -> f32 {
        // SAFETY: the caller's indices lie in the buffer, as cuDNN's would.
        unsafe {
            match self.precision {
                Precision::Bf16 => f32::from_bits(u32::from(*(self.address as *const u16).add(i)) << 16),
                _ => *(self.address as *const f32).add(i),
            }
        }
    }

    fn set(&self, i: usize, value: f32) {
        // SAFETY: as above.
        unsafe {
            match self.precision {
                Precision::Bf16 => {
                    let bits = value.to_bits();
                    *(self.address as *mut u16).add(i) = ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
                }
                _ => *(self.address as *mut f32).add(i) = value,
            }
        }
    }
}

/// What cuDNN computes: x [n, H, W, C], w [K, R, S, C], y [n, P, Q, K], summed in f64.
pub(super) fn convolve(
    shape: &Shape,
    precision: Precision,
    pass: Pass,
    operands: (Address, Address, Address),
    beta: f32,
) {
    let Shape { geometry: g, n } = shape;
    let (height, width) = (g.out_height(), g.out_width());
    let n_in = n * g.height * g.width * g.in_channels;
    let n_out = n * height * width * g.out_channels;
    let lengths = match pass {
        Pass::Forward => [n_in, g.n_weights(), n_out],
        Pass::BackwardInput => [g.n_weights(), n_out, n_in],
        Pass::BackwardWeights => [n_in, n_out, g.n_weights()],
    };
    let read = |address, length| -> Vec<f32> {
        let values = Values { address, precision };
        (0..length).map(|i| values.get(i)).collect()
    };
    let (first, second) = (read(operands.0, lengths[0]), read(operands.1, lengths[1]));
    let target = Values { address: operands.2, precision };
    let mut sums = vec![0.0f64; lengths[2]];
    let n_channels = g.in_channels;
    for image in 0..*n {
        for (row, column, tap) in
            (0..height).flat_map(|r| (0..width).flat_map(move |c| (0..g.n_taps()).map(move |t| (r, c, t))))
        {
            let y = (row * g.stride + tap / g.kernel).wrapping_sub(g.padding);
            let x = (column * g.stride + tap % g.kernel).wrapping_sub(g.padding);
            if y >= g.height || x >= g.width {
                continue;
            }
            let input = ((image * g.height + y) * g.width + x) * n_channels;
            let output = ((image * height + row) * width + column) * g.out_channels;
            for k in 0..g.out_channels {
                let (output, weights) = (output + k, (k * g.n_taps() + tap) * n_channels);
                let (input, weights) = (input..input + n_channels, weights..weights + n_channels);
                match pass {
                    Pass::Forward => {
                        let pairs = first[input].iter().zip(&second[weights]);
                        sums[output] += pairs.map(|(&x, &w)| f64::from(x) * f64::from(w)).sum::<f64>();
                    }
                    Pass::BackwardInput => {
                        let gradient = f64::from(second[output]);
                        sums[input].iter_mut().zip(&first[weights]).for_each(|(s, &w)| *s += gradient * f64::from(w));
                    }
                    Pass::BackwardWeights => {
                        let gradient = f64::from(second[output]);
                        sums[weights].iter_mut().zip(&first[input]).for_each(|(s, &x)| *s += gradient * f64::from(x));
                    }
                }
            }
        }
    }
    for (i, sum) in sums.into_iter().enumerate() {
        let before = if beta == 0.0 { 0.0 } else { f64::from(beta) * f64::from(target.get(i)) };
        target.set(i, (before + sum) as f32);
    }
}
