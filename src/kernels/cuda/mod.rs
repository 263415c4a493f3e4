//! The kernels on an NVIDIA GPU: convolutions by cuDNN, everything else by the device code under `device/`.
//!
//! **None of this has run on a GPU yet.** What the tests show, and what they cannot show, stands below.
//!
//! # Layouts
//!
//! Activations are channels-last as on the CPU, f32 or bfloat16 ([`Element`]). Images have one vector of 16 bytes a
//! pixel, three of its channels used. Convolution weights are [out][tap][in], which cuDNN calls KRSC in NHWC; on the
//! host they are [tap][in][out]. `nn::engine::layout` converts, when parameters are copied and at no other time.
//!
//! # Why not candle's or cudarc's CUDA
//!
//! candle's convolution gradients are naive kernels, and its feature compiles two hundred kernels of language models
//! (minutes of nvcc). cudarc panics when a library is missing and declares status codes as Rust enumerations, which a
//! newer library's code would make undefined behaviour. Needed are some fifty C functions: [`library`] opens them at
//! run time. So nothing is linked, a build with `--features cuda` starts on every machine, and it needs nvcc for two
//! seconds: no special configuration of cargo.
//!
//! # Building and measuring
//!
//! ```text
//! export CUDA_HOME=/usr/local/cuda                       # nvcc 12 or 13; compiles device/kernels.cu (build.rs)
//! cargo build --release --features cuda
//! cargo test --release --features cuda cuda              # real where there is a GPU, emulated besides
//! cargo bench --features cuda --bench gpu -- resnet18
//! python3 benches/peers/torch_gpu.py                     # PyTorch on the same machine
//! runner run pipelines/cifar10_badnet.toml --device cuda:0
//! ```
//!
//! At run time: the driver (`libcuda.so.1`) and cuDNN 9 (`libcudnn.so.9`) on LD_LIBRARY_PATH. PyTorch's wheels bring
//! cuDNN: `site-packages/nvidia/cudnn/lib`; the folder `site-packages/nvidia/cu13/lib` beside it belongs on the path as
//! well.
//!
//! # Tests
//!
//! The emulation (`emulation.rs`) compiles the device code for the host and stands in for cuDNN with loops over the same
//! layouts. It covers indices, arithmetic, launch arguments, the order of operations, layouts, and whole training
//! runs against the CPU. It does not cover the driver's and cuDNN's calls, races between threads of a block that a missing
//! barrier would bring, recorded steps, and speed. Tests of a real GPU print `NOT RUN` where there is none.
#![allow(unsafe_code)]

pub mod conv;
mod cudnn;
#[cfg(test)]
mod emulation;
pub mod gpu;
mod library;
pub mod ops;
#[cfg(test)]
pub(crate) mod tests;

pub use gpu::{Address, Buffer, Element, Gpu, devices};
