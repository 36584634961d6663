// What policies read of a map, channels-last fp32: one number a position or patch. A matrix kernel pads a single output
// channel to a whole register; these are dot products, and read the map once.
//
// Compiled once for each instruction set, like rows.cpp.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "threads.h"
#include "vectors.h"

namespace {

inline float total(V v) {
    float sum = 0;
    for (int j = 0; j < LANES; j++) sum += v[j];
    return sum;
}

// sum_i x[i] * w[i]; four accumulators hide the latency of the additions
inline float dot(const float* x, const float* w, int64_t n) {
    V sum[4] = {};
    int64_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) sum[j] += load(x + i + j * LANES) * load(w + i + j * LANES);
    for (; i + LANES <= n; i += LANES) sum[0] += load(x + i) * load(w + i);
    const V all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    float result = total(all);
    for (; i < n; i++) result += x[i] * w[i];
    return result;
}

// out[z] += the three taps of a line of a 3x3 kernel around z; with T = 4 the fourth is summed over the line and returned.
// A few positions at a time share the loads of the taps, and each position is loaded once for all of them.
template <int T>
float line3(const float* line, const float* const* taps, int64_t width, int64_t channels, float* out) {
    constexpr int P = LANES >= 16 ? 4 : 3;
    float pooled = 0;
    int64_t z = 0;
    for (; z + P <= width; z += P) {
        V sum[P][T] = {};
        int64_t c = 0;
        for (; c + LANES <= channels; c += LANES) {
            V w[T];
#pragma GCC unroll 4
            for (int t = 0; t < T; t++) w[t] = load(taps[t] + c);
#pragma GCC unroll 4
            for (int p = 0; p < P; p++) {
                const V v = load(line + (z + p) * channels + c);
#pragma GCC unroll 4
                for (int t = 0; t < T; t++) sum[p][t] += v * w[t];
            }
        }
        for (int p = 0; p < P; p++)
            for (int t = 0; t < T; t++) {
                float s = total(sum[p][t]);
                for (int64_t i = c; i < channels; i++) s += line[(z + p) * channels + i] * taps[t][i];
                const int64_t at = z + p + 1 - t;
                if (t == 3)
                    pooled += s;
                else if (at >= 0 && at < width)
                    out[at] += s;
            }
    }
    for (; z < width; z++)
        for (int t = 0; t < T; t++) {
            const float s = dot(line + z * channels, taps[t], channels);
            const int64_t at = z + 1 - t;
            if (t == 3)
                pooled += s;
            else if (at >= 0 && at < width)
                out[at] += s;
        }
    return pooled;
}

// Output lines `first` to `last` of a k x k convolution to one channel; returns the sum of `pooled` (C, or null) times the
// input's lines from `first * stride` up to `owned`.
double score_lines(const float* x, int64_t height, int64_t width, int64_t channels, int64_t kernel, int64_t stride,
                   const float* weight, const float* pooled, int64_t first, int64_t last, int64_t out_width, int64_t owned,
                   float* scores) {
    if (first >= last) return 0;
    const int64_t pad = kernel / 2;
    const bool by_line = kernel == 3 && stride == 1;
    std::fill_n(scores + first * out_width, (last - first) * out_width, 0.0f);
    double sum = 0;
    const int64_t end = std::max(owned, std::min(height, (last - 1) * stride - pad + kernel));
    for (int64_t y = std::max<int64_t>(0, first * stride - pad); y < end; y++) {
        const float* line = x + y * width * channels;
        for (int64_t ky = 0; ky < kernel; ky++) {
            const int64_t oy = (y + pad - ky) / stride;
            if ((y + pad - ky) % stride || oy < first || oy >= last) continue;
            float* out = scores + oy * out_width;
            const float* taps = weight + ky * kernel * channels;
            const float* four[] = {taps, taps + channels, taps + 2 * channels, pooled};
            if (by_line && ky == 1 && pooled)
                sum += line3<4>(line, four, width, channels, out);
            else if (by_line)
                line3<3>(line, four, width, channels, out);
            else
                for (int64_t ox = 0; ox < out_width; ox++) {
                    const int64_t left = std::max<int64_t>(ox * stride - pad, 0);
                    const int64_t right = std::min(ox * stride - pad + kernel, width);
                    // the taps of a line lie side by side in the map and in the weight: one long product
                    out[ox] += dot(line + left * channels, taps + (left - (ox * stride - pad)) * channels,
                                   (right - left) * channels);
                }
        }
        if (pooled && !by_line && y >= first * stride && y < owned)
            for (int64_t z = 0; z < width; z++) sum += dot(line + z * channels, pooled, channels);
    }
    return sum;
}

}  // namespace

extern "C" {

// Mean over each patch of w . x + bias: x (B, H, W, C) -> scores (B, ceil(H / patch), ceil(W / patch)).
void JOIN(patch_scores, ISA)(const float* x, int64_t batch, int64_t height, int64_t width, int64_t channels, int64_t patch,
                             const float* weight, const float* bias, float* scores) {
    const int64_t cells_x = (width + patch - 1) / patch, cells_y = (height + patch - 1) / patch;
#pragma omp parallel for schedule(static) collapse(2) if (threads() > 1)
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
                line[gx] = line[gx] / float((bottom - top) * wide) + *bias;
            }
        }
}

// A k x k convolution to one channel, padding k / 2, plus bias, plus `pooled` (C, or null) times the channels' means:
// x (B, H, W, C), weight (k, k, C) -> scores (B, H', W').
void JOIN(conv_scores, ISA)(const float* x, int64_t batch, int64_t height, int64_t width, int64_t channels, int64_t kernel,
                            int64_t stride, const float* weight, const float* pooled, const float* bias, float* scores) {
    const int64_t pad = kernel / 2, out_height = (height + 2 * pad - kernel) / stride + 1;
    const int64_t out_width = (width + 2 * pad - kernel) / stride + 1, positions = out_height * out_width;
    // A part of the output's lines for each thread; a part's sums of the channels' means are added up in order.
    const int64_t parts = std::min(out_height, threads()), lines = (out_height + parts - 1) / parts;
    std::vector<double> sums(batch * parts);
#pragma omp parallel for schedule(static) if (batch * parts > 1 && threads() > 1)
    for (int64_t i = 0; i < batch * parts; i++) {
        const int64_t b = i / parts, first = i % parts * lines, last = std::min(out_height, first + lines);
        const int64_t owned = i % parts == parts - 1 ? height : std::min(height, last * stride);
        sums[i] = score_lines(x + b * height * width * channels, height, width, channels, kernel, stride, weight, pooled, first,
                              last, out_width, owned, scores + b * positions);
    }
    for (int64_t b = 0; b < batch; b++) {
        double sum = 0;
        for (int64_t i = 0; i < parts; i++) sum += sums[b * parts + i];
        const float added = *bias + float(sum / double(height * width));
        for (int64_t i = 0; i < positions; i++) scores[b * positions + i] += added;
    }
}

}  // extern "C"
