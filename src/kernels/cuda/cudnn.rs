//! Convolutions of cuDNN, channels-last.
//!
//! Of the algorithms that cuDNN's heuristic proposes for a shape, in its order, the first that is deterministic, fits
//! the workspace and runs is taken, and kept: a function of GPU, cuDNN and shape alone, never of a measured time
//! (invariant 3). The legacy interface is enough: descriptors, three functions that share one signature, no plans.

use super::conv::{Pass, Shape};
use super::gpu::{Address, Buffer, Gpu, Machine};
use super::library::{Missing, library};
use crate::error::{Error, Result};
use crate::kernels::Precision;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::null_mut;
use std::sync::{Arc, OnceLock, PoisonError};

type Handle = *mut c_void;

/// What the three heuristics return (cudnnConvolutionFwdAlgoPerf_t and its two twins).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Proposal {
    algorithm: c_int,
    status: c_int,
    time: f32,
    memory: usize,
    determinism: c_int,
    math: c_int,
    reserved: [c_int; 3],
}

library! {
    /// cuDNN 9 (cudnn_cnn.h, cudnn_ops.h, cudnn_graph.h); enumerations are `int`.
    struct CudnnLibrary {
        fn cudnnGetVersion() -> usize;
        fn cudnnGetErrorString(c_int) -> *const c_char;
        fn cudnnCreate(*mut Handle) -> c_int;
        fn cudnnSetStream(Handle, Handle) -> c_int;
        fn cudnnCreateTensorDescriptor(*mut Handle) -> c_int;
        fn cudnnDestroyTensorDescriptor(Handle) -> c_int;
        fn cudnnSetTensor4dDescriptor(Handle, c_int, c_int, c_int, c_int, c_int, c_int) -> c_int;
        fn cudnnCreateFilterDescriptor(*mut Handle) -> c_int;
        fn cudnnDestroyFilterDescriptor(Handle) -> c_int;
        fn cudnnSetFilter4dDescriptor(Handle, c_int, c_int, c_int, c_int, c_int, c_int) -> c_int;
        fn cudnnCreateConvolutionDescriptor(*mut Handle) -> c_int;
        fn cudnnDestroyConvolutionDescriptor(Handle) -> c_int;
        fn cudnnSetConvolution2dDescriptor(Handle, c_int, c_int, c_int, c_int, c_int, c_int, c_int, c_int) -> c_int;
        fn cudnnSetConvolutionMathType(Handle, c_int) -> c_int;
        fn cudnnGetConvolution2dForwardOutputDim(
            Handle,
            Handle,
            Handle,
            *mut c_int,
            *mut c_int,
            *mut c_int,
            *mut c_int,
        ) -> c_int;
        fn cudnnGetConvolutionForwardAlgorithm_v7(
            Handle, Handle, Handle, Handle, Handle, c_int, *mut c_int, *mut Proposal
        ) -> c_int;
        fn cudnnGetConvolutionBackwardDataAlgorithm_v7(
            Handle, Handle, Handle, Handle, Handle, c_int, *mut c_int, *mut Proposal
        ) -> c_int;
        fn cudnnGetConvolutionBackwardFilterAlgorithm_v7(
            Handle, Handle, Handle, Handle, Handle, c_int, *mut c_int, *mut Proposal
        ) -> c_int;
        fn cudnnGetConvolutionForwardWorkspaceSize(
            Handle, Handle, Handle, Handle, Handle, c_int, *mut usize
        ) -> c_int;
        fn cudnnGetConvolutionBackwardDataWorkspaceSize(
            Handle, Handle, Handle, Handle, Handle, c_int, *mut usize
        ) -> c_int;
        fn cudnnGetConvolutionBackwardFilterWorkspaceSize(
            Handle, Handle, Handle, Handle, Handle, c_int, *mut usize
        ) -> c_int;
        fn cudnnConvolutionForward(
            Handle, *const f32, Handle, Address, Handle, Address, Handle, c_int, Address, usize, *const f32, Handle, Address
        ) -> c_int;
        fn cudnnConvolutionBackwardData(
            Handle, *const f32, Handle, Address, Handle, Address, Handle, c_int, Address, usize, *const f32, Handle, Address
        ) -> c_int;
        fn cudnnConvolutionBackwardFilter(
            Handle, *const f32, Handle, Address, Handle, Address, Handle, c_int, Address, usize, *const f32, Handle, Address
        ) -> c_int;
    }
}

/// CUDNN_TENSOR_NHWC.
const NHWC: c_int = 1;
/// CUDNN_CROSS_CORRELATION.
const CROSS_CORRELATION: c_int = 1;
/// CUDNN_DATA_FLOAT, CUDNN_DATA_BFLOAT16.
const FLOAT: c_int = 0;
const BFLOAT16: c_int = 9;
/// CUDNN_DEFAULT_MATH lets f32 convolutions use TF32; CUDNN_FMA_MATH does not.
const DEFAULT_MATH: c_int = 0;
const TENSOR_OP_MATH: c_int = 1;
const FMA_MATH: c_int = 3;
/// CUDNN_DETERMINISTIC.
const DETERMINISTIC: c_int = 1;
/// Implicit GEMM: number 1 of all three passes, deterministic, and what PyTorch falls back to.
const IMPLICIT_GEMM: c_int = 1;

/// More workspace than this no algorithm gets.
const WORKSPACE: usize = 1 << 30;

impl CudnnLibrary {
    fn get() -> Result<&'static CudnnLibrary, Missing> {
        static LIBRARY: OnceLock<Result<CudnnLibrary, Missing>> = OnceLock::new();
        let library = LIBRARY.get_or_init(|| {
            let library = CudnnLibrary::open(&["libcudnn.so.9", "libcudnn.so"])?;
            // SAFETY: takes and changes nothing.
            match unsafe { (library.cudnnGetVersion)() } {
                version if version >= 90_000 => Ok(library),
                version => Err(format!("cuDNN {version} was found, expected 9 or later")),
            }
        });
        library.as_ref().map_err(Clone::clone)
    }

    fn reason(&self, status: c_int) -> String {
        // SAFETY: cuDNN returns a static string for every status.
        unsafe { CStr::from_ptr((self.cudnnGetErrorString)(status)) }.to_string_lossy().into_owned()
    }

    fn check(&self, doing: &str, status: c_int) -> Result<()> {
        match status {
            0 => Ok(()),
            status => Err(Error::machine(format!("cuDNN cannot {doing}: {}", self.reason(status)))),
        }
    }
}

/// cuDNN on one stream.
pub(super) struct Cudnn {
    library: &'static CudnnLibrary,
    handle: Handle,
    /// The last is the largest, and in use. The others stay: recorded steps name them.
    workspaces: Vec<Buffer>,
}

impl Cudnn {
    /// Work goes to `stream`, whose context is current.
    pub(super) fn new(stream: Handle) -> Result<Cudnn, Missing> {
        let library = CudnnLibrary::get()?;
        let mut handle = null_mut();
        // SAFETY: cuDNN writes a handle, which lives as long as the process.
        let status = unsafe {
            match (library.cudnnCreate)(&raw mut handle) {
                0 => (library.cudnnSetStream)(handle, stream),
                status => status,
            }
        };
        match status {
            0 => Ok(Cudnn { library, handle, workspaces: Vec::new() }),
            status => Err(format!("cuDNN does not start: {}", library.reason(status))),
        }
    }

    /// `9.26.0`.
    pub(super) fn version(&self) -> String {
        // SAFETY: takes and changes nothing.
        let version = unsafe { (self.library.cudnnGetVersion)() };
        format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
    }
}

/// The descriptors of one convolution, and the algorithms taken for it.
pub(super) struct Descriptors {
    library: &'static CudnnLibrary,
    input: Handle,
    filter: Handle,
    output: Handle,
    convolution: Handle,
    precision: Precision,
    /// By pass.
    chosen: [Option<Algorithm>; 3],
}

// SAFETY: host objects of cuDNN, used by one owner at a time.
unsafe impl Send for Descriptors {}
// SAFETY: every use takes `&mut`.
unsafe impl Sync for Descriptors {}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Algorithm {
    number: c_int,
    math: c_int,
    workspace: usize,
}

type Execute = unsafe extern "C" fn(
    Handle,
    *const f32,
    Handle,
    Address,
    Handle,
    Address,
    Handle,
    c_int,
    Address,
    usize,
    *const f32,
    Handle,
    Address,
) -> c_int;

impl Descriptors {
    /// Needs cuDNN and no GPU.
    pub(super) fn new(shape: &Shape, precision: Precision) -> Result<Descriptors> {
        let library = CudnnLibrary::get().map_err(Error::machine)?;
        let none = null_mut();
        let mut made = Descriptors {
            library,
            input: none,
            filter: none,
            output: none,
            convolution: none,
            precision,
            chosen: [None; 3],
        };
        let int = |value: usize| value as c_int;
        let g = &shape.geometry;
        let (n, c, k) = (int(shape.n), int(g.in_channels), int(g.out_channels));
        let (height, width) = (int(g.out_height()), int(g.out_width()));
        let kind = match precision {
            Precision::F32 | Precision::Tf32 => FLOAT,
            Precision::Bf16 => BFLOAT16,
        };
        let (padding, stride, window) = (int(g.padding), int(g.stride), int(g.kernel));
        let check = |status| library.check("describe a convolution", status);
        // SAFETY: each descriptor is created before it is set, and destroyed by `drop`, also after an error below.
        unsafe {
            check((library.cudnnCreateTensorDescriptor)(&raw mut made.input))?;
            check((library.cudnnCreateTensorDescriptor)(&raw mut made.output))?;
            check((library.cudnnCreateFilterDescriptor)(&raw mut made.filter))?;
            check((library.cudnnCreateConvolutionDescriptor)(&raw mut made.convolution))?;
            let (in_height, in_width) = (int(g.height), int(g.width));
            check((library.cudnnSetTensor4dDescriptor)(made.input, NHWC, kind, n, c, in_height, in_width))?;
            check((library.cudnnSetTensor4dDescriptor)(made.output, NHWC, kind, n, k, height, width))?;
            check((library.cudnnSetFilter4dDescriptor)(made.filter, kind, NHWC, k, c, window, window))?;
            check((library.cudnnSetConvolution2dDescriptor)(
                made.convolution,
                padding,
                padding,
                stride,
                stride,
                1,
                1,
                CROSS_CORRELATION,
                FLOAT,
            ))?;
            check((library.cudnnSetConvolutionMathType)(made.convolution, made.math()))?;
        }
        let dims = made.output_dims()?;
        if dims != [n, k, height, width] {
            return Err(Error::machine(format!("cuDNN expects an output of {dims:?} for {shape:?}")));
        }
        Ok(made)
    }

    fn math(&self) -> c_int {
        match self.precision {
            Precision::F32 => FMA_MATH,
            Precision::Tf32 => DEFAULT_MATH,
            Precision::Bf16 => TENSOR_OP_MATH,
        }
    }

    /// Images, channels, rows and columns that cuDNN expects of the output.
    fn output_dims(&self) -> Result<[c_int; 4]> {
        let mut dims = [0; 4];
        let [n, c, h, w] = &mut dims;
        // SAFETY: descriptors that were set; cuDNN writes four integers.
        let status = unsafe {
            (self.library.cudnnGetConvolution2dForwardOutputDim)(self.convolution, self.input, self.filter, n, c, h, w)
        };
        self.library.check("describe a convolution", status)?;
        Ok(dims)
    }

    /// One pass: `target = product of first and second + beta * target`, with what first, second and target are
    /// depending on the pass ([`Pass`]).
    pub(super) fn run(
        &mut self,
        gpu: &Arc<Gpu>,
        pass: Pass,
        (first, second, target): (Address, Address, Address),
        beta: f32,
    ) -> Result<()> {
        #[cfg_attr(not(test), allow(clippy::infallible_destructuring_match))]
        let real = match gpu.machine() {
            Machine::Real(real) => real,
            #[cfg(test)]
            Machine::Emulated(_) => return Err(Error::machine("cuDNN on an emulated GPU")),
        };
        real.bind()?;
        let cudnn = &mut *real.cudnn.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(algorithm) = self.chosen[pass as usize] {
            let status = self.execute(cudnn, pass, algorithm, (first, second, target), beta);
            return self.library.check("run a convolution", status);
        }
        let mut tried = Vec::new();
        for algorithm in self.candidates(cudnn, pass)? {
            let largest = cudnn.workspaces.last().map_or(0, Buffer::bytes);
            if largest < algorithm.workspace {
                // At least twice as large as the one before, so that all of them together stay small.
                let bytes = algorithm.workspace.max((2 * largest).min(WORKSPACE));
                cudnn.workspaces.push(Buffer::new(gpu, bytes)?);
            }
            match self.execute(cudnn, pass, algorithm, (first, second, target), beta) {
                0 => {
                    self.chosen[pass as usize] = Some(algorithm);
                    return Ok(());
                }
                status => tried.push(format!("{algorithm:?}: {}", self.library.reason(status))),
            }
        }
        let tried = if tried.is_empty() { "none proposed".to_string() } else { tried.join("; ") };
        Err(Error::machine(format!("cuDNN has no deterministic algorithm for a convolution ({tried})"))
            .hint("try another `precision`, or `--device cpu`"))
    }

    /// Descriptors of the pass's first, second and target tensor.
    fn roles(&self, pass: Pass) -> [Handle; 3] {
        match pass {
            Pass::Forward => [self.input, self.filter, self.output],
            Pass::BackwardInput => [self.filter, self.output, self.input],
            Pass::BackwardWeights => [self.input, self.output, self.filter],
        }
    }

    /// Algorithms that may be taken, the best first.
    fn candidates(&self, cudnn: &Cudnn, pass: Pass) -> Result<Vec<Algorithm>> {
        let library = self.library;
        let propose = match pass {
            Pass::Forward => library.cudnnGetConvolutionForwardAlgorithm_v7,
            Pass::BackwardInput => library.cudnnGetConvolutionBackwardDataAlgorithm_v7,
            Pass::BackwardWeights => library.cudnnGetConvolutionBackwardFilterAlgorithm_v7,
        };
        let workspace = match pass {
            Pass::Forward => library.cudnnGetConvolutionForwardWorkspaceSize,
            Pass::BackwardInput => library.cudnnGetConvolutionBackwardDataWorkspaceSize,
            Pass::BackwardWeights => library.cudnnGetConvolutionBackwardFilterWorkspaceSize,
        };
        let [first, second, target] = self.roles(pass);
        let mut proposals = [Proposal::default(); 10];
        let mut n = 0;
        // SAFETY: descriptors that were set; cuDNN writes at most ten proposals and their number.
        let status = unsafe {
            (library.cudnnSetConvolutionMathType)(self.convolution, self.math());
            propose(
                cudnn.handle,
                first,
                second,
                self.convolution,
                target,
                proposals.len() as c_int,
                &raw mut n,
                proposals.as_mut_ptr(),
            )
        };
        library.check("propose an algorithm", status)?;
        let proposed = &proposals[..usize::try_from(n).unwrap_or(0).min(proposals.len())];
        let usable = proposed.iter().filter(|p| p.status == 0 && p.determinism == DETERMINISTIC);
        // Strict f32 stays strict, whatever was proposed.
        let math = |proposed: c_int| if self.precision == Precision::F32 { FMA_MATH } else { proposed };
        let mut numbers: Vec<(c_int, c_int)> = usable.map(|p| (p.algorithm, math(p.math))).collect();
        numbers.push((IMPLICIT_GEMM, self.math()));
        let mut found: Vec<Algorithm> = Vec::new();
        for (number, math) in numbers {
            let mut bytes = 0;
            // SAFETY: descriptors that were set; cuDNN writes one integer.
            let status = unsafe {
                (library.cudnnSetConvolutionMathType)(self.convolution, math);
                workspace(cudnn.handle, first, second, self.convolution, target, number, &raw mut bytes)
            };
            let algorithm = Algorithm { number, math, workspace: bytes };
            if status == 0 && bytes <= WORKSPACE && !found.contains(&algorithm) {
                found.push(algorithm);
            }
        }
        Ok(found)
    }

    fn execute(
        &self,
        cudnn: &Cudnn,
        pass: Pass,
        algorithm: Algorithm,
        (first, second, target): (Address, Address, Address),
        beta: f32,
    ) -> c_int {
        let library = self.library;
        let execute: Execute = match pass {
            Pass::Forward => library.cudnnConvolutionForward,
            Pass::BackwardInput => library.cudnnConvolutionBackwardData,
            Pass::BackwardWeights => library.cudnnConvolutionBackwardFilter,
        };
        let [first_descriptor, second_descriptor, target_descriptor] = self.roles(pass);
        let (workspace, bytes) = cudnn.workspaces.last().map_or((0, 0), |w| (w.address(), w.bytes()));
        let alpha = 1.0;
        // SAFETY: the caller's buffers are as long as the descriptors say; the factors are read before the call returns.
        unsafe {
            match (library.cudnnSetConvolutionMathType)(self.convolution, algorithm.math) {
                0 => execute(
                    cudnn.handle,
                    &raw const alpha,
                    first_descriptor,
                    first,
                    second_descriptor,
                    second,
                    self.convolution,
                    algorithm.number,
                    workspace,
                    bytes,
                    &raw const beta,
                    target_descriptor,
                    target,
                ),
                status => status,
            }
        }
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        // SAFETY: created by this library, destroyed once; null ones were never created.
        unsafe {
            for tensor in [self.input, self.output] {
                if !tensor.is_null() {
                    (self.library.cudnnDestroyTensorDescriptor)(tensor);
                }
            }
            if !self.filter.is_null() {
                (self.library.cudnnDestroyFilterDescriptor)(self.filter);
            }
            if !self.convolution.is_null() {
                (self.library.cudnnDestroyConvolutionDescriptor)(self.convolution);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::conv::Geometry;

    /// Descriptors are host objects: cuDNN checks them without a GPU.
    #[test]
    fn cudnn_accepts_our_descriptors() {
        if let Err(missing) = CudnnLibrary::get() {
            println!("NOT RUN: {missing}");
            return;
        }
        for precision in [Precision::F32, Precision::Tf32, Precision::Bf16] {
            for (kernel, stride, size, channels) in
                [(3, 1, (32, 32), (8, 64)), (3, 2, (32, 32), (64, 128)), (1, 2, (9, 7), (16, 32))]
            {
                let geometry = Geometry {
                    height: size.0,
                    width: size.1,
                    in_channels: channels.0,
                    out_channels: channels.1,
                    kernel,
                    stride,
                    padding: kernel / 2,
                };
                // Compares the size of the output with cuDNN's.
                Descriptors::new(&Shape { geometry, n: 5 }, precision).unwrap();
            }
        }
        assert_eq!(size_of::<Proposal>(), 48);
    }
}
