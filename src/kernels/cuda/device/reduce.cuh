// What reductions share, and what batch normalisation keeps. Independent of the element type.

// As in kernels/norm.rs, from torch.nn.BatchNorm2d.
constexpr double EPSILON = 1e-5;
constexpr double MOMENTUM = 0.1;

// Sums a block's two values per (vector lane, row lane) over row lanes; the sums land in row lane 0.
// Threads are [row lane][column], `width` columns, both powers of two.
template <class T>
__device__ inline void add_rows(float (&first)[Vector<T>::SIZE][BLOCK], float (&second)[Vector<T>::SIZE][BLOCK], unsigned width) {
    unsigned row_lane = threadIdx.x / width;
    for (unsigned distance = BLOCK / width / 2; distance > 0; distance /= 2) {
        __syncthreads();
        if (row_lane < distance) {
            for (int j = 0; j < Vector<T>::SIZE; j++) {
                first[j][threadIdx.x] += first[j][threadIdx.x + distance * width];
                second[j][threadIdx.x] += second[j][threadIdx.x + distance * width];
            }
        }
    }
    __syncthreads();
}

// Channels and partial sums that a block of the second stage takes side by side.
constexpr unsigned SECOND_CHANNELS = 32;
constexpr unsigned SECOND_LANES = BLOCK / SECOND_CHANNELS;

// Adds both partial sums of a channel, in an order that depends on their number alone. True in the thread that has
// the totals. All threads of the block must call it.
__device__ inline bool add_partials(unsigned channels, unsigned n_partials, const float* partials, unsigned& channel,
                                    double (&totals)[2]) {
    __shared__ double lanes[2][SECOND_LANES][SECOND_CHANNELS];
    unsigned column = threadIdx.x % SECOND_CHANNELS, lane = threadIdx.x / SECOND_CHANNELS;
    channel = blockIdx.x * SECOND_CHANNELS + column;
    totals[0] = 0.0;
    totals[1] = 0.0;
    if (channel < channels) {
        for (unsigned p = lane; p < n_partials; p += SECOND_LANES) {
            const float* partial = partials + static_cast<size_t>(p) * 2 * channels + channel;
            totals[0] += partial[0];
            totals[1] += partial[channels];
        }
    }
    lanes[0][lane][column] = totals[0];
    lanes[1][lane][column] = totals[1];
    __syncthreads();
    if (lane != 0 || channel >= channels) {
        return false;
    }
    for (unsigned other = 1; other < SECOND_LANES; other++) {
        totals[0] += lanes[0][other][column];
        totals[1] += lanes[1][other][column];
    }
    return true;
}

// Mean, inverse deviation, scale and shift of a channel.
__device__ inline void keep(unsigned channels, unsigned channel, float mean, float inv_std, const float* gamma,
                            const float* beta, float* saved) {
    float scale = gamma[channel] * inv_std;
    saved[channel] = mean;
    saved[channels + channel] = inv_std;
    saved[2 * channels + channel] = scale;
    saved[3 * channels + channel] = beta[channel] - mean * scale;
}

// Running statistics as they are.
extern "C" __global__ void norm_frozen(unsigned channels, const float* gamma, const float* beta,
                                       const float* running_mean, const float* running_variance, float* saved) {
    unsigned channel = thread_index();
    if (channel < channels) {
        float inv_std = static_cast<float>(1.0 / sqrt(running_variance[channel] + EPSILON));
        keep(channels, channel, running_mean[channel], inv_std, gamma, beta, saved);
    }
}

// Gradients on scale and shift, and the coefficients of the apply pass, from the partials of `gradient_moments`.
extern "C" __global__ void norm_gradients(unsigned rows, unsigned channels, unsigned n_partials, int frozen,
                                          const float* partials, const float* gamma, const float* saved,
                                          float* d_gamma, float* d_beta, float* coefficients) {
    unsigned channel;
    double totals[2];
    if (!add_partials(channels, n_partials, partials, channel, totals)) {
        return;
    }
    double inv_std = saved[channels + channel];
    double of_beta = totals[0];
    double of_gamma = totals[1] * inv_std;
    d_beta[channel] = static_cast<float>(of_beta);
    d_gamma[channel] = static_cast<float>(of_gamma);
    double scale = gamma[channel] * inv_std;
    coefficients[channel] = static_cast<float>(scale);
    coefficients[channels + channel] = frozen ? 0.0f : static_cast<float>(-scale * inv_std * of_gamma / rows);
    coefficients[2 * channels + channel] = frozen ? 0.0f : static_cast<float>(-scale * of_beta / rows);
}

// The first of the two sums alone: the gradient of a bias.
extern "C" __global__ void bias_gradient(unsigned channels, unsigned n_partials, const float* partials, float* d_bias) {
    unsigned channel;
    double totals[2];
    if (add_partials(channels, n_partials, partials, channel, totals)) {
        d_bias[channel] = static_cast<float>(totals[0]);
    }
}
