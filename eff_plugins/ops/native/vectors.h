// Vector registers of LANES floats as GCC/Clang vector extensions, and activations on them.

#pragma once

#include <cstdint>

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)

namespace {

typedef float V __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

// The order is that of ACTIVATIONS in rows.py.
enum Activation { NONE, RELU, RELU6, HSWISH };

inline V load(const float* p) { return *reinterpret_cast<const V*>(p); }
inline void store(float* p, V v) { *reinterpret_cast<V*>(p) = v; }
inline V lower(V a, V b) { return a < b ? a : b; }
inline V higher(V a, V b) { return a > b ? a : b; }

inline V activate(V v, int64_t activation) {
    const V zero = {};
    switch (activation) {
        case RELU: return higher(v, zero);
        case RELU6: return lower(higher(v, zero), zero + 6.0f);
        case HSWISH: return v * lower(higher(v + 3.0f, zero), zero + 6.0f) * (1.0f / 6.0f);
        default: return v;
    }
}

}  // namespace
