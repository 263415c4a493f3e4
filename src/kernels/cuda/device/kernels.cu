// All device code, for both element types. build.rs compiles it with nvcc; emulation.cpp, for tests, with the host's compiler.
// No fused multiply-adds (--fmad=false): the passes are bound by memory, and agree with the CPU's to the last bit more often.
#include "vector.cuh"

// Threads of a block, everywhere.
constexpr unsigned BLOCK = 256;

// Where a training epoch stands; nn/engine writes it, `advance_step` moves it.
struct Step {
    // Rows of the epoch that are done.
    unsigned position;
    // Steps of the epoch that are done.
    unsigned step;
    // What noise calls the epoch's first step.
    unsigned long long noise;
};

#include "reduce.cuh"
#include "training.cuh"

#define REAL float
#define NAME(kernel) kernel##_f32
#include "elementwise.cuh"
#include "images.cuh"
#include "linear.cuh"
#include "noise.cuh"
#include "norm.cuh"
#include "optimiser.cuh"
#include "pool.cuh"
#undef REAL
#undef NAME

#define REAL bf16
#define NAME(kernel) kernel##_bf16
#include "elementwise.cuh"
#include "images.cuh"
#include "linear.cuh"
#include "noise.cuh"
#include "norm.cuh"
#include "optimiser.cuh"
#include "pool.cuh"
#undef REAL
#undef NAME
