// Rows times a matrix of weights in bf16, summed in fp32: by AMX tiles, by AVX-512's dot products of pairs, or one by one.
//
// Weights are packed as [N / COLUMNS][D / 2][COLUMNS][2], D = taps * C padded with zeros to whole STEPs: a pair of products lies
// side by side, as the dot product instructions take them. Tiles are read from memory at equal distances, so a block's taps are
// gathered first.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "shape.h"
#include "tiles.h"

namespace {

constexpr int64_t ROWS = 32, COLUMNS = 32, STEP = 32;  // of two by two AMX tiles: rows, columns, products a number
constexpr int64_t BLOCK_BYTES = 600000;                // of gathered rows: they and a panel stay in the second-level cache
constexpr int64_t LARGE = 1000000;                     // bytes of weights that do not
constexpr int64_t AHEAD = 8;                           // rows that are fetched before they are gathered

inline int64_t columns(int64_t) { return COLUMNS; }
inline int64_t padded(int64_t depth) { return (depth + STEP - 1) / STEP * STEP; }

constexpr int64_t UNIT = ROWS;
inline int64_t block_rows(const Shape& s) {
    return std::clamp<int64_t>(BLOCK_BYTES / 2 / padded(s.depth()) / ROWS, 1, 16) * ROWS;
}

#ifdef __AMX_BF16__

// Tiles 0 to 3 are sums, 4 and 5 rows, 6 and 7 weights.
struct Tiles : TileConfig {
    // sums (ROWS, COLUMNS) = bias + rows (ROWS, depth) times a panel; the second half of the rows where there are so many
    void multiply(const Number* rows, int64_t pitch, int64_t count, const Number* panel, int64_t depth, const Number* ahead,
                  int64_t lines, const float* bias, float* sums) const {
        const bool both = count > ROWS / 2;
        _tile_loadd(0, bias, 0);
        _tile_loadd(1, bias + 16, 0);
        _tile_loadd(2, bias, 0);
        _tile_loadd(3, bias + 16, 0);
        const Number* below = rows + (both ? ROWS / 2 * pitch : 0);
        for (int64_t k = 0; k < depth; k += STEP, panel += STEP * COLUMNS) {
            _tile_loadd(6, panel, 4 * COLUMNS);
            _tile_loadd(7, panel + COLUMNS, 4 * COLUMNS);
            _tile_loadd(4, rows + k, 2 * pitch);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            for (int64_t i = 0; i < lines; i++, ahead += 32) __builtin_prefetch(ahead, 0, 2);
            if (!both) continue;
            _tile_loadd(5, below + k, 2 * pitch);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, sums, 4 * COLUMNS);
        _tile_stored(1, sums + 16, 4 * COLUMNS);
        if (!both) return;
        _tile_stored(2, sums + 16 * COLUMNS, 4 * COLUMNS);
        _tile_stored(3, sums + 16 * COLUMNS + 16, 4 * COLUMNS);
    }
};

#elif defined(__AVX512BF16__)

struct Tiles {
    void multiply(const Number* rows, int64_t pitch, int64_t count, const Number* panel, int64_t depth, const Number*, int64_t,
                  const float* bias, float* sums) const {
        constexpr int HIGH = 8, WIDE = COLUMNS / 16;
        for (int64_t r = 0; r < count; r += HIGH) {
            __m512 sum[HIGH][WIDE];
            for (int i = 0; i < HIGH; i++)
                for (int j = 0; j < WIDE; j++) sum[i][j] = _mm512_loadu_ps(bias + 16 * j);
            for (int64_t k = 0; k < depth; k += 2) {
                __m512bh weight[WIDE];
                for (int j = 0; j < WIDE; j++) weight[j] = (__m512bh)_mm512_loadu_si512(panel + k * COLUMNS + 32 * j);
#pragma GCC unroll 8
                for (int i = 0; i < HIGH; i++) {
                    int pair;
                    std::memcpy(&pair, rows + (r + i) * pitch + k, 4);
#pragma GCC unroll 2
                    for (int j = 0; j < WIDE; j++)
                        sum[i][j] = _mm512_dpbf16_ps(sum[i][j], (__m512bh)_mm512_set1_epi32(pair), weight[j]);
                }
            }
            for (int i = 0; i < HIGH; i++)
                for (int j = 0; j < WIDE; j++) _mm512_storeu_ps(sums + (r + i) * COLUMNS + 16 * j, sum[i][j]);
        }
    }
};

#else

struct Tiles {
    void multiply(const Number* rows, int64_t pitch, int64_t count, const Number* panel, int64_t depth, const Number*, int64_t,
                  const float* bias, float* sums) const {
        for (int64_t r = 0; r < count; r++) {
            std::copy_n(bias, COLUMNS, sums + r * COLUMNS);
            for (int64_t k = 0; k < depth; k++) {
                const float value = rows[r * pitch + k];
                const Number* weight = panel + (k / 2 * COLUMNS) * 2 + k % 2;
                for (int64_t j = 0; j < COLUMNS; j++) sums[r * COLUMNS + j] += value * weight[2 * j];
            }
        }
    }
};

#endif

// Rows `first` to `first + count` get their numbers in the columns from `n` on.
template <int activation>
void finish(const Shape& s, const Rows& rows, int64_t first, int64_t count, const float* sums, int64_t n) {
    const int64_t filters = std::min(COLUMNS, s.filters - n);
    for (int64_t i = first; i < first + count; i++, sums += COLUMNS) {
        const float scale = rows.scale ? rows.scale[i] : 1;
        Number* out = rows.out[i] + n;
        const Number* added = rows.residual ? rows.residual[i] + n : nullptr;
        if (filters == COLUMNS) {
#pragma GCC unroll 8
            for (int64_t j = 0; j < COLUMNS; j += LANES) {
                V v = load(sums + j) * scale;
                if (added) v += load(added + j);
                store(out + j, activate(v, activation));
            }
            continue;
        }
        Number buffer[COLUMNS] = {};
        if (added) std::copy_n(added, filters, buffer);
        for (int64_t j = 0; j < COLUMNS; j += LANES)
            store(buffer + j, activate(load(sums + j) * scale + load(buffer + j), activation));
        std::copy_n(buffer, filters, out);
    }
}
constexpr decltype(&finish<NONE>) FINISH[] = {finish<NONE>, finish<RELU>, finish<RELU6>, finish<HSWISH>};

typedef uint16_t Line __attribute__((vector_size(64), aligned(2), may_alias));

// The taps of rows `begin` to `end` side by side, `pitch` numbers a row. LINES: of a tap, or 0: any number of channels.
template <int LINES, bool scattered>
void gather(const Shape& s, const Rows& rows, int64_t begin, int64_t end, int64_t pitch, Number* to) {
    const int64_t tap_count = s.taps(), channels = LINES ? 32 * LINES : s.channels;
    const int64_t rest = padded(tap_count * channels) - tap_count * channels;
    for (int64_t i = begin; i < end; i++, to += pitch) {
        if constexpr (scattered) {
            const int64_t next = std::min(i + AHEAD, rows.count - 1);
            for (int64_t k = 0; k < channels; k += 32) __builtin_prefetch(rows.taps[next * tap_count + tap_count / 2] + k);
            for (int64_t k = 0; k < s.filters; k += 32) __builtin_prefetch(rows.out[next] + k, 1);
        }
        const Number* const* taps = rows.taps + i * tap_count;
        for (int64_t t = 0; t < tap_count; t++) {
            const Line* from = reinterpret_cast<const Line*>(taps[t]);
            Line* line = reinterpret_cast<Line*>(to + t * channels);
#pragma GCC unroll 8
            for (int64_t k = 0; k < channels / 32; k++) line[k] = from[k];
            for (int64_t k = channels / 32 * 32; k < channels; k++) to[t * channels + k] = taps[t][k];
        }
        std::fill_n(to + tap_count * channels, rest, Number(0.0f));
    }
}

// Rows that are multiplied by each panel in turn: all of them where the weights exceed the second-level cache, else so few that
// they stay in the first.
template <bool scattered>
void multiply_rows(const Shape& s, const Rows& rows, const Number* weight, const float* bias) {
    const int64_t depth = padded(s.depth()), lines_a_tap = s.channels % 32 ? 0 : s.channels / 32;
    const auto taps_of = lines_a_tap == 1   ? gather<1, scattered>
                         : lines_a_tap == 2 ? gather<2, scattered>
                         : lines_a_tap == 4 ? gather<4, scattered>
                         : lines_a_tap == 8 ? gather<8, scattered>
                                            : gather<0, scattered>;
    const int64_t pitch = (depth / 32 | 1) * 32;  // an odd number of cache lines: rows do not collide in the cache
    const bool large = 2 * depth * s.filters > LARGE;
    const int64_t most = large ? rows.count : ROWS;
    thread_local std::vector<Number> kept;
    const size_t room = (most + ROWS) * pitch + 32;
    if (kept.size() < room) kept.resize(room);
    Number* gathered = kept.data() + 32 - reinterpret_cast<uintptr_t>(kept.data()) / 2 % 32;
    const Tiles tiles;
    alignas(64) float sums[ROWS * COLUMNS];
    for (int64_t begin = 0; begin < rows.count; begin += most) {
        const int64_t end = std::min(begin + most, rows.count);
        taps_of(s, rows, begin, end, pitch, gathered);
#ifdef __AMX_BF16__
        __asm__ volatile("" ::: "memory");  // the intrinsics do not say that they read what was gathered
#endif
        // each tile of rows asks for its share of the next panel
        const int64_t parts = (end - begin + ROWS - 1) / ROWS, lines = large ? (COLUMNS + parts - 1) / parts : 0;
        const Number* panel = weight;
        for (int64_t n = 0; n < s.filters; n += COLUMNS, panel += COLUMNS * depth) {
            const Number* ahead = panel + COLUMNS * depth;
            for (int64_t i = begin; i < end; i += ROWS, ahead += lines * depth) {
                const int64_t count = std::min(ROWS, end - i);
                tiles.multiply(gathered + (i - begin) * pitch, pitch, count, panel, depth, ahead, lines, bias + n, sums);
                FINISH[s.activation](s, rows, i, count, sums, n);
            }
        }
    }
}

}  // namespace
