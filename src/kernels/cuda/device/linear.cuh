// The classifying layer: f32 weights, f32 logits and gradients, whatever the type of its input. Some thousandths of the
// work of a network, so a thread a result suffices, and no library decides the order of its sums.

// y [rows, n_out] = x [rows, n_in] w^T + b, w being [n_out, n_in].
extern "C" __global__ void NAME(linear_forward)(unsigned rows, unsigned n_in, unsigned n_out, const REAL* x,
                                                const float* w, const float* b, float* y) {
    unsigned i = thread_index();
    if (i >= rows * n_out) {
        return;
    }
    const REAL* input = x + static_cast<size_t>(i / n_out) * n_in;
    const float* weights = w + static_cast<size_t>(i % n_out) * n_in;
    // Four chains of additions: the latency of one would be all of the time.
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (unsigned k = 0; k < n_in; k++) {
        sums[k % 4] += wide(input[k]) * weights[k];
    }
    y[i] = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + b[i % n_out];
}

// dx (+)= dy w
extern "C" __global__ void NAME(linear_backward_input)(unsigned rows, unsigned n_in, unsigned n_out, const float* dy,
                                                       const float* w, int adds, REAL* dx) {
    unsigned i = thread_index();
    if (i >= rows * n_in) {
        return;
    }
    unsigned row = i / n_in, k = i % n_in;
    float sum = adds ? wide(dx[i]) : 0.0f;
    for (unsigned class_ = 0; class_ < n_out; class_++) {
        sum += dy[static_cast<size_t>(row) * n_out + class_] * w[static_cast<size_t>(class_) * n_in + k];
    }
    narrow(sum, dx[i]);
}

// dw = dy^T x and db = column sums of dy. The grid is [inputs / SECOND_CHANNELS][n_out].
extern "C" __global__ void NAME(linear_backward_weights)(unsigned rows, unsigned n_in, unsigned n_out, const REAL* x,
                                                         const float* dy, float* dw, float* db) {
    __shared__ float products[SECOND_LANES][SECOND_CHANNELS];
    __shared__ float sums[SECOND_LANES][SECOND_CHANNELS];
    unsigned column = threadIdx.x % SECOND_CHANNELS, lane = threadIdx.x / SECOND_CHANNELS;
    unsigned k = blockIdx.x * SECOND_CHANNELS + column;
    float product = 0.0f, sum = 0.0f;
    for (unsigned row = lane; row < rows; row += SECOND_LANES) {
        float gradient = dy[static_cast<size_t>(row) * n_out + blockIdx.y];
        sum += gradient;
        if (k < n_in) {
            product += gradient * wide(x[static_cast<size_t>(row) * n_in + k]);
        }
    }
    products[lane][column] = product;
    sums[lane][column] = sum;
    __syncthreads();
    if (lane != 0) {
        return;
    }
    for (unsigned other = 1; other < SECOND_LANES; other++) {
        product += products[other][column];
        sum += sums[other][column];
    }
    if (k < n_in) {
        dw[static_cast<size_t>(blockIdx.y) * n_in + k] = product;
    }
    if (k == 0) {
        db[blockIdx.y] = sum;
    }
}
