// Index tables of pools of blocks in two resolutions (eff_plugins/ops/dual.py), and back from a pool to a whole map.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

struct Grid {
    int64_t rows, columns;        // cells of a picture
    int64_t side;                 // of a block in full resolution; half as much in half resolution
    int64_t height, width;        // of the map in full resolution
    const uint8_t* high;          // (B, rows, columns): full resolution
    const int64_t* starts;        // (B, rows, columns): first position of a block in the pool

    // Size of the map, of a block at (i, j).
    int64_t map_height(bool low) const { return low ? (height + 1) / 2 : height; }
    int64_t map_width(bool low) const { return low ? (width + 1) / 2 : width; }
    int64_t block_height(int64_t i, bool low) const { return std::min(side >> low, map_height(low) - i * (side >> low)); }
    int64_t block_width(int64_t j, bool low) const { return std::min(side >> low, map_width(low) - j * (side >> low)); }
};

}  // namespace

extern "C" {

// What the blocks `cells` (n, 3) of one resolution read of the pool with their borders: `codes` (n, high, wide) as Blocks of
// rows.cpp has them, and four positions for each average in `quads`. Returns the number of averages.
int64_t block_codes(const int64_t* sizes, const uint8_t* high, const int64_t* starts, int64_t low, const int64_t* cells,
                    int64_t count, int64_t top, int64_t left, int64_t tall, int64_t wide, int64_t positions, int32_t* codes,
                    int32_t* quads) {
    const Grid g = {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], high, starts};
    const int64_t side = g.side >> low;
    int64_t means = 0;
    for (int64_t n = 0; n < count; n++, cells += 3) {
        const int64_t first = cells[0] * g.rows * g.columns;
        for (int64_t a = 0; a < tall; a++) {
            const int64_t y = cells[1] * side - top + a;
            int32_t* to = codes + (n * tall + a) * wide;
            if (y < 0 || y >= g.map_height(low)) {
                std::fill_n(to, wide, -1);
                continue;
            }
            const int64_t i = y / side, line = y % side;
            for (int64_t b = 0; b < wide;) {
                const int64_t x = cells[2] * side - left + b;
                if (x < 0 || x >= g.map_width(low)) {
                    to[b++] = -1;
                    continue;
                }
                const int64_t j = x / side, cell = first + i * g.columns + j;
                const int64_t end = std::min(wide, b + std::min((j + 1) * side, g.map_width(low)) - x);
                const bool other = bool(high[cell]) == bool(low);
                const int64_t width = g.block_width(j, other ? !low : low);
                int64_t column = x % side;
                if (!other) {
                    for (int64_t at = starts[cell] + line * width + column; b < end; b++) to[b] = int32_t(at++);
                } else if (!low) {
                    const int64_t at = starts[cell] + (line >> 1) * width;
                    for (; b < end; b++, column++) to[b] = int32_t(at + (column >> 1));
                } else {
                    const int64_t height = g.block_height(i, false);
                    const int64_t above = starts[cell] + 2 * line * width;
                    const int64_t below = starts[cell] + std::min(2 * line + 1, height - 1) * width;
                    for (; b < end; b++, column++) {
                        const int64_t x0 = 2 * column, x1 = std::min(2 * column + 1, width - 1);
                        *quads++ = int32_t(above + x0);
                        *quads++ = int32_t(above + x1);
                        *quads++ = int32_t(below + x0);
                        *quads++ = int32_t(below + x1);
                        to[b] = int32_t(positions + means++);
                    }
                }
            }
        }
    }
    return means;
}

// A pool (P, C) as a whole map (B, H, W, C); pixels of half resolution are repeated. `bytes` are those of a pixel.
void combine_blocks(const int64_t* sizes, const uint8_t* high, const int64_t* starts, int64_t batch, const char* pool,
                    int64_t bytes, char* out) {
    const Grid g = {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], high, starts};
    for (int64_t b = 0; b < batch; b++)
        for (int64_t y = 0; y < g.height; y++)
            for (int64_t j = 0; j < g.columns; j++) {
                const int64_t i = y / g.side, line = y % g.side, cell = (b * g.rows + i) * g.columns + j;
                const int64_t width = g.block_width(j, false);
                if (high[cell]) {
                    std::memcpy(out, pool + (starts[cell] + line * width) * bytes, width * bytes);
                } else {
                    const char* from = pool + (starts[cell] + (line >> 1) * g.block_width(j, true)) * bytes;
                    for (int64_t x = 0; x < width; x++) std::memcpy(out + x * bytes, from + (x >> 1) * bytes, bytes);
                }
                out += width * bytes;
            }
}

}  // extern "C"
