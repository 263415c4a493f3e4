// Images into the network. The input has INPUT channels, of which three are used: a vector of 16 bytes a pixel, so that the
// first convolution reads aligned rows; the others are zero.

// Row order[position + image] of the data set, moved, mirrored and normalised. n counts pixels of the batch; draws is
// [epoch's rows][3]: rows down, columns right, mirrored.
extern "C" __global__ void NAME(augment)(unsigned n, unsigned height, unsigned width, const Step* step,
                                         const unsigned* order, const int* draws, const unsigned char* pixels,
                                         const float* normalise, REAL* images) {
    unsigned i = thread_index();
    if (i >= n) {
        return;
    }
    unsigned x = i % width, y = i / width % height, image = step->position + i / width / height;
    const int* draw = draws + 3 * static_cast<size_t>(image);
    int from_y = static_cast<int>(y) + draw[0];
    int from_x = static_cast<int>(draw[2] ? width - 1 - x : x) + draw[1];
    bool inside = from_y >= 0 && from_y < static_cast<int>(height) && from_x >= 0 && from_x < static_cast<int>(width);
    Vector<REAL> pixel = load_if(0, images, i);
    size_t from = ((static_cast<size_t>(order[image]) * height + from_y) * width + from_x) * 3;
    for (int channel = 0; channel < 3; channel++) {
        float byte = inside ? static_cast<float>(pixels[from + channel]) : 0.0f;
        narrow(byte * normalise[channel] + normalise[3 + channel], pixel.lanes[channel]);
    }
    store(images, i, pixel);
}

// Prepared images [n pixels, 3].
extern "C" __global__ void NAME(images_in)(unsigned n, const float* from, REAL* images) {
    unsigned i = thread_index();
    if (i >= n) {
        return;
    }
    Vector<REAL> pixel = load_if(0, images, i);
    for (int channel = 0; channel < 3; channel++) {
        narrow(from[3 * static_cast<size_t>(i) + channel], pixel.lanes[channel]);
    }
    store(images, i, pixel);
}
