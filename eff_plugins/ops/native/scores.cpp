// What policies read of a map, channels-last fp32: one number a position or patch. A matrix kernel pads a single output
// channel to a whole register; these are dot products, and read the map once.
//
// Compiled once for each instruction set, like rows.cpp.

#include <algorithm>
#include <cstdint>

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)

namespace {

typedef float V __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

inline V load(const float* p) { return *reinterpret_cast<const V*>(p); }

// sum_i x[i] * w[i]; four accumulators hide the latency of the additions
inline float dot(const float* x, const float* w, int64_t n) {
    V sum[4] = {};
    int64_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) sum[j] += load(x + i + j * LANES) * load(w + i + j * LANES);
    for (; i + LANES <= n; i += LANES) sum[0] += load(x + i) * load(w + i);
    const V all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    float total = 0;
    for (int j = 0; j < LANES; j++) total += all[j];
    for (; i < n; i++) total += x[i] * w[i];
    return total;
}

}  // namespace

extern "C" {

// Mean over each patch of w . x + bias: x (B, H, W, C) -> scores (B, ceil(H / patch), ceil(W / patch)).
void JOIN(patch_scores, ISA)(const float* x, int64_t batch, int64_t height, int64_t width, int64_t channels, int64_t patch,
                             const float* weight, float bias, float* scores) {
    const int64_t cells_x = (width + patch - 1) / patch, cells_y = (height + patch - 1) / patch;
    for (int64_t b = 0; b < batch; b++)
        for (int64_t gy = 0; gy < cells_y; gy++) {
            const int64_t top = gy * patch, bottom = std::min(top + patch, height);
            float* line = scores + (b * cells_y + gy) * cells_x;
            std::fill_n(line, cells_x, 0.0f);
            for (int64_t y = top; y < bottom; y++) {  // along the lines, as they lie in memory
                const float* at = x + (b * height + y) * width * channels;
                for (int64_t z = 0; z < width; z++, at += channels) line[z / patch] += dot(at, weight, channels);
            }
            for (int64_t gx = 0; gx < cells_x; gx++) {
                const int64_t wide = std::min(patch, width - gx * patch);
                line[gx] = line[gx] / float((bottom - top) * wide) + bias;
            }
        }
}

// A k x k convolution to one channel, padding k / 2: x (B, H, W, C), weight (k, k, C) -> scores (B, H', W').
void JOIN(conv_scores, ISA)(const float* x, int64_t batch, int64_t height, int64_t width, int64_t channels, int64_t kernel,
                            int64_t stride, const float* weight, float* scores) {
    const int64_t pad = kernel / 2, out_height = (height + 2 * pad - kernel) / stride + 1;
    const int64_t out_width = (width + 2 * pad - kernel) / stride + 1;
    for (int64_t b = 0; b < batch; b++)
        for (int64_t oy = 0; oy < out_height; oy++)
            for (int64_t ox = 0; ox < out_width; ox++) {
                const int64_t left = std::max<int64_t>(ox * stride - pad, 0);
                const int64_t right = std::min(ox * stride - pad + kernel, width);
                const int64_t skipped = left - (ox * stride - pad);
                float total = 0;
                for (int64_t ky = 0; ky < kernel; ky++) {
                    const int64_t y = oy * stride - pad + ky;
                    if (y < 0 || y >= height) continue;
                    // the taps of a line lie side by side in the map and in the weight: one long product
                    total += dot(x + ((b * height + y) * width + left) * channels,
                                 weight + (ky * kernel + skipped) * channels, (right - left) * channels);
                }
                *scores++ = total;
            }
}

}  // extern "C"
