// Convolutions at listed output positions, channels-last.
//
// An output row is one position of the output map with all its channels. A convolution at a list of rows is an indirect
// matrix product, as in XNNPACK (Dukhan, "The Indirect Convolution Algorithm", 2019): a row of the left matrix is a list of
// pointers, one a tap, straight into the input map; taps outside the map point to zeros. Weights are packed once. Bias, scale,
// residual and activation are applied to sums that have not been rounded.
//
// This file is compiled once for each instruction set and type of numbers (__init__.py): ISA names the exported symbols, LANES
// is the number of floats in a vector register, MR and NV are the rows and the vectors a row of a register tile. Vectors are
// GCC/Clang vector extensions, not intrinsics.

#include <algorithm>
#include <cstdint>
#include <vector>

#ifdef BF16
#include "dense_bf16.h"
#else
#include "dense_float.h"
#endif
#include "threads.h"

namespace {

// Pointers to the taps of each row of a block; `zeros` stands for what lies outside the map.
void find_taps(const Shape& s, const Number* x, const Number* zeros, const int32_t* rows, int64_t count,
               const Number** taps) {
    const uint32_t out_width = s.out_width, out_height = s.out_height;  // divisions of 32 bits take half of the time
    for (int64_t i = 0; i < count; i++) {
        const uint32_t line = uint32_t(rows[i]) / out_width, column = uint32_t(rows[i]) - line * out_width;
        const uint32_t picture = line / out_height, row = line - picture * out_height;
        const int64_t top = row * s.stride_h - s.pad_h, left = column * s.stride_w - s.pad_w;
        const Number* base = x + picture * s.height * s.width * s.channels;
        for (int64_t ky = 0; ky < s.kernel_h; ky++)
            for (int64_t kx = 0; kx < s.kernel_w; kx++) {
                const int64_t y = top + ky * s.dilation_h, z = left + kx * s.dilation_w;
                const bool inside = y >= 0 && y < s.height && z >= 0 && z < s.width;
                *taps++ = inside ? base + (y * s.width + z) * s.channels : zeros;
            }
    }
}

// Rows of a block of work: at most `most`, and few enough that every thread gets some.
inline int64_t block_for(int64_t count, int64_t most) {
    const int64_t share = (count + threads() - 1) / threads();
    return std::min(most, std::max<int64_t>(4 * UNIT, (share + UNIT - 1) / UNIT * UNIT));
}

// Rows `begin` to `begin + size` of a dense kernel.
template <bool scattered, class Find, class Place>
void full_block(const Shape& s, Find find, Place place, int64_t begin, int64_t size, const Number* weight, const float* bias,
                const float* scale, const Number* residual, Number* out) {
    thread_local std::vector<const Number*> taps, from;
    thread_local std::vector<Number*> to;
    thread_local std::vector<float> factors;
    taps.resize(size * s.taps());
    from.resize(size);
    to.resize(size);
    if (scale) factors.resize(size);
    find(begin, size, taps.data());
    for (int64_t i = 0; i < size; i++) {
        to[i] = out + place(begin + i) * s.filters;
        from[i] = residual ? residual + place(begin + i) * s.filters : nullptr;
        if (scale) factors[i] = scale[place(begin + i)];
    }
    const Rows rows = {size, taps.data(), scale ? factors.data() : nullptr, residual ? from.data() : nullptr, to.data()};
    multiply_rows<scattered>(s, rows, weight, bias);
}

// `find(begin, size, taps)` gives the taps of some rows, `place(i)` the position of row i in the output.
template <bool scattered, class Find, class Place>
void full(const Shape& s, Find find, Place place, int64_t count, const Number* weight, const float* bias, const float* scale,
          const Number* residual, Number* out) {
    const int64_t block = block_for(count, block_rows(s));
#pragma omp parallel for schedule(dynamic) if (count > block && threads() > 1)
    for (int64_t begin = 0; begin < count; begin += block)
        full_block<scattered>(s, find, place, begin, std::min(block, count - begin), weight, bias, scale, residual, out);
}

// N vectors of channels of some rows, one filter a channel: weights are [taps][C]. T is the number of taps, so that the weights
// stay in registers, or 0: any.
template <int T, int N>
void filter(const Number* const* taps, int64_t tap_count, int64_t size, int64_t channels, const float* weight,
            const float* bias, const Number* const* residual, Number* const* out, int64_t channel, int64_t activation) {
    constexpr int KEPT = T ? T : 1;
    const int64_t count = T ? T : tap_count;
    V kept[KEPT][N];
    if (T)
#pragma GCC unroll 32
        for (int t = 0; t < KEPT; t++)
#pragma GCC unroll 4
            for (int j = 0; j < N; j++) kept[t][j] = load(weight + t * channels + channel + j * LANES);
    for (int64_t i = 0; i < size; i++, taps += count) {
        V sum[N];
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) sum[j] = load(bias + channel + j * LANES);
        if (T) {
#pragma GCC unroll 32
            for (int t = 0; t < KEPT; t++)
#pragma GCC unroll 4
                for (int j = 0; j < N; j++) sum[j] += load(taps[t] + channel + j * LANES) * kept[t][j];
        } else {
            for (int64_t t = 0; t < count; t++)
#pragma GCC unroll 4
                for (int j = 0; j < N; j++)
                    sum[j] += load(taps[t] + channel + j * LANES) * load(weight + t * channels + channel + j * LANES);
        }
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) {
            if (residual) sum[j] += load(residual[i] + channel + j * LANES);
            store(out[i] + channel + j * LANES, activate(sum[j], activation));
        }
    }
}

// Rows `begin` to `begin + size`, at most DEPTHWISE_BLOCK, of a kernel with one filter a channel.
constexpr int64_t DEPTHWISE_BLOCK = 32;
template <class Find, class Place>
void depthwise_block(const Shape& s, Find find, Place place, int64_t begin, int64_t size, const float* weight, const float* bias,
                     const Number* residual, Number* out) {
    const int64_t tap_count = s.kernel_h * s.kernel_w, channels = s.channels;
    thread_local std::vector<const Number*> taps;
    taps.resize(tap_count * size);
    const Number* from[DEPTHWISE_BLOCK];
    Number* to[DEPTHWISE_BLOCK];
    const auto wide = tap_count == 9 ? filter<9, 2> : tap_count == 25 ? filter<25, 1> : filter<0, 2>;
    const auto narrow = tap_count == 9 ? filter<9, 1> : tap_count == 25 ? filter<25, 1> : filter<0, 1>;
    const int64_t step = (tap_count == 25 ? 1 : 2) * LANES;
    find(begin, size, taps.data());
    for (int64_t i = 0; i < size; i++) {
        to[i] = out + place(begin + i) * channels;
        from[i] = residual ? residual + place(begin + i) * channels : nullptr;
    }
    const Number* const* added = residual ? from : nullptr;
    int64_t c = 0;
    for (; c + step <= channels; c += step)
        wide(taps.data(), tap_count, size, channels, weight, bias, added, to, c, s.activation);
    for (; c + LANES <= channels; c += LANES)
        narrow(taps.data(), tap_count, size, channels, weight, bias, added, to, c, s.activation);
    if (c == channels) return;
    for (int64_t i = 0; i < size; i++) {
        float value[LANES] = {};
        std::copy_n(bias + c, channels - c, value);
        for (int64_t t = 0; t < tap_count; t++)
            for (int64_t j = 0; j < channels - c; j++)
                value[j] += taps[i * tap_count + t][c + j] * weight[t * channels + c + j];
        if (residual)
            for (int64_t j = 0; j < channels - c; j++) value[j] += from[i][c + j];
        store(value, activate(load(value), s.activation));
        std::copy_n(value, channels - c, to[i] + c);
    }
}

template <class Find, class Place>
void depthwise(const Shape& s, Find find, Place place, int64_t count, const float* weight, const float* bias,
               const Number* residual, Number* out) {
#pragma omp parallel for schedule(static) if (count > 4 * DEPTHWISE_BLOCK && threads() > 1)
    for (int64_t begin = 0; begin < count; begin += DEPTHWISE_BLOCK)
        depthwise_block(s, find, place, begin, std::min(DEPTHWISE_BLOCK, count - begin), weight, bias, residual, out);
}

// Blocks with borders, each entry naming a position of a pool: where the taps of an operator on them lie.
struct Blocks {
    const int32_t* codes;                      // (n, high, wide); -1: outside; from `count` on: a position of `means`
    int64_t high, wide, out_high, out_wide;    // sizes of a block with borders, of its output
    const Number *x, *means, *zeros;
    int64_t count, pitch;                      // positions in the pool, numbers from one to the next

    template <class Pointer>
    void find(const Shape& s, int64_t begin, int64_t size, Pointer taps) const {
        if (!codes) {  // a 1x1 convolution reads what it writes
            for (int64_t i = 0; i < size; i++) *taps++ = x + (begin + i) * pitch;
            return;
        }
        int64_t column = begin % out_wide, line = begin / out_wide % out_high, block = begin / out_wide / out_high;
        for (int64_t i = 0; i < size; i++) {
            const int32_t* at = codes + (block * high + line * s.stride_h) * wide + column * s.stride_w;
            for (int64_t ky = 0; ky < s.kernel_h; ky++, at += s.dilation_h * wide)
                for (int64_t kx = 0; kx < s.kernel_w; kx++) {
                    const int64_t code = at[kx * s.dilation_w];
                    *taps++ = code < 0 ? zeros : code < count ? x + code * pitch : means + (code - count) * pitch;
                }
            if (++column == out_wide) {
                column = 0;
                if (++line == out_high) {
                    line = 0;
                    block++;
                }
            }
        }
    }
};

// Means of four positions of a pool each, (count, C).
const Number* average(const Number* x, int64_t channels, const int32_t* quads, int64_t count) {
    thread_local std::vector<Number> means;
    means.resize(std::max<int64_t>(count * channels, LANES));
    Number* out = means.data();
    for (int64_t i = 0; i < count; i++, quads += 4, out += channels) {
        const Number *a = x + quads[0] * channels, *b = x + quads[1] * channels;
        const Number *c = x + quads[2] * channels, *d = x + quads[3] * channels;
        for (int64_t k = 0; k < channels; k++) out[k] = 0.25f * (a[k] + b[k] + c[k] + d[k]);
    }
    return means.data();
}

}  // namespace

extern "C" {

// Columns of a panel of weights that make `depth` products a number.
int64_t JOIN(columns, ISA)(int64_t depth) { return columns(depth); }

// x (B, H, W, C) -> rows of out (B, H', W', N), both contiguous. `weight` is packed, `bias` is padded to whole columns,
// `scale` is null or holds a factor for each position of `out`, for kernels that are not depthwise; `residual` is null or has
// the layout of `out` (it may be `out`). `zeros` holds C numbers.
void JOIN(convolve, ISA)(const int64_t* shape, int64_t is_depthwise, const Number* x, const Number* zeros, const int32_t* rows,
                         int64_t count, const void* weight, const float* bias, const float* scale, const Number* residual,
                         Number* out) {
    const Shape& s = *reinterpret_cast<const Shape*>(shape);
    const auto find = [&](int64_t begin, int64_t size, const Number** taps) { find_taps(s, x, zeros, rows + begin, size, taps); };
    const auto place = [&](int64_t i) { return int64_t(rows[i]); };
    if (is_depthwise)
        depthwise(s, find, place, count, static_cast<const float*>(weight), bias, residual, out);
    else
        full<true>(s, find, place, count, static_cast<const Number*>(weight), bias, scale, residual, out);
}

// The same over blocks of a pool (P, C): `sizes` holds n, the sizes of a block with borders and of its output, the number of
// averages, P, and the numbers from one position to the next (C, unless a tap reads several neighbouring positions at once);
// `codes` are those of Blocks, or null for a 1x1 convolution, `quads` the four positions of each average. `out` and
// `residual` are (n * H' * W', N).
void JOIN(convolve_blocks, ISA)(const int64_t* shape, int64_t is_depthwise, const int64_t* sizes, const int32_t* codes,
                                const int32_t* quads, const Number* x, const Number* zeros, const void* weight, const float* bias,
                                const Number* residual, Number* out) {
    const Shape& s = *reinterpret_cast<const Shape*>(shape);
    const Number* means = average(x, s.channels, quads, sizes[5]);
    const Blocks blocks = {codes, sizes[1], sizes[2], sizes[3], sizes[4], x, means, zeros, sizes[6], sizes[7]};
    const auto find = [&](int64_t begin, int64_t size, const Number** taps) { blocks.find(s, begin, size, taps); };
    const auto place = [](int64_t i) { return i; };
    const int64_t count = sizes[0] * sizes[3] * sizes[4];
    if (is_depthwise)
        depthwise(s, find, place, count, static_cast<const float*>(weight), bias, residual, out);
    else
        full<false>(s, find, place, count, static_cast<const Number*>(weight), bias, nullptr, residual, out);
}

// Maxima instead of sums; what lies outside counts for nothing.
void JOIN(max_blocks, ISA)(const int64_t* shape, const int64_t* sizes, const int32_t* codes, const int32_t* quads, const Number* x,
                           Number* out) {
    const Shape& s = *reinterpret_cast<const Shape*>(shape);
    const int64_t channels = s.channels;
    const Number* means = average(x, channels, quads, sizes[5]);
    const Blocks blocks = {codes, sizes[1], sizes[2], sizes[3], sizes[4], x, means, nullptr, sizes[6], sizes[7]};
    const int64_t count = sizes[0] * sizes[3] * sizes[4], line = sizes[4];
#pragma omp parallel for schedule(static) if (threads() > 1)
    for (int64_t begin = 0; begin < count; begin += line) {
        std::vector<const Number*> taps(s.kernel_h * s.kernel_w);
        for (int64_t i = begin; i < begin + line; i++) {
            blocks.find(s, i, 1, taps.data());
            Number* to = out + i * channels;
            bool first = true;
            for (const Number* tap : taps) {
                if (!tap) continue;
                if (first)
                    std::copy_n(tap, channels, to);
                else
                    for (int64_t c = 0; c < channels; c++) to[c] = to[c] < tap[c] ? tap[c] : to[c];
                first = false;
            }
        }
    }
}

}  // extern "C"
