// Optimisers over flat f32 parameters; the arithmetic of nn/optim.rs. Gradients are REAL; if `copy` is not null it gets
// the new parameters as REAL, which is what convolutions read.

// rates is the learning rate of every step of the epoch; momenta may be null.
extern "C" __global__ void NAME(sgd)(unsigned n, const Step* step, const float* rates, float momentum, float decay,
                                     int nesterov, const REAL* grads, float* momenta, float* params, REAL* copy) {
    unsigned i = thread_index();
    if (i >= n) {
        return;
    }
    float rate = rates[step->step];
    float weight = params[i];
    float direction = wide(grads[i]) + decay * weight;
    if (momenta) {
        float buffer = momentum * momenta[i] + direction;
        momenta[i] = buffer;
        direction = nesterov ? direction + momentum * buffer : buffer;
    }
    weight -= rate * direction;
    params[i] = weight;
    if (copy) {
        narrow(weight, copy[i]);
    }
}

// factors is [steps of the epoch][3]: step size, square root of the second bias correction, share that decay leaves.
extern "C" __global__ void NAME(adamw)(unsigned n, const Step* step, const float* factors, float new1, float beta2,
                                       float new2, float epsilon, const REAL* grads, float* firsts, float* seconds,
                                       float* params, REAL* copy) {
    unsigned i = thread_index();
    if (i >= n) {
        return;
    }
    const float* factor = factors + 3 * static_cast<size_t>(step->step);
    float grad = wide(grads[i]);
    float first = firsts[i];
    first += new1 * (grad - first);
    float second = beta2 * seconds[i] + new2 * grad * grad;
    firsts[i] = first;
    seconds[i] = second;
    float weight = factor[2] * params[i] - factor[0] * first / (sqrtf(second) / factor[1] + epsilon);
    params[i] = weight;
    if (copy) {
        narrow(weight, copy[i]);
    }
}
