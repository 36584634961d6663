// A branch of convolutions at the patches whose score is high enough, in one call: where a block takes a few milliseconds,
// what its layers would spend on entering and leaving Python is a part of that.
//
// Compiled once for each instruction set and type of the maps, like rows.cpp; scores are fp32.

#include <cstdint>
#include <memory>
#include <vector>

#include "vectors.h"

extern "C" {
void plan_rows(const uint8_t* chosen, int64_t batch, int64_t cells_y, int64_t cells_x, int64_t patch_y, int64_t patch_x,
               const int64_t* shapes, int64_t layers, int32_t* rows, int64_t* counts);
int64_t other_rows(const int32_t* rows, int64_t count, int64_t total, int32_t* others);
void JOIN(convolve, ISA)(const int64_t* shape, int64_t is_depthwise, const Number* x, const Number* zeros, const int32_t* rows,
                         int64_t count, const void* weight, const float* bias, const float* scale, const Number* residual,
                         Number* out);
}

namespace {

struct Layer {  // as branch.py lays it out
    const void* weight;
    const float* bias;
    const Number* zeros;
    int64_t is_depthwise;
};

struct Grid {
    int64_t batch, cells_y, cells_x, patch_y, patch_x;
};

// Uninitialised memory that stays for the next call on this thread: warm in the cache, where fresh one is faulted in.
template <typename T>
class Buffer {
   public:
    T* get(int64_t count) {
        if (count > size_) {
            data_.reset(new T[count]);
            size_ = count;
        }
        return data_.get();
    }

   private:
    std::unique_ptr<T[]> data_;
    int64_t size_ = 0;
};

void run(const int64_t* shape, const Layer& layer, const Number* x, const int32_t* rows, int64_t count, const Number* residual,
         Number* out) {
    JOIN(convolve, ISA)
    (shape, layer.is_depthwise, x, layer.zeros, rows, count, layer.weight, layer.bias, nullptr, residual, out);
}

}  // namespace

extern "C" {

// Computes the branch where `scores` (batch, cells_y, cells_x) lie above `threshold`, and adds its result to `out`.
// `shapes` and `layers` hold those of the branch, and, with `shortcut`, two more: the shortcut's convolution without
// activation, which `out` gets at the computed rows before the branch is added, and with it, which it gets elsewhere.
// Returns the number of rows; nothing has been done where that is 0, or -1: a layer has as many rows as its `limit`.
int64_t JOIN(run_branch, ISA)(const float* scores, float threshold, const int64_t* grid, const int64_t* shapes,
                              const int64_t* layers, const int64_t* limits, int64_t count, int64_t shortcut, const Number* x,
                              Number* out) {
    const Grid& g = *reinterpret_cast<const Grid*>(grid);
    const Layer* layer = reinterpret_cast<const Layer*>(layers);
    const auto shape = [&](int64_t i) { return shapes + 15 * i; };
    const auto places = [&](int64_t i) { return g.batch * shape(i)[3] * shape(i)[4]; };
    thread_local Buffer<uint8_t> cells;
    thread_local Buffer<int32_t> lists;
    thread_local Buffer<Number> maps[2];

    const int64_t total = g.batch * g.cells_y * g.cells_x, last = count - 1;
    uint8_t* chosen = cells.get(total);
    for (int64_t i = 0; i < total; i++) chosen[i] = scores[i] > threshold;
    int64_t room = 0;
    for (int64_t i = 0; i < count; i++) room += places(i);
    int32_t* first = lists.get(room + places(last));
    std::vector<int64_t> counts(count);
    plan_rows(chosen, g.batch, g.cells_y, g.cells_x, g.patch_y, g.patch_x, shapes, count, first, counts.data());

    std::vector<const int32_t*> rows(count);
    int32_t* at = first + room;
    for (int64_t i = last; i >= 0; i--) {
        at -= places(i);
        const bool shared = counts[i] < 0;
        rows[i] = shared ? rows[i + 1] : at;
        if (shared) counts[i] = counts[i + 1];
        if (i < last && counts[i] >= limits[i]) return -1;
    }
    if (!counts[last]) return 0;
    if (shortcut) {
        int32_t* others = first + room;
        const int64_t left = other_rows(rows[last], counts[last], places(last), others);
        run(shape(count), layer[count], x, rows[last], counts[last], nullptr, out);
        run(shape(count + 1), layer[count + 1], x, others, left, nullptr, out);
    }
    for (int64_t i = 0; i < last; i++) {
        Number* map = maps[i % 2].get(places(i) * shape(i)[5]);
        run(shape(i), layer[i], x, rows[i], counts[i], nullptr, map);
        x = map;
    }
    run(shape(last), layer[last], x, rows[last], counts[last], out, out);
    return counts[last];
}

}  // extern "C"
