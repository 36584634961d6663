// A map that was computed at some positions only: the others get the mean of those around, weighted by their distance; then
// residual and activation. Channels-last; compiled once for each instruction set and type of the maps, like rows.cpp.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "threads.h"
#include "vectors.h"

namespace {

struct Tap {
    const Number* from;
    float weight;
};

// out[c] = act(residual[c] + sum of weight * from[c]) for N vectors of channels
template <int N>
inline void combine(const Tap* taps, int64_t count, const Number* residual, Number* out, int64_t c, int64_t activation) {
    V sum[N];
#pragma GCC unroll 8
    for (int j = 0; j < N; j++) sum[j] = load(residual + c + j * LANES);
    for (int64_t t = 0; t < count; t++)
#pragma GCC unroll 8
        for (int j = 0; j < N; j++) sum[j] += load(taps[t].from + c + j * LANES) * taps[t].weight;
#pragma GCC unroll 8
    for (int j = 0; j < N; j++) store(out + c + j * LANES, activate(sum[j], activation));
}

// The samples that position (y, z) of a picture is made of, their weights adding up to 1; returns how many.
int64_t find(const float* on, const Number* sampled, const float* kernel, const int64_t* sizes, int64_t y, int64_t z, Tap* taps) {
    const int64_t height = sizes[1], width = sizes[2], channels = sizes[3], window = sizes[4], half = window / 2;
    if (on[y * width + z] > 0) {
        taps[0] = {sampled + (y * width + z) * channels, 1.0f};
        return 1;
    }
    int64_t count = 0;
    float total = 0;
    for (int64_t i = std::max<int64_t>(y - half, 0); i <= std::min(y + half, height - 1); i++)
        for (int64_t j = std::max<int64_t>(z - half, 0); j <= std::min(z + half, width - 1); j++)
            if (on[i * width + j] > 0) {
                const float weight = kernel[(i - y + half) * window + j - z + half];
                taps[count++] = {sampled + (i * width + j) * channels, weight};
                total += weight;
            }
    for (int64_t t = 0; t < count; t++) taps[t].weight /= std::max(total, 1e-12f);
    return count;
}

}  // namespace

extern "C" {

// sampled, residual and out are (B, H, W, C), on is (B, H, W) in fp32, `sizes` holds B, H, W, C, the odd side of the window that
// `kernel` has the weights of, and the activation.
void JOIN(interpolate, ISA)(const Number* sampled, const float* on, const float* kernel, const int64_t* sizes,
                            const Number* residual, Number* out) {
    const int64_t height = sizes[1], width = sizes[2], channels = sizes[3], lines = sizes[0] * height;
#pragma omp parallel for schedule(static) if (threads() > 1)
    for (int64_t line = 0; line < lines; line++) {
        std::vector<Tap> taps(sizes[4] * sizes[4]);
        const int64_t picture = line / height, first = picture * height * width;
        for (int64_t z = 0; z < width; z++) {
            const int64_t count = find(on + first, sampled + first * channels, kernel, sizes, line - picture * height, z, taps.data());
            const Number* under = residual + (line * width + z) * channels;
            Number* to = out + (line * width + z) * channels;
            int64_t c = 0;
            for (; c + 4 * LANES <= channels; c += 4 * LANES) combine<4>(taps.data(), count, under, to, c, sizes[5]);
            for (; c + LANES <= channels; c += LANES) combine<1>(taps.data(), count, under, to, c, sizes[5]);
            if (c == channels) continue;
            float value[LANES] = {};
            for (int64_t k = c; k < channels; k++) {
                value[k - c] = under[k];
                for (int64_t t = 0; t < count; t++) value[k - c] += taps[t].from[k] * taps[t].weight;
            }
            store(value, activate(load(value), sizes[5]));
            std::copy_n(value, channels - c, to + c);
        }
    }
}

}  // extern "C"
