// What a training step needs besides the network: the loss, the optimisers, and the counter that makes every step the
// same sequence of launches.

// Softmax cross-entropy with label smoothing, in double precision; the mathematics of nn/loss.rs. Writes the gradient
// of the mean loss over `rows`, and every row's loss and prediction behind those of the epoch so far.
extern "C" __global__ void cross_entropy(unsigned rows, unsigned n_classes, double smoothing, const Step* step,
                                         const unsigned* order, const int* labels, const float* logits, float* grad,
                                         float* losses, int* predicted) {
    unsigned row = thread_index();
    if (row >= rows) {
        return;
    }
    const float* own = logits + static_cast<size_t>(row) * n_classes;
    float* own_grad = grad + static_cast<size_t>(row) * n_classes;
    unsigned position = step->position + row;
    int label = labels[order[position]];
    // A NaN is never larger, and shows in the sum.
    float largest = own[0];
    int best = 0;
    for (unsigned k = 1; k < n_classes; k++) {
        if (own[k] > own[best]) {
            best = static_cast<int>(k);
        }
        if (own[k] > largest || largest != largest) {
            largest = own[k];
        }
    }
    double sum = 0.0;
    for (unsigned k = 0; k < n_classes; k++) {
        sum += exp(static_cast<double>(own[k]) - static_cast<double>(largest));
    }
    double normaliser = static_cast<double>(largest) + log(sum);
    double spread = smoothing / n_classes;
    double scale = 1.0 / rows;
    double loss = 0.0;
    for (unsigned k = 0; k < n_classes; k++) {
        double log_probability = static_cast<double>(own[k]) - normaliser;
        double target = spread + (static_cast<int>(k) == label ? 1.0 - smoothing : 0.0);
        if (target > 0.0) {
            loss -= target * log_probability;
        }
        own_grad[k] = static_cast<float>((exp(log_probability) - target) * scale);
    }
    losses[position] = static_cast<float>(loss);
    predicted[position] = best;
}

// The last launch of a step.
extern "C" __global__ void advance_step(unsigned rows, Step* step) {
    if (thread_index() == 0) {
        step->position += rows;
        step->step += 1;
    }
}
