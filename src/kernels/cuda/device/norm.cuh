// Batch normalisation with what surrounds it, over [rows, channels]; the mathematics of kernels/norm.rs.
//
// Reductions have two stages: blocks write partial sums over ranges of rows whose length depends on the shape alone,
// then one kernel adds the partials in order, in double precision. The same bits every time.
//
// `saved` is [4][channels]: mean, 1 / sqrt(variance + epsilon), and the scale and shift of the apply pass.

// Sums of x - origin and of its square, where origin is the first row if `centred`, else 0.
// partials is [block][2][channels]; the grid is [vectors of channels / width][ranges of rows].
extern "C" __global__ void NAME(moments)(unsigned rows, unsigned channel_vectors, unsigned width, unsigned rows_per_block,
                                         int centred, const REAL* x, float* partials) {
    constexpr int V = Vector<REAL>::SIZE;
    __shared__ float sums[V][BLOCK];
    __shared__ float squares[V][BLOCK];
    unsigned column = blockIdx.x * width + threadIdx.x % width;
    unsigned lanes = BLOCK / width;
    unsigned first = blockIdx.y * rows_per_block;
    unsigned last = first + rows_per_block < rows ? first + rows_per_block : rows;
    float sum[V], square[V];
    for (int j = 0; j < V; j++) {
        sum[j] = 0.0f;
        square[j] = 0.0f;
    }
    if (column < channel_vectors) {
        Vector<REAL> origin = load_if(centred, x, column);
        for (unsigned row = first + threadIdx.x / width; row < last; row += lanes) {
            Vector<REAL> values = load(x, row * channel_vectors + column);
            for (int j = 0; j < V; j++) {
                float deviation = wide(values.lanes[j]) - wide(origin.lanes[j]);
                sum[j] += deviation;
                square[j] += deviation * deviation;
            }
        }
    }
    for (int j = 0; j < V; j++) {
        sums[j][threadIdx.x] = sum[j];
        squares[j][threadIdx.x] = square[j];
    }
    add_rows<REAL>(sums, squares, width);
    if (threadIdx.x < width && column < channel_vectors) {
        unsigned channels = channel_vectors * V;
        float* partial = partials + static_cast<size_t>(blockIdx.y) * 2 * channels + column * V;
        for (int j = 0; j < V; j++) {
            partial[j] = sums[j][threadIdx.x];
            partial[channels + j] = squares[j][threadIdx.x];
        }
    }
}

// Sums of g and of g * (x - mean), where g is dy behind the ReLU (relu_output may be null). As `moments`.
extern "C" __global__ void NAME(gradient_moments)(unsigned rows, unsigned channel_vectors, unsigned width,
                                                  unsigned rows_per_block, const REAL* x, const REAL* dy,
                                                  const REAL* relu_output, const float* saved, float* partials) {
    constexpr int V = Vector<REAL>::SIZE;
    __shared__ float sums[V][BLOCK];
    __shared__ float products[V][BLOCK];
    unsigned column = blockIdx.x * width + threadIdx.x % width;
    unsigned lanes = BLOCK / width;
    unsigned first = blockIdx.y * rows_per_block;
    unsigned last = first + rows_per_block < rows ? first + rows_per_block : rows;
    float sum[V], product[V];
    for (int j = 0; j < V; j++) {
        sum[j] = 0.0f;
        product[j] = 0.0f;
    }
    if (column < channel_vectors) {
        const float* mean = saved + column * V;
        for (unsigned row = first + threadIdx.x / width; row < last; row += lanes) {
            unsigned at = row * channel_vectors + column;
            Vector<REAL> values = load(x, at), gradients = load(dy, at), outputs;
            if (relu_output) {
                outputs = load(relu_output, at);
            }
            for (int j = 0; j < V; j++) {
                float g = wide(gradients.lanes[j]);
                if (relu_output && !(wide(outputs.lanes[j]) > 0.0f)) {
                    g = 0.0f;
                }
                sum[j] += g;
                product[j] += g * (wide(values.lanes[j]) - mean[j]);
            }
        }
    }
    for (int j = 0; j < V; j++) {
        sums[j][threadIdx.x] = sum[j];
        products[j][threadIdx.x] = product[j];
    }
    add_rows<REAL>(sums, products, width);
    if (threadIdx.x < width && column < channel_vectors) {
        unsigned channels = channel_vectors * V;
        float* partial = partials + static_cast<size_t>(blockIdx.y) * 2 * channels + column * V;
        for (int j = 0; j < V; j++) {
            partial[j] = sums[j][threadIdx.x];
            partial[channels + j] = products[j][threadIdx.x];
        }
    }
}

// Batch statistics from the partials of `moments`, and the running ones moved towards them.
extern "C" __global__ void NAME(norm_statistics)(unsigned rows, unsigned channels, unsigned n_partials, const REAL* x,
                                                 const float* partials, const float* gamma, const float* beta,
                                                 float* running_mean, float* running_variance, float* saved) {
    unsigned channel;
    double totals[2];
    if (!add_partials(channels, n_partials, partials, channel, totals)) {
        return;
    }
    double offset = totals[0] / rows;
    double variance = totals[1] / rows - offset * offset;
    // Not fmax: a NaN must stay visible.
    variance = variance < 0.0 ? 0.0 : variance;
    double mean = wide(x[channel]) + offset;
    double unbiased = variance * rows / (rows > 1 ? rows - 1.0 : 1.0);
    running_mean[channel] = static_cast<float>((1.0 - MOMENTUM) * running_mean[channel] + MOMENTUM * mean);
    running_variance[channel] = static_cast<float>((1.0 - MOMENTUM) * running_variance[channel] + MOMENTUM * unbiased);
    keep(channels, channel, static_cast<float>(mean), static_cast<float>(1.0 / sqrt(variance + EPSILON)), gamma, beta, saved);
}

// y = activation(x * scale + shift + residual); residual may be null.
extern "C" __global__ void NAME(norm_apply)(unsigned n, unsigned channel_vectors, const REAL* x, const REAL* residual,
                                            int relu, const float* saved, REAL* y) {
    constexpr int V = Vector<REAL>::SIZE;
    unsigned i = thread_index();
    if (i >= n) {
        return;
    }
    unsigned channels = channel_vectors * V;
    const float* scale = saved + 2 * channels + (i % channel_vectors) * V;
    const float* shift = scale + channels;
    Vector<REAL> values = load(x, i), added;
    if (residual) {
        added = load(residual, i);
    }
    for (int j = 0; j < V; j++) {
        float value = wide(values.lanes[j]) * scale[j] + shift[j];
        if (residual) {
            value += wide(added.lanes[j]);
        }
        if (relu && value < 0.0f) {
            value = 0.0f;
        }
        narrow(value, values.lanes[j]);
    }
    store(y, i, values);
}

// dx (+)= a * g + b * (x - mean) + c, and the residual's gradient (+)= g. coefficients is [3][channels]: a, b, c.
extern "C" __global__ void NAME(norm_apply_gradient)(unsigned n, unsigned channel_vectors, const REAL* x, const REAL* dy,
                                                     const REAL* relu_output, const float* saved,
                                                     const float* coefficients, int dx_adds, REAL* dx,
                                                     int residual_adds, REAL* residual) {
    constexpr int V = Vector<REAL>::SIZE;
    unsigned i = thread_index();
    if (i >= n) {
        return;
    }
    unsigned channels = channel_vectors * V;
    unsigned channel = (i % channel_vectors) * V;
    const float* mean = saved + channel;
    const float* on_gradient = coefficients + channel;
    const float* on_input = on_gradient + channels;
    const float* constant = on_input + channels;
    Vector<REAL> values = load(x, i), gradients = load(dy, i), outputs;
    if (relu_output) {
        outputs = load(relu_output, i);
    }
    float behind_relu[V];
    for (int j = 0; j < V; j++) {
        float g = wide(gradients.lanes[j]);
        behind_relu[j] = relu_output && !(wide(outputs.lanes[j]) > 0.0f) ? 0.0f : g;
    }
    if (residual) {
        Vector<REAL> sum = load_if(residual_adds, residual, i);
        for (int j = 0; j < V; j++) {
            narrow(wide(sum.lanes[j]) + behind_relu[j], sum.lanes[j]);
        }
        store(residual, i, sum);
    }
    Vector<REAL> sum = load_if(dx_adds, dx, i);
    for (int j = 0; j < V; j++) {
        float slope = on_gradient[j] * behind_relu[j] + on_input[j] * (wide(values.lanes[j]) - mean[j]) + constant[j];
        narrow(wide(sum.lanes[j]) + slope, sum.lanes[j]);
    }
    store(dx, i, sum);
}
