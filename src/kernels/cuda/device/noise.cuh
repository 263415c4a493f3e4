// Gaussian noise, the very draws of kernels/noise.rs: ChaCha8 sub-streams and the same series. Without fused
// multiply-adds (the sources are compiled so), the same bits.

#ifndef NOISE
#define NOISE
// Values that one ChaCha block of 16 words gives: 8 pairs. CPU chunks hold 512 values, that is 32 blocks.
constexpr unsigned PAIRS_PER_BLOCK = 8;
constexpr unsigned CHUNK_PAIRS = 256;
constexpr unsigned BLOCKS_PER_CHUNK = CHUNK_PAIRS / PAIRS_PER_BLOCK;

__device__ inline unsigned rotate(unsigned word, int by) { return word << by | word >> (32 - by); }

__device__ inline void quarter(unsigned& a, unsigned& b, unsigned& c, unsigned& d) {
    a += b;
    d = rotate(d ^ a, 16);
    c += d;
    b = rotate(b ^ c, 12);
    a += b;
    d = rotate(d ^ a, 8);
    c += d;
    b = rotate(b ^ c, 7);
}

// Block `counter` of sub-stream `stream` (Bernstein 2008, 8 rounds, 64-bit counter and nonce, as rand_chacha).
__device__ inline void chacha8(const unsigned* key, unsigned long long counter, unsigned long long stream,
                               unsigned (&words)[16]) {
    unsigned start[16] = {0x61707865, 0x3320646e, 0x79622d32, 0x6b206574};
    for (int i = 0; i < 8; i++) {
        start[4 + i] = key[i];
    }
    start[12] = static_cast<unsigned>(counter);
    start[13] = static_cast<unsigned>(counter >> 32);
    start[14] = static_cast<unsigned>(stream);
    start[15] = static_cast<unsigned>(stream >> 32);
    for (int i = 0; i < 16; i++) {
        words[i] = start[i];
    }
    for (int round = 0; round < 4; round++) {
        quarter(words[0], words[4], words[8], words[12]);
        quarter(words[1], words[5], words[9], words[13]);
        quarter(words[2], words[6], words[10], words[14]);
        quarter(words[3], words[7], words[11], words[15]);
        quarter(words[0], words[5], words[10], words[15]);
        quarter(words[1], words[6], words[11], words[12]);
        quarter(words[2], words[7], words[8], words[13]);
        quarter(words[3], words[4], words[9], words[14]);
    }
    for (int i = 0; i < 16; i++) {
        words[i] += start[i];
    }
}

__device__ inline float natural_logarithm(float x) {
    union {
        float value;
        unsigned bits;
    } all;
    all.value = x;
    unsigned shifted = all.bits - 0x3f3504f3u;
    int exponent = static_cast<int>(shifted) >> 23;
    all.bits = (shifted & 0x007fffffu) + 0x3f3504f3u;
    float s = (all.value - 1.0f) / (all.value + 1.0f);
    float square = s * s;
    float series =
        1.0f + square * (1.0f / 3.0f + square * (1.0f / 5.0f + square * (1.0f / 7.0f + square * (1.0f / 9.0f))));
    return static_cast<float>(exponent) * 0.693147180559945309417f + 2.0f * s * series;
}

__device__ inline void sine_cosine(unsigned bits, float& sine, float& cosine) {
    float fraction = static_cast<float>((bits << 2) >> 8) * (1.0f / 16777216.0f) - 0.5f;
    float angle = fraction * 1.57079632679489661923f;
    float x = angle * angle;
    float s =
        angle * (1.0f + x * (-1.0f / 6.0f + x * (1.0f / 120.0f + x * (-1.0f / 5040.0f + x * (1.0f / 362880.0f)))));
    float c = 1.0f + x * (-0.5f + x * (1.0f / 24.0f + x * (-1.0f / 720.0f + x * (1.0f / 40320.0f + x * (-1.0f / 3628800.0f)))));
    unsigned quadrant = bits >> 30;
    float turned_c = quadrant & 1 ? -s : c;
    float turned_s = quadrant & 1 ? c : s;
    sine = quadrant >= 2 ? -turned_s : turned_s;
    cosine = quadrant >= 2 ? -turned_c : turned_c;
}
#endif

// y = x + sigma * z over [samples, per_sample]; n counts ChaCha blocks, `blocks` of them a sample.
extern "C" __global__ void NAME(noise)(unsigned n, unsigned blocks, unsigned per_sample, float sigma, const unsigned* key,
                                       unsigned layer, const Step* step, const REAL* x, REAL* y) {
    unsigned i = thread_index();
    if (i >= n) {
        return;
    }
    unsigned sample = i / blocks, block = i % blocks;
    unsigned long long number = step->noise + step->step;
    unsigned words[16];
    chacha8(key, block, (number << 32 | static_cast<unsigned long long>(layer) << 24 | sample) + 1, words);
    unsigned first = block / BLOCKS_PER_CHUNK * 2 * CHUNK_PAIRS + block % BLOCKS_PER_CHUNK * PAIRS_PER_BLOCK;
    size_t start = static_cast<size_t>(sample) * per_sample;
    for (unsigned pair = 0; pair < PAIRS_PER_BLOCK; pair++) {
        float uniform = static_cast<float>((words[2 * pair] >> 8) + 1) * (1.0f / 16777216.0f);
        float radius = sqrtf(-2.0f * natural_logarithm(uniform));
        float sine, cosine;
        sine_cosine(words[2 * pair + 1], sine, cosine);
        unsigned at = first + pair;
        if (at < per_sample) {
            narrow(wide(x[start + at]) + sigma * (radius * cosine), y[start + at]);
        }
        if (at + CHUNK_PAIRS < per_sample) {
            narrow(wide(x[start + at + CHUNK_PAIRS]) + sigma * (radius * sine), y[start + at + CHUNK_PAIRS]);
        }
    }
}
