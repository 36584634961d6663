// A convolution, as rows.py lays it out, and some rows of its output.

#pragma once

#include <cstdint>

#include "vectors.h"

namespace {

struct Shape {
    int64_t height, width, channels;          // input map
    int64_t out_height, out_width, filters;   // output map
    int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
    int64_t activation;

    int64_t taps() const { return kernel_h * kernel_w; }
    int64_t depth() const { return taps() * channels; }  // numbers that make one of the output
};

struct Rows {
    int64_t count;
    const Number* const* taps;      // of each row, one after the other
    const float* scale;             // of each row, or null
    const Number* const* residual;  // of each row, or null
    Number* const* out;
};

}  // namespace
