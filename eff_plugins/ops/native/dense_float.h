// Rows times a matrix of weights in fp32. Weights are packed as [N / W][taps * C][W], W columns a panel.

#pragma once

#include <algorithm>
#include <array>
#include <utility>

#include "shape.h"

namespace {

constexpr int64_t LINE = 16;             // floats of a cache line
constexpr int64_t BLOCK_BYTES = 300000;  // input that a block of rows may touch: it stays in the second-level cache

// Whether a panel of NV vectors would not stay in the second-level cache while all rows are multiplied by it: narrow, high
// tiles take its place. Measured with AVX-512 alone, where NV is large.
inline bool is_deep(int64_t depth) { return LANES == 16 && depth >= 2000; }
inline int64_t columns(int64_t depth) { return LANES * (is_deep(depth) ? 2 : NV); }

// Rows of a block of work, and the unit in which they are counted.
constexpr int64_t UNIT = MR;
inline int64_t block_rows(const Shape& s) {
    // Neighbouring rows share most of their taps, so a row of a k x k kernel adds about two positions of input.
    return std::max<int64_t>(4, BLOCK_BYTES / (4 * s.channels * (s.taps() > 1 ? 2 : 1)) / MR) * MR;
}

// M rows times N vectors of a panel of W. `ahead` is the panel that comes next: weights are read once for a network, and the
// cache by itself would fetch them too late, so each step asks for some of them (measured with AVX-512 alone). All loops over
// the accumulators are unrolled, else they spill and run at half the speed.
template <int W, int M, int N>
void tile(const float* const* taps, int64_t tap_count, int64_t channels, const float* weight, const float* bias,
          const float* scale, const float* const* residual, float* const* out, int64_t column, int64_t columns,
          int64_t activation, const float* ahead, int64_t step) {
    V sum[M][N];
#pragma GCC unroll 16
    for (int i = 0; i < M; i++)
#pragma GCC unroll 16
        for (int j = 0; j < N; j++) sum[i][j] = load(bias + j * LANES);
    for (int64_t t = 0; t < tap_count; t++) {
        const float* row[M];
#pragma GCC unroll 16
        for (int i = 0; i < M; i++) row[i] = taps[i * tap_count + t];
#pragma GCC unroll 4
        for (int64_t k = 0; k < channels; k++) {
            V w[N];
#pragma GCC unroll 16
            for (int j = 0; j < N; j++) w[j] = load(weight + j * LANES);
            weight += W * LANES;
            if (LANES == 16) {
                __builtin_prefetch(ahead, 0, 2);
                ahead += step;
            }
#pragma GCC unroll 16
            for (int i = 0; i < M; i++)
#pragma GCC unroll 16
                for (int j = 0; j < N; j++) sum[i][j] += row[i][k] * w[j];
        }
    }
    if (columns >= N * LANES) {
#pragma GCC unroll 16
        for (int i = 0; i < M; i++)
#pragma GCC unroll 16
            for (int j = 0; j < N; j++) {
                V v = sum[i][j];
                if (scale) v *= scale[i];
                if (residual) v += load(residual[i] + column + j * LANES);
                store(out[i] + column + j * LANES, activate(v, activation));
            }
        return;
    }
    // The last columns: no whole register may be read or written beyond the row's end.
    float buffer[W * LANES] = {};
    for (int i = 0; i < M; i++) {
        if (residual) std::copy_n(residual[i] + column, columns, buffer);
#pragma GCC unroll 16
        for (int j = 0; j < N; j++) {
            V v = sum[i][j];
            if (scale) v *= scale[i];
            if (residual) v += load(buffer + j * LANES);
            store(buffer + j * LANES, activate(v, activation));
        }
        std::copy_n(buffer, columns, out[i] + column);
    }
}

using Tile = decltype(&tile<1, 1, 1>);

// The tiles of every height up to `rows` and width up to `vectors`: TILES<rows, vectors>[M - 1][N - 1].
template <int M, int... N>
constexpr std::array<Tile, sizeof...(N)> widths(std::integer_sequence<int, N...>) { return {tile<sizeof...(N), M, N + 1>...}; }
template <int vectors, int... M>
constexpr std::array<std::array<Tile, vectors>, sizeof...(M)> heights(std::integer_sequence<int, M...>) {
    return {widths<M + 1>(std::make_integer_sequence<int, vectors>())...};
}
template <int rows, int vectors>
constexpr auto TILES = heights<vectors>(std::make_integer_sequence<int, rows>());

// Has the cache fetch `count` floats; where W is 1 they will be written, a hint that not every processor takes.
template <int W>
inline void fetch(const float* p, int64_t count) {
    for (int64_t i = 0; i < count; i += LINE) __builtin_prefetch(p + i, W);
}

// All rows, in tiles of R rows and W vectors. Scattered rows lie at distances that the processor does not foresee: the next tile's
// are asked for in time, which saves a fifth of the time where maps exceed the second-level cache.
template <int R, int W, bool scattered>
void multiply_panels(const Shape& s, const Rows& rows, const float* weight, const float* bias) {
    const int64_t tap_count = s.taps(), depth = s.depth(), width = W * LANES, tiles = (rows.count + R - 1) / R;
    const int64_t step = std::max<int64_t>(1, width / tiles);
    for (int64_t n = 0; n < s.filters; n += width, weight += width * depth) {
        const int64_t left = s.filters - n, vectors = std::min<int64_t>(W, (left + LANES - 1) / LANES);
        const float* ahead = weight + width * depth;
        for (int64_t i = 0; i < rows.count; i += R, ahead += step * depth) {
            const int64_t next = std::min(i + R, rows.count), end = std::min(next + R, rows.count);
            if constexpr (scattered) {
                for (int64_t j = next; j < end; j++) fetch<1>(rows.out[j] + n, std::min(width, left));
                if (n == 0)
                    for (int64_t t = next * tap_count; t < end * tap_count; t++) fetch<0>(rows.taps[t], s.channels);
            }
            TILES<R, W>[next - i - 1][vectors - 1](rows.taps + i * tap_count, tap_count, s.channels, weight, bias + n,
                                                   rows.scale ? rows.scale + i : nullptr,
                                                   rows.residual ? rows.residual + i : nullptr, rows.out + i, n, left,
                                                   s.activation, ahead, step);
        }
    }
}

template <bool scattered>
void multiply_rows(const Shape& s, const Rows& rows, const float* weight, const float* bias) {
    if constexpr (LANES == 16)
        if (is_deep(s.depth())) return multiply_panels<14, 2, scattered>(s, rows, weight, bias);
    multiply_panels<MR, NV, scattered>(s, rows, weight, bias);
}

}  // namespace
