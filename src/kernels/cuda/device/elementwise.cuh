// Sums and rectifiers over whole buffers; one vector a thread. Counts are in vectors.

// y = a + b
extern "C" __global__ void NAME(add)(unsigned n, const REAL* a, const REAL* b, REAL* y) {
    unsigned i = thread_index();
    if (i >= n) {
        return;
    }
    Vector<REAL> left = load(a, i), right = load(b, i), sum;
    for (int j = 0; j < Vector<REAL>::SIZE; j++) {
        narrow(wide(left.lanes[j]) + wide(right.lanes[j]), sum.lanes[j]);
    }
    store(y, i, sum);
}

// y (+)= x
extern "C" __global__ void NAME(pass)(unsigned n, const REAL* x, int adds, REAL* y) {
    unsigned i = thread_index();
    if (i >= n) {
        return;
    }
    Vector<REAL> value = load(x, i), sum = load_if(adds, y, i);
    for (int j = 0; j < Vector<REAL>::SIZE; j++) {
        narrow(wide(sum.lanes[j]) + wide(value.lanes[j]), sum.lanes[j]);
    }
    store(y, i, sum);
}

// y = max(0, x); a NaN stays one.
extern "C" __global__ void NAME(relu_forward)(unsigned n, const REAL* x, REAL* y) {
    unsigned i = thread_index();
    if (i >= n) {
        return;
    }
    Vector<REAL> value = load(x, i);
    for (int j = 0; j < Vector<REAL>::SIZE; j++) {
        float v = wide(value.lanes[j]);
        narrow(v < 0.0f ? 0.0f : v, value.lanes[j]);
    }
    store(y, i, value);
}

// dx (+)= dy where y > 0
extern "C" __global__ void NAME(relu_backward)(unsigned n, const REAL* y, const REAL* dy, int adds, REAL* dx) {
    unsigned i = thread_index();
    if (i >= n) {
        return;
    }
    Vector<REAL> output = load(y, i), gradient = load(dy, i), sum = load_if(adds, dx, i);
    for (int j = 0; j < Vector<REAL>::SIZE; j++) {
        float g = wide(output.lanes[j]) > 0.0f ? wide(gradient.lanes[j]) : 0.0f;
        narrow(wide(sum.lanes[j]) + g, sum.lanes[j]);
    }
    store(dx, i, sum);
}

// y += bias, in place; y is [n / channel_vectors, channels].
extern "C" __global__ void NAME(add_bias)(unsigned n, unsigned channel_vectors, const float* bias, REAL* y) {
    unsigned i = thread_index();
    if (i >= n) {
        return;
    }
    const float* of_channels = bias + (i % channel_vectors) * Vector<REAL>::SIZE;
    Vector<REAL> value = load(y, i);
    for (int j = 0; j < Vector<REAL>::SIZE; j++) {
        narrow(wide(value.lanes[j]) + of_channels[j], value.lanes[j]);
    }
    store(y, i, value);
}
