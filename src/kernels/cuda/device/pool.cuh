// Pooling over channels-last images; one vector of channels a thread.

// The larger value; a NaN wins.
#ifndef LARGER
#define LARGER
__device__ inline float larger(float first, float second) { return second > first || second != second ? second : first; }
#endif

// The values of x where 2 x 2 windows of `of` have their maxima, the first of equal ones: the maxima of x if `of` is x. n
// counts vectors of y; height and width are the input's.
extern "C" __global__ void NAME(max_forward)(unsigned n, unsigned height, unsigned width, unsigned channel_vectors,
                                             const REAL* of, const REAL* x, REAL* y) {
    unsigned i = thread_index();
    if (i >= n) {
        return;
    }
    unsigned channel = i % channel_vectors, position = i / channel_vectors;
    unsigned column = position % (width / 2);
    unsigned row = position / (width / 2) % (height / 2);
    unsigned image = position / (width / 2) / (height / 2);
    unsigned at = ((image * height + 2 * row) * width + 2 * column) * channel_vectors + channel;
    unsigned places[4] = {at, at + channel_vectors, at + width * channel_vectors, at + (width + 1) * channel_vectors};
    Vector<REAL> best = load(of, places[0]), values = load(x, places[0]);
    for (int k = 1; k < 4; k++) {
        Vector<REAL> other = load(of, places[k]), value = load(x, places[k]);
        for (int j = 0; j < Vector<REAL>::SIZE; j++) {
            float now = wide(best.lanes[j]), next = wide(other.lanes[j]);
            if (next > now || next != next) {
                best.lanes[j] = other.lanes[j];
                values.lanes[j] = value.lanes[j];
            }
        }
    }
    store(y, i, values);
}

// Its gradient, gathered; the first of equal maxima takes it. n counts vectors of x.
extern "C" __global__ void NAME(max_backward)(unsigned n, unsigned height, unsigned width, unsigned channel_vectors,
                                              const REAL* x, const REAL* dy, int adds, REAL* dx) {
    unsigned i = thread_index();
    if (i >= n) {
        return;
    }
    unsigned channel = i % channel_vectors, position = i / channel_vectors;
    unsigned column = position % width, row = position / width % height, image = position / width / height;
    Vector<REAL> sum = load_if(adds, dx, i);
    // An odd last row or column is in no window.
    if (row / 2 < height / 2 && column / 2 < width / 2) {
        unsigned at = ((image * height + row / 2 * 2) * width + column / 2 * 2) * channel_vectors + channel;
        unsigned below = at + width * channel_vectors;
        Vector<REAL> a = load(x, at), b = load(x, at + channel_vectors), d = load(x, below);
        Vector<REAL> e = load(x, below + channel_vectors);
        unsigned pooled = (image * (height / 2) + row / 2) * (width / 2) + column / 2;
        Vector<REAL> gradient = load(dy, pooled * channel_vectors + channel);
        int own = static_cast<int>(row % 2 * 2 + column % 2);
        for (int j = 0; j < Vector<REAL>::SIZE; j++) {
            float va = wide(a.lanes[j]), vb = wide(b.lanes[j]), vd = wide(d.lanes[j]), ve = wide(e.lanes[j]);
            float maximum = larger(larger(larger(va, vb), vd), ve);
            int taker = va == maximum ? 0 : vb == maximum ? 1 : vd == maximum ? 2 : 3;
            if (taker == own) {
                narrow(wide(sum.lanes[j]) + wide(gradient.lanes[j]), sum.lanes[j]);
            }
        }
    }
    store(dx, i, sum);
}

// Averages over all positions. n counts vectors of y, [images, channels].
extern "C" __global__ void NAME(average_forward)(unsigned n, unsigned positions, unsigned channel_vectors, const REAL* x,
                                                 REAL* y) {
    constexpr int V = Vector<REAL>::SIZE;
    unsigned i = thread_index();
    if (i >= n) {
        return;
    }
    unsigned image = i / channel_vectors, channel = i % channel_vectors;
    float sums[V];
    for (int j = 0; j < V; j++) {
        sums[j] = 0.0f;
    }
    for (unsigned position = 0; position < positions; position++) {
        Vector<REAL> values = load(x, (image * positions + position) * channel_vectors + channel);
        for (int j = 0; j < V; j++) {
            sums[j] += wide(values.lanes[j]);
        }
    }
    float share = 1.0f / static_cast<float>(positions);
    Vector<REAL> means;
    for (int j = 0; j < V; j++) {
        narrow(sums[j] * share, means.lanes[j]);
    }
    store(y, i, means);
}

// Its gradient. n counts vectors of x.
extern "C" __global__ void NAME(average_backward)(unsigned n, unsigned positions, unsigned channel_vectors, const REAL* dy,
                                                  int adds, REAL* dx) {
    unsigned i = thread_index();
    if (i >= n) {
        return;
    }
    unsigned image = i / channel_vectors / positions, channel = i % channel_vectors;
    float share = 1.0f / static_cast<float>(positions);
    Vector<REAL> gradient = load(dy, image * channel_vectors + channel), sum = load_if(adds, dx, i);
    for (int j = 0; j < Vector<REAL>::SIZE; j++) {
        narrow(wide(sum.lanes[j]) + wide(gradient.lanes[j]) * share, sum.lanes[j]);
    }
    store(dx, i, sum);
}
