// Which rows a branch of convolutions has to compute so that the chosen patches of its output are right.

#include <algorithm>
#include <cstdint>
#include <vector>

extern "C" {

// Positions of the chosen cells of a (batch, cells_y, cells_x) grid of patches, patch by patch, so that neighbouring rows share
// their surroundings. The last patches may stand out of the map. Returns how many were written.
int64_t patch_rows(const uint8_t* chosen, int64_t batch, int64_t cells_y, int64_t cells_x, int64_t patch_y, int64_t patch_x,
                   int64_t height, int64_t width, int32_t* rows) {
    int32_t* next = rows;
    for (int64_t b = 0; b < batch; b++)
        for (int64_t gy = 0; gy < cells_y; gy++)
            for (int64_t gx = 0; gx < cells_x; gx++)
                if (*chosen++) {
                    const int64_t bottom = std::min(gy * patch_y + patch_y, height);
                    const int64_t right = std::min(gx * patch_x + patch_x, width);
                    for (int64_t y = gy * patch_y; y < bottom; y++)
                        for (int64_t x = gx * patch_x; x < right; x++) *next++ = int32_t((b * height + y) * width + x);
                }
    return next - rows;
}

// Positions of a (batch, height, width) input that a convolution reads for the listed rows of its output, in order.
// `shape` begins like the Shape of rows.cpp.
int64_t needed_rows(const int64_t* shape, int64_t batch, const int32_t* rows, int64_t count, int32_t* needed) {
    const int64_t height = shape[0], width = shape[1], out_height = shape[3], out_width = shape[4];
    const int64_t kernel_h = shape[6], kernel_w = shape[7], stride_h = shape[8], stride_w = shape[9];
    const int64_t pad_h = shape[10], pad_w = shape[11], dilation_h = shape[12], dilation_w = shape[13];
    thread_local std::vector<uint8_t> read;
    read.assign(batch * height * width, 0);
    for (int64_t i = 0; i < count; i++) {
        const int64_t line = rows[i] / out_width, picture = line / out_height;
        const int64_t top = (line % out_height) * stride_h - pad_h, left = (rows[i] % out_width) * stride_w - pad_w;
        for (int64_t ky = 0; ky < kernel_h; ky++) {
            const int64_t y = top + ky * dilation_h;
            if (y < 0 || y >= height) continue;
            uint8_t* line_read = read.data() + (picture * height + y) * width;
            for (int64_t kx = 0; kx < kernel_w; kx++) {
                const int64_t x = left + kx * dilation_w;
                if (x >= 0 && x < width) line_read[x] = 1;
            }
        }
    }
    int32_t* next = needed;
    for (int64_t i = 0; i < batch * height * width; i++) {
        *next = int32_t(i);
        next += read[i];
    }
    return next - needed;
}

}  // extern "C"
