// Element types and 16-byte vectors. bfloat16 is its own type here, so that the sources need no CUDA header and can be
// compiled for the host as well (see emulation.cpp).
#pragma once

struct bf16 {
    unsigned short bits;
};

__device__ inline float wide(float value) { return value; }

__device__ inline float wide(bf16 value) {
    union {
        unsigned bits;
        float value;
    } all;
    all.bits = static_cast<unsigned>(value.bits) << 16;
    return all.value;
}

__device__ inline void narrow(float value, float& to) { to = value; }

// Round to nearest even; a NaN stays one.
__device__ inline void narrow(float value, bf16& to) {
#ifdef __CUDA_ARCH__
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(value));
#else
    union {
        float value;
        unsigned bits;
    } all;
    all.value = value;
    if (value != value) {
        to.bits = 0x7fff;
    } else {
        to.bits = static_cast<unsigned short>((all.bits + 0x7fff + ((all.bits >> 16) & 1)) >> 16);
    }
#endif
}

// 16 bytes: 4 floats or 8 bfloat16.
template <class T>
struct alignas(16) Vector {
    static constexpr int SIZE = 16 / sizeof(T);
    T lanes[SIZE];
};

template <class T>
__device__ inline Vector<T> load(const T* from, unsigned vector) {
    return reinterpret_cast<const Vector<T>*>(from)[vector];
}

template <class T>
__device__ inline void store(T* to, unsigned vector, const Vector<T>& values) {
    reinterpret_cast<Vector<T>*>(to)[vector] = values;
}

// Reads what is there if the result is to be added to it.
template <class T>
__device__ inline Vector<T> load_if(int wanted, const T* from, unsigned vector) {
    if (wanted) {
        return load(from, vector);
    }
    Vector<T> zeros;
    for (int i = 0; i < Vector<T>::SIZE; i++) {
        narrow(0.0f, zeros.lanes[i]);
    }
    return zeros;
}

__device__ inline unsigned thread_index() { return blockIdx.x * blockDim.x + threadIdx.x; }
