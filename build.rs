//! Links the program at a fixed address, and compiles the device code for the `cuda` feature.
//!
//! A position-independent program of this size starts with some hundred thousand relocations, which cost half of a run
//! that computes nothing, and the same again in every worker.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCES: &str = "src/kernels/cuda/device";

/// Generations with machine code of their own; PTX of the last serves those to come.
const GENERATIONS: [&str; 2] = ["80", "90"];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|found| found == value);
    if is("CARGO_CFG_TARGET_OS", "linux") && is("CARGO_CFG_TARGET_ENV", "gnu") {
        println!("cargo:rustc-link-arg-bins=-no-pie");
    }
    if env::var_os("CARGO_FEATURE_CUDA").is_some() {
        compile_kernels();
    }
}

/// device/kernels.cu with nvcc, into one file for all generations.
fn compile_kernels() {
    println!("cargo:rerun-if-changed={SOURCES}");
    for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let target = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("kernels.fatbin");
    let nvcc = nvcc();
    let mut command = Command::new(&nvcc);
    // No fused multiply-adds: see kernels.cu.
    command.args(["-fatbin", "-std=c++17", "-O3", "--fmad=false", "-Xfatbin", "-compress-all"]);
    for generation in GENERATIONS {
        command.arg(format!("-gencode=arch=compute_{generation},code=sm_{generation}"));
    }
    let last = GENERATIONS[GENERATIONS.len() - 1];
    command.arg(format!("-gencode=arch=compute_{last},code=compute_{last}"));
    command.arg("-o").arg(&target).arg(Path::new(SOURCES).join("kernels.cu"));
    let status = match command.status() {
        Ok(status) => status,
        Err(error) => panic!(
            "the `cuda` feature needs nvcc of CUDA 12 or 13, and `{}` does not start ({error}): set CUDA_HOME to the toolkit's \
             folder, or NVCC to the compiler; it is part of the PyPI package nvidia-cuda-nvcc as well",
            nvcc.display()
        ),
    };
    assert!(status.success(), "nvcc cannot compile {SOURCES}/kernels.cu");
}

/// $NVCC, the toolkit's, or whatever is on PATH.
fn nvcc() -> PathBuf {
    if let Some(nvcc) = env::var_os("NVCC") {
        return nvcc.into();
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let found = homes.chain([PathBuf::from("/usr/local/cuda")]).map(|home| home.join("bin/nvcc"));
    found.into_iter().find(|nvcc| nvcc.exists()).unwrap_or_else(|| "nvcc".into())
}
