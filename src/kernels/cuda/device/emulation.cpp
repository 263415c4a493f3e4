// The device code on the host, for tests on machines without a GPU: blocks one after the other, the threads of a block
// as fibres that take turns at every barrier. It shows that indices, arithmetic and launches are right; it shows
// nothing about a GPU's memory, speed or driver.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <ucontext.h>
#include <utility>
#include <vector>

struct Index {
    unsigned x, y, z;
};
static Index threadIdx, blockIdx, blockDim;
static void __syncthreads();

#define __device__
#define __global__
#define __shared__ static
#include "kernels.cu"

static ucontext_t scheduler;
static std::vector<ucontext_t> fibres;
static std::vector<char> finished;
static unsigned running;
static void (*body)(void**);
static void** arguments;

static void __syncthreads() { swapcontext(&fibres[running], &scheduler); }

static void run_thread() {
    body(arguments);
    finished[running] = 1;
    swapcontext(&fibres[running], &scheduler);
}

// Kernels with barriers run as fibres; the others thread by thread.
static void run_block(bool has_barriers, unsigned threads) {
    if (!has_barriers) {
        for (unsigned thread = 0; thread < threads; thread++) {
            threadIdx = {thread, 0, 0};
            body(arguments);
        }
        return;
    }
    constexpr size_t STACK = 64 * 1024;
    static std::vector<char> stacks;
    stacks.resize(STACK * threads);
    fibres.resize(threads);
    finished.assign(threads, 0);
    for (unsigned thread = 0; thread < threads; thread++) {
        getcontext(&fibres[thread]);
        fibres[thread].uc_stack.ss_sp = stacks.data() + STACK * thread;
        fibres[thread].uc_stack.ss_size = STACK;
        fibres[thread].uc_link = nullptr;
        makecontext(&fibres[thread], run_thread, 0);
    }
    for (bool any = true; any;) {
        any = false;
        for (running = 0; running < threads; running++) {
            if (!finished[running]) {
                threadIdx = {running, 0, 0};
                swapcontext(&scheduler, &fibres[running]);
                any = true;
            }
        }
    }
}

template <auto kernel>
struct Call;

template <class... A, void (*kernel)(A...)>
struct Call<kernel> {
    template <size_t... I>
    static void with(void** values, std::index_sequence<I...>) {
        kernel(*static_cast<A*>(values[I])...);
    }
    static void run(void** values) { with(values, std::index_sequence_for<A...>()); }
    static constexpr int N_ARGUMENTS = sizeof...(A);
    static constexpr size_t SIZES[sizeof...(A)] = {sizeof(A)...};
};

struct Entry {
    const char* name;
    void (*run)(void**);
    int n_arguments;
    const size_t* sizes;
    bool has_barriers;
};

#define ENTRY(name, has_barriers) {#name, Call<name>::run, Call<name>::N_ARGUMENTS, Call<name>::SIZES, has_barriers}
#define BOTH(name, has_barriers) ENTRY(name##_f32, has_barriers), ENTRY(name##_bf16, has_barriers)

static const Entry KERNELS[] = {
    ENTRY(advance_step, false),
    ENTRY(bias_gradient, true),
    ENTRY(cross_entropy, false),
    ENTRY(norm_frozen, false),
    ENTRY(norm_gradients, true),
    BOTH(adamw, false),
    BOTH(add, false),
    BOTH(add_bias, false),
    BOTH(augment, false),
    BOTH(average_backward, false),
    BOTH(average_forward, false),
    BOTH(gradient_moments, true),
    BOTH(images_in, false),
    BOTH(linear_backward_input, false),
    BOTH(linear_backward_weights, true),
    BOTH(linear_forward, false),
    BOTH(max_backward, false),
    BOTH(max_forward, false),
    BOTH(moments, true),
    BOTH(noise, false),
    BOTH(norm_apply, false),
    BOTH(norm_apply_gradient, false),
    BOTH(norm_statistics, true),
    BOTH(pass, false),
    BOTH(relu_backward, false),
    BOTH(relu_forward, false),
    BOTH(sgd, false),
};

// 0: done. 1: no such kernel. 2: another number of arguments, or one of another size.
extern "C" int emulate(const char* name, unsigned grid_x, unsigned grid_y, unsigned threads, unsigned n_arguments,
                       void** values, const size_t* sizes) {
    for (const Entry& entry : KERNELS) {
        if (std::strcmp(entry.name, name) != 0) {
            continue;
        }
        if (static_cast<int>(n_arguments) != entry.n_arguments ||
            std::memcmp(sizes, entry.sizes, n_arguments * sizeof(size_t)) != 0) {
            return 2;
        }
        body = entry.run;
        arguments = values;
        blockDim = {threads, 1, 1};
        for (unsigned y = 0; y < grid_y; y++) {
            for (unsigned x = 0; x < grid_x; x++) {
                blockIdx = {x, y, 0};
                run_block(entry.has_barriers, threads);
            }
        }
        return 0;
    }
    return 1;
}
