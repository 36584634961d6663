// What policies read of a map, channels-last: one number a position or patch. A matrix kernel pads a single output
// channel to a whole register; these read the map once, or compute the taps of a 3x3 kernel side by side.
//
// Compiled once for each instruction set and type of the map, like rows.cpp; weights are fp32, and so are
// scores, of values that the map's type has.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "threads.h"
#include "tiles.h"
#include "vectors.h"

namespace {

inline float total(V v) {
    float sum[LANES];
    store(sum, v);
    for (int n = LANES / 2; n; n /= 2)
        for (int j = 0; j < n; j++) sum[j] += sum[j + n];
    return sum[0];
}

// sum_i x[i] * w[i]; four accumulators hide the latency of the additions
inline float dot(const Number* x, const float* w, int64_t n) {
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

// The first N vectors of w times their sums over `count` positions of x.
template <int N>
inline V weigh(const Number* x, int64_t count, const float* w, int64_t channels) {
    V sum[N] = {}, all = {};
    for (int64_t z = 0; z < count; z++)
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) sum[j] += load(x + z * channels + j * LANES);
    for (int j = 0; j < N; j++) all += sum[j] * load(w + j * LANES);
    return all;
}

// w . the sum of `count` positions of x (count, C)
inline float dot_of_sum(const Number* x, int64_t count, const float* w, int64_t channels) {
    if (count == 1) return dot(x, w, channels);
    V all = {};
    int64_t c = 0;
    for (; c + 4 * LANES <= channels; c += 4 * LANES) all += weigh<4>(x + c, count, w + c, channels);
    for (; c + 2 * LANES <= channels; c += 2 * LANES) all += weigh<2>(x + c, count, w + c, channels);
    for (; c + LANES <= channels; c += LANES) all += weigh<1>(x + c, count, w + c, channels);
    float result = total(all);
    for (; c < channels; c++)
        for (int64_t z = 0; z < count; z++) result += x[z * channels + c] * w[c];
    return result;
}

// A 3x3 kernel with stride 1 multiplies each position by nine taps. COLUMNS of them lie side by side, and a position's
// channels are broadcast to them, so that nothing has to be added up across a register; the last tap is a dot product where
// it is one too many. Where there is room beside the taps, the weights of the channels' means lie there.
constexpr int TAPS = 9, COLUMNS = LANES >= 16 ? 16 : 8, VECTORS = COLUMNS / LANES, CHAINS = VECTORS > 1 ? 1 : 2;
constexpr int SPACING = 16;  // from one position's products to the next one's
static_assert(COLUMNS % LANES == 0 && COLUMNS <= SPACING && (CHAINS == 1 || VECTORS == 1), "as multiply needs it");

#ifdef __AVX512BF16__

// Columns are (C / 2, COLUMNS, 2): pairs of channels are multiplied at once.
typedef Number Column;
inline int64_t column_at(int64_t channel, int64_t column) { return (channel / 2 * COLUMNS + column) * 2 + channel % 2; }

// x (P, C) times columns; the products stay in registers.
template <int P>
inline void multiply(const Number* x, const Column* columns, int64_t channels, float* products) {
    typedef int Pair __attribute__((aligned(2), may_alias));
    __m512 sum[2][P] = {};
    int64_t c = 0;
    for (; c + 4 <= channels; c += 4)
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            const __m512i w = _mm512_loadu_si512(columns + (c + 2 * i) * COLUMNS);
#pragma GCC unroll 4
            for (int p = 0; p < P; p++) {
                const __m512i pair = _mm512_set1_epi32(*reinterpret_cast<const Pair*>(x + p * channels + c + 2 * i));
                sum[i][p] = _mm512_dpbf16_ps(sum[i][p], (__m512bh)pair, (__m512bh)w);
            }
        }
    for (; c < channels; c += 2)
        for (int p = 0; p < P; p++) {
            int pair = 0;
            std::memcpy(&pair, x + p * channels + c, c + 1 < channels ? 4 : 2);
            const __m512i w = _mm512_loadu_si512(columns + c * COLUMNS);
            sum[0][p] = _mm512_dpbf16_ps(sum[0][p], (__m512bh)_mm512_set1_epi32(pair), (__m512bh)w);
        }
    for (int p = 0; p < P; p++) _mm512_storeu_ps(products + p * SPACING, _mm512_add_ps(sum[0][p], sum[1][p]));
}

#ifdef __AMX_BF16__
// The same for 16 positions whose channels are a multiple of 32.
inline void multiply16(const Number* x, const Column* columns, int64_t channels, float* products) {
    _tile_zero(0);
    for (int64_t c = 0; c < channels; c += 32) {
        _tile_loadd(1, x + c, 2 * channels);
        _tile_loadd(2, columns + c * COLUMNS, 4 * COLUMNS);
        _tile_dpbf16ps(0, 1, 2);
    }
    _tile_stored(0, products, 4 * SPACING);
    __asm__ volatile("" ::: "memory");
}
#endif

#else

// Columns are (C, COLUMNS).
typedef float Column;
inline int64_t column_at(int64_t channel, int64_t column) { return channel * COLUMNS + column; }

// x (P, C) times columns (C, COLUMNS); the products stay in registers.
template <int P>
inline void multiply(const Number* x, const Column* columns, int64_t channels, float* products) {
    V sum[CHAINS][P][VECTORS] = {};
    int64_t c = 0;
    for (; c + CHAINS <= channels; c += CHAINS)
#pragma GCC unroll 2
        for (int i = 0; i < CHAINS; i++)
#pragma GCC unroll 2
            for (int j = 0; j < VECTORS; j++) {
                const V w = load(columns + (c + i) * COLUMNS + j * LANES);
#pragma GCC unroll 4
                for (int p = 0; p < P; p++) sum[i][p][j] += float(x[p * channels + c + i]) * w;
            }
    for (; c < channels; c++)
        for (int p = 0; p < P; p++) sum[0][p][0] += float(x[p * channels + c]) * load(columns + c * COLUMNS);
    for (int p = 0; p < P; p++)
        for (int j = 0; j < VECTORS; j++)
            store(products + p * SPACING + j * LANES, CHAINS > 1 ? sum[0][p][j] + sum[CHAINS - 1][p][j] : sum[0][p][j]);
}

#endif

// weight (3, 3, C), and pooled (C, or null) where there is room, as columns; they have room for an even number of channels.
void lay_side_by_side(const float* weight, const float* pooled, int64_t channels, Column* columns) {
    std::fill_n(columns, (channels + channels % 2) * COLUMNS, Column(0.0f));
    for (int64_t t = 0; t < std::min(TAPS, COLUMNS); t++)
        for (int64_t c = 0; c < channels; c++) columns[column_at(c, t)] = weight[t * channels + c];
    if (pooled && COLUMNS > TAPS)
        for (int64_t c = 0; c < channels; c++) columns[column_at(c, TAPS)] = pooled[c];
}

// Adds a 3x3 convolution with stride 1 to one channel to `scores`, from output line `first` up to `last`; returns the sum of
// `pooled` (C, or null) times these lines of the input.
double score_lines3(const Number* x, int64_t height, int64_t width, int64_t channels, const float* weight, const float* pooled,
                    const Column* columns, int64_t first, int64_t last, float* scores) {
    constexpr int P = 4;
    thread_local std::vector<float> line;
    line.assign((std::max<int64_t>(width, 16) + 2) * SPACING, 0.0f);  // a zero beyond each end
    float* products = line.data() + SPACING;
    double sum = 0;
#ifdef __AMX_BF16__
    const TileConfig tiles;
#endif
    for (int64_t y = std::max<int64_t>(0, first - 1); y < std::min(height, last + 1); y++) {
        const Number* at = x + y * width * channels;
#ifdef __AMX_BF16__
        if (channels % 32 == 0 && y * width + std::max<int64_t>(width, 16) <= height * width) {
            for (int64_t z = 0; z < width; z += 16) {
                const int64_t from = std::max<int64_t>(0, std::min(z, width - 16));
                multiply16(at + from * channels, columns, channels, products + from * SPACING);
            }
            std::fill_n(products + width * SPACING, SPACING, 0.0f);  // short lines run into the next one
        } else
#endif
        if (width < P)
            for (int64_t z = 0; z < width; z++) multiply<1>(at + z * channels, columns, channels, products + z * SPACING);
        else
            for (int64_t z = 0; z < width; z += P) {
                const int64_t from = std::min(z, width - P);  // some of the last ones are computed twice
                multiply<P>(at + from * channels, columns, channels, products + from * SPACING);
            }
        for (int t = COLUMNS; t < TAPS; t++)
            for (int64_t z = 0; z < width; z++)
                products[z * SPACING + t] = dot(at + z * channels, weight + t * channels, channels);
        for (int64_t ky = 0; ky < 3; ky++) {
            const int64_t oy = y + 1 - ky;
            if (oy < first || oy >= last) continue;
            float* out = scores + oy * width;
            for (int64_t z = 0; z < width; z++) {
                const float* tap = products + z * SPACING + 3 * ky;
                out[z] += tap[-SPACING] + tap[1] + tap[SPACING + 2];
            }
        }
        if (!pooled || y < first || y >= last) continue;
        if (COLUMNS > TAPS)
            for (int64_t z = 0; z < width; z++) sum += products[z * SPACING + TAPS];
        else
            sum += dot_of_sum(at, width, pooled, channels);
    }
    return sum;
}

// As score_lines3, for any odd side and stride; the sum is that of the lines from `first * stride` up to `last * stride`.
double score_lines(const Number* x, int64_t height, int64_t width, int64_t channels, int64_t kernel, int64_t stride,
                   const float* weight, const float* pooled, int64_t first, int64_t last, int64_t out_width,
                   float* scores) {
    const int64_t pad = kernel / 2, owned = std::min(height, last * stride);
    double sum = 0;
    const int64_t end = std::max(owned, std::min(height, (last - 1) * stride - pad + kernel));
    for (int64_t y = std::max<int64_t>(0, first * stride - pad); y < end; y++) {
        const Number* line = x + y * width * channels;
        for (int64_t ky = 0; ky < kernel; ky++) {
            const int64_t oy = (y + pad - ky) / stride;
            if ((y + pad - ky) % stride || oy < first || oy >= last) continue;
            float* out = scores + oy * out_width;
            const float* taps = weight + ky * kernel * channels;
            for (int64_t ox = 0; ox < out_width; ox++) {
                const int64_t left = std::max<int64_t>(ox * stride - pad, 0);
                const int64_t right = std::min(ox * stride - pad + kernel, width);
                // the taps of a line lie side by side in the map and in the weight: one long product
                out[ox] += dot(line + left * channels, taps + (left - (ox * stride - pad)) * channels,
                               (right - left) * channels);
            }
        }
        if (pooled && y >= first * stride && y < owned) sum += dot_of_sum(line, width, pooled, channels);
    }
    return sum;
}

}  // namespace

extern "C" {

// Mean over each patch of w . x + bias: x (B, H, W, C) -> scores (B, ceil(H / patch), ceil(W / patch)).
void JOIN(patch_scores, ISA)(const Number* x, int64_t batch, int64_t height, int64_t width, int64_t channels, int64_t patch,
                             const float* weight, const float* bias, float* scores) {
    const int64_t cells_x = (width + patch - 1) / patch, cells_y = (height + patch - 1) / patch;
#pragma omp parallel for schedule(static) collapse(2) if (threads() > 1)
    for (int64_t b = 0; b < batch; b++)
        for (int64_t gy = 0; gy < cells_y; gy++) {
            const int64_t top = gy * patch, bottom = std::min(top + patch, height);
            float* line = scores + (b * cells_y + gy) * cells_x;
            std::fill_n(line, cells_x, 0.0f);
            for (int64_t y = top; y < bottom; y++) {  // along the lines, as they lie in memory
                const Number* at = x + (b * height + y) * width * channels;
                for (int64_t gx = 0; gx < cells_x; gx++, at += patch * channels)
                    line[gx] += dot_of_sum(at, std::min(patch, width - gx * patch), weight, channels);
            }
            for (int64_t gx = 0; gx < cells_x; gx++) {
                const int64_t wide = std::min(patch, width - gx * patch);
                line[gx] = Number(line[gx] / float((bottom - top) * wide) + *bias);
            }
        }
}

// A k x k convolution to one channel, padding k / 2, plus bias, plus `pooled` (C, or null) times the channels' means:
// x (B, H, W, C), weight (k, k, C) -> scores (B, H', W').
void JOIN(conv_scores, ISA)(const Number* x, int64_t batch, int64_t height, int64_t width, int64_t channels, int64_t kernel,
                            int64_t stride, const float* weight, const float* pooled, const float* bias, float* scores) {
    const int64_t pad = kernel / 2, out_height = (height + 2 * pad - kernel) / stride + 1;
    const int64_t out_width = (width + 2 * pad - kernel) / stride + 1, positions = out_height * out_width;
    // A part of the output's lines for each thread; a part's sums of the channels' means are added up in order.
    // Parts read a line of their neighbours', which a 3x3 kernel multiplies again: at most one part for four lines.
    const int64_t parts = std::min((out_height + 3) / 4, threads()), lines = (out_height + parts - 1) / parts;
    std::vector<double> sums(batch * parts);
    const bool by_columns = kernel == 3 && stride == 1;
    thread_local std::vector<Column> kept;
    if (by_columns) {
        kept.resize((channels + 1) * COLUMNS);
        lay_side_by_side(weight, pooled, channels, kept.data());
    }
    const Column* columns = kept.data();  // those of the calling thread
#pragma omp parallel for schedule(static) if (batch * parts > 1 && threads() > 1)
    for (int64_t i = 0; i < batch * parts; i++) {
        const int64_t b = i / parts, first = i % parts * lines, last = std::min(out_height, first + lines);
        const Number* map = x + b * height * width * channels;
        float* out = scores + b * positions;
        if (first >= last) continue;
        std::fill_n(out + first * out_width, (last - first) * out_width, 0.0f);
        sums[i] = by_columns ? score_lines3(map, height, width, channels, weight, pooled, columns, first, last, out)
                             : score_lines(map, height, width, channels, kernel, stride, weight, pooled, first, last, out_width,
                                           out);
    }
    for (int64_t b = 0; b < batch; b++) {
        double sum = 0;
        for (int64_t i = 0; i < parts; i++) sum += sums[b * parts + i];
        const float added = *bias + float(sum / double(height * width));
        for (int64_t i = b * positions; i < (b + 1) * positions; i++) scores[i] = Number(scores[i] + added);
    }
}

}  // extern "C"
