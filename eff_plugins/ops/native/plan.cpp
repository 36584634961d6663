// Which rows a branch of convolutions has to compute so that the chosen patches of its output are right.

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace {

using Map = std::vector<uint8_t>;

// Marks the chosen cells of a (batch, cells_y, cells_x) grid of patches in a map of the output, and lists their positions,
// patch by patch, so that neighbouring rows share their surroundings. The last patches may stand out of the map.
int64_t spread(const uint8_t* chosen, int64_t batch, int64_t cells_y, int64_t cells_x, int64_t patch_y, int64_t patch_x,
               int64_t height, int64_t width, Map& map, int32_t* rows) {
    int32_t* next = rows;
    map.assign(batch * height * width, 0);
    for (int64_t b = 0; b < batch; b++)
        for (int64_t gy = 0; gy < cells_y; gy++)
            for (int64_t gx = 0; gx < cells_x; gx++)
                if (*chosen++) {
                    const int64_t bottom = std::min(gy * patch_y + patch_y, height);
                    const int64_t right = std::min(gx * patch_x + patch_x, width);
                    for (int64_t y = gy * patch_y; y < bottom; y++) {
                        const int64_t line = (b * height + y) * width;
                        for (int64_t x = gx * patch_x; x < right; x++) {
                            map[line + x] = 1;
                            *next++ = int32_t(line + x);
                        }
                    }
                }
    return next - rows;
}

// Marks what a convolution reads of its input for the marked positions of its output. Tap by tap and line by line: for
// stride 1 the inner loop is vector instructions.
void mark_read(const int64_t* shape, int64_t batch, const Map& output, Map& input) {
    const int64_t height = shape[0], width = shape[1], out_height = shape[3], out_width = shape[4];
    const int64_t kernel_h = shape[6], kernel_w = shape[7], stride_h = shape[8], stride_w = shape[9];
    const int64_t pad_h = shape[10], pad_w = shape[11], dilation_h = shape[12], dilation_w = shape[13];
    input.assign(batch * height * width, 0);
    for (int64_t b = 0; b < batch; b++)
        for (int64_t oy = 0; oy < out_height; oy++)
            for (int64_t ky = 0; ky < kernel_h; ky++) {
                const int64_t y = oy * stride_h - pad_h + ky * dilation_h;
                if (y < 0 || y >= height) continue;
                const uint8_t* from = output.data() + (b * out_height + oy) * out_width;
                for (int64_t kx = 0; kx < kernel_w; kx++) {
                    const int64_t shift = kx * dilation_w - pad_w;
                    const int64_t begin = shift < 0 ? (-shift + stride_w - 1) / stride_w : 0;
                    const int64_t end = std::min(out_width, (width - shift + stride_w - 1) / stride_w);
                    uint8_t* to = input.data() + (b * height + y) * width + shift;
                    if (stride_w == 1)
                        for (int64_t x = begin; x < end; x++) to[x] |= from[x];
                    else
                        for (int64_t x = begin; x < end; x++) to[x * stride_w] |= from[x];
                }
            }
}

// The numbers below `total` for which `marked` is true, in order, without a branch. Returns how many.
template <typename Marked>
int64_t list_where(int64_t total, Marked marked, int32_t* rows) {
    int32_t* next = rows;
    for (int64_t i = 0; i < total; i++) {
        *next = int32_t(i);
        next += bool(marked(i));
    }
    return next - rows;
}

int64_t list_marked(const Map& map, int32_t* rows) {
    return list_where(map.size(), [&](int64_t i) { return map[i]; }, rows);
}

}  // namespace

extern "C" {

// The positions below `total` that are not listed, in order. Returns how many.
int64_t other_rows(const int32_t* rows, int64_t count, int64_t total, int32_t* others) {
    thread_local Map unlisted;
    unlisted.assign(total, 1);
    for (int64_t i = 0; i < count; i++) unlisted[rows[i]] = 0;
    return list_marked(unlisted, others);
}

// The positions of the values above `threshold`, in order. Returns how many.
int64_t rows_above(const float* values, int64_t total, float threshold, int32_t* rows) {
    return list_where(total, [=](int64_t i) { return values[i] > threshold; }, rows);
}

// The rows of each of `layers` convolutions of a chain, the last one's output being needed in the chosen patches.
// `shapes` holds one Shape of shape.h (15 numbers) a layer. `rows` has batch * H' * W' places for each layer's output,
// one layer after the other; a layer whose list is that of the next one (a 1x1 convolution reads what it writes) leaves
// its places empty. `counts` receives the length of each list, -1 for such a layer.
void plan_rows(const uint8_t* chosen, int64_t batch, int64_t cells_y, int64_t cells_x, int64_t patch_y, int64_t patch_x,
               const int64_t* shapes, int64_t layers, int32_t* rows, int64_t* counts) {
    const auto shape = [&](int64_t i) { return shapes + 15 * i; };
    const auto places = [&](int64_t i) { return batch * shape(i)[3] * shape(i)[4]; };
    int32_t* at = rows;
    for (int64_t i = 0; i + 1 < layers; i++) at += places(i);
    const int64_t* last = shape(layers - 1);
    thread_local Map marked, read;
    counts[layers - 1] = spread(chosen, batch, cells_y, cells_x, patch_y, patch_x, last[3], last[4], marked, at);
    for (int64_t i = layers - 1; i > 0; i--) {
        const int64_t* s = shape(i);
        at -= places(i - 1);
        const bool pointwise = s[6] == 1 && s[7] == 1 && s[8] == 1 && s[9] == 1 && s[10] == 0 && s[11] == 0;
        if (pointwise) {
            counts[i - 1] = -1;
            continue;
        }
        mark_read(s, batch, marked, read);
        counts[i - 1] = list_marked(read, at);
        std::swap(marked, read);
    }
}

}  // extern "C"
