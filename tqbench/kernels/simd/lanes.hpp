// Vectors of floats, of integers and of doubles as wide as the variant's registers, and what kernels need of them. A lane is one vector of
// the cache, so nothing here reaches across lanes but `transpose`, and a result never depends on what lies in the other lanes.
//
// The types are the compilers' own (GCC and clang): operators work lane by lane, comparisons give −1 or 0, `mask ? a : b` selects.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __SSE2__
#include <immintrin.h>
#endif

namespace tqb {
namespace TQB_VARIANT {
namespace {

#if defined(TQB_VARIANT_avx512)
constexpr int kLanes = 16;
#elif defined(TQB_VARIANT_avx2)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
typedef double Doubles __attribute__((vector_size(kLanes * 4)));  // half as many lanes, so that it is one register too
typedef float HalfFloats __attribute__((vector_size(kLanes * 2)));
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
typedef uint16_t Shorts __attribute__((vector_size(kLanes * 2)));

inline Floats all(float x) { return x - Floats{}; }
inline Ints all(int32_t x) { return x - Ints{}; }
inline Ints bits(const Floats& x) { return (Ints)x; }
inline Floats floats(const Ints& x) { return (Floats)x; }
inline Floats to_floats(const Ints& x) { return __builtin_convertvector(x, Floats); }
inline Ints to_ints(const Floats& x) { return __builtin_convertvector(x, Ints); }  // towards zero
inline Floats magnitude(const Floats& x) { return floats(bits(x) & 0x7fffffff); }
inline Floats larger(const Floats& a, const Floats& b) { return a > b ? a : b; }
inline Floats smaller(const Floats& a, const Floats& b) { return a < b ? a : b; }
inline Floats clamp(const Floats& x, float low, float high) { return smaller(larger(x, all(low)), all(high)); }  // NaN becomes low
inline Ints finite(const Floats& x) { return (bits(x) & 0x7fffffff) < 0x7f800000; }

template <typename V>
inline V load(const void* from) {
    V v;
    memcpy(&v, from, sizeof v);
    return v;
}

template <typename V>
inline void store(void* to, const V& v) {
    memcpy(to, &v, sizeof v);
}

inline bool any(const Ints& mask) {
    int32_t found = 0;
    for (int l = 0; l < kLanes; ++l) found |= mask[l];
    return found != 0;
}

// The masked forms: the plain ones read an undefined register in gcc's headers, and gcc 12 warns of that.
inline Floats root(const Floats& x) {
#if defined(TQB_VARIANT_avx512)
    return (Floats)_mm512_maskz_sqrt_ps((__mmask16)-1, (__m512)x);
#elif defined(TQB_VARIANT_avx2)
    return (Floats)_mm256_sqrt_ps((__m256)x);
#else
    Floats r = x;
    for (int l = 0; l < kLanes; ++l) r[l] = sqrtf(x[l]);
    return r;
#endif
}

// table[index], index below 16; all sixteen may be read.
inline Floats lookup16(const float* table, const Ints& index) {
#if defined(TQB_VARIANT_avx512)
    return (Floats)_mm512_maskz_permutexvar_ps((__mmask16)-1, (__m512i)index, _mm512_loadu_ps(table));
#elif defined(TQB_VARIANT_avx2)
    const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), (__m256i)index);
    const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), (__m256i)index);
    return index > 7 ? (Floats)high : (Floats)low;
#else
    Floats r = {};
    for (int l = 0; l < kLanes; ++l) r[l] = table[index[l]];
    return r;
#endif
}

// To the nearest integer, halves to even: below 2^23 the sum with 2^23 has no bits left for a fraction.
inline Floats round_even(const Floats& x) {
    const Floats size = magnitude(x), rounded = (size + 0x1p23f) - 0x1p23f;
    return size < 0x1p23f ? floats(bits(rounded) | (bits(x) & (int32_t)0x80000000)) : x;
}

inline Floats round_down(const Floats& x) {
    const Floats near = round_even(x);
    return near > x ? near - 1.0f : near;
}

// The bits of the nearest half-precision value, ties to even; infinity from 65520 on. Subnormal ones are multiples of 2^-24: the unit of
// the last place of 0.5 in float.
inline Ints to_half(const Floats& x) {
    const Ints sign = bits(x) >> 16 & 0x8000, size = bits(x) & 0x7fffffff;
    const Ints normal = (size + 0xfff + (size >> 13 & 1) - (112 << 23)) >> 13;
    const Ints small = bits(floats(size) + 0.5f) - 0x3f000000;
    const Ints value = size < 0x38800000 ? small : (size >= 0x477ff000 ? all(0x7c00) : normal);
    return sign | value;
}

inline Floats from_half(const Ints& h) {
    const Floats scaled = floats((h & 0x7fff) << 13) * 0x1p112f;  // exact, subnormal values too
    const Ints special = (h & 0x7c00) == 0x7c00;
    return floats((bits(scaled) | (special & 0x7f800000)) | (h & 0x8000) << 16);
}

// The bits of the nearest bfloat16, ties to even.
inline Ints to_bfloat(const Floats& x) { return (bits(x) + 0x7fff + (bits(x) >> 16 & 1)) >> 16 & 0xffff; }

// (a0 b0 a1 b1 ..) of the lower and of the upper halves.
template <typename V>
inline void interleave(const V& a, const V& b, V& low, V& high) {
#if defined(TQB_VARIANT_avx512)
    const __m512i even = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i odd = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    low = (V)_mm512_permutex2var_epi32((__m512i)a, even, (__m512i)b);
    high = (V)_mm512_permutex2var_epi32((__m512i)a, odd, (__m512i)b);
#elif defined(TQB_VARIANT_avx2)
    const __m256i near = _mm256_unpacklo_epi32((__m256i)a, (__m256i)b), far = _mm256_unpackhi_epi32((__m256i)a, (__m256i)b);
    low = (V)_mm256_permute2x128_si256(near, far, 0x20);
    high = (V)_mm256_permute2x128_si256(near, far, 0x31);
#elif defined(__SSE2__)
    low = (V)_mm_unpacklo_ps((__m128)a, (__m128)b);
    high = (V)_mm_unpackhi_ps((__m128)a, (__m128)b);
#else
    low = V{a[0], b[0], a[1], b[1]};
    high = V{a[2], b[2], a[3], b[3]};
#endif
}

// Rows become lanes and lanes rows: log₂ rounds of the perfect shuffle.
template <typename V>
inline void transpose(V* rows) {
    for (int round = 1; round < kLanes; round *= 2) {
        V next[kLanes];
        for (int i = 0; i < kLanes / 2; ++i) interleave(rows[i], rows[i + kLanes / 2], next[2 * i], next[2 * i + 1]);
        for (int i = 0; i < kLanes; ++i) rows[i] = next[i];
    }
}

}  // namespace
}  // namespace TQB_VARIANT
}  // namespace tqb
