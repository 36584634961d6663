// Vector registers of LANES floats as GCC/Clang vector extensions, activations on them, and the type of numbers in memory:
// fp32, or with -DBF16 bf16, which is widened as it is read and rounded (to nearest, ties to even) as it is written.

#pragma once

#include <cstdint>
#include <cstring>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)

namespace {

typedef float V __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

inline V load(const float* p) { return *reinterpret_cast<const V*>(p); }
inline void store(float* p, V v) { *reinterpret_cast<V*>(p) = v; }
inline V lower(V a, V b) { return a < b ? a : b; }
inline V higher(V a, V b) { return a > b ? a : b; }

#ifdef BF16
struct Number {
    uint16_t bits;

    Number() = default;
    Number(float value) {
        uint32_t wide;
        std::memcpy(&wide, &value, 4);
        bits = value == value ? uint16_t((wide + 0x7fff + (wide >> 16 & 1)) >> 16) : 0x7fc0;
    }
    operator float() const {
        const uint32_t wide = uint32_t(bits) << 16;
        float value;
        std::memcpy(&value, &wide, 4);
        return value;
    }
};

typedef uint16_t Half __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
typedef uint32_t Wide __attribute__((vector_size(LANES * 4)));

inline V load(const Number* p) { return (V)(__builtin_convertvector(*reinterpret_cast<const Half*>(p), Wide) << 16); }
#ifdef __AVX512BF16__
inline void store(Number* p, V v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh((__m512)v)); }
#else
inline void store(Number* p, V v) {
    const Wide bits = (Wide)v, nan = Wide{} + 0x7fc0;
    const Wide rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    *reinterpret_cast<Half*>(p) = __builtin_convertvector(v == v ? rounded : nan, Half);
}
#endif
#else
typedef float Number;
#endif

// The order is that of ACTIVATIONS in rows.py.
enum Activation { NONE, RELU, RELU6, HSWISH };

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
