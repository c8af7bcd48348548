// Vectors of L lanes of 32 bits, the same few operations for every instruction set. A lane is a float, an integer, or a pair of 16-bit
// words. Included by native_each.cpp files, inside their anonymous namespace's scope; see dispatch.hpp for what that must not use.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(TQB_VARIANT_avx512) || defined(TQB_VARIANT_avx2)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

// Inner loops stay functions of their own: inlined into one large caller, their accumulators are spilled.
#define TQB_LOOP __attribute__((noinline))

namespace tqb::TQB_VARIANT {
namespace {

// ---------------------------------------------------------------------------------------------------------------------- AVX-512
#if defined(TQB_VARIANT_avx512)

constexpr int L = 16, COLUMNS = 8, kSums = 16;
using F = __m512;
using I = __m512i;

inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, F x) { _mm512_storeu_ps(p, x); }
inline I load(const void* p) { return _mm512_loadu_si512(p); }
inline void store(void* p, I x) { _mm512_storeu_si512(p, x); }
inline F all(float x) { return _mm512_set1_ps(x); }
inline I all(int32_t x) { return _mm512_set1_epi32(x); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F max(F a, F b) { return _mm512_max_ps(a, b); }
inline F abs(F a) { return _mm512_abs_ps(a); }
inline F to_float(I x) { return _mm512_cvtepi32_ps(x); }
inline I to_int(F x) { return _mm512_cvtps_epi32(x); }  // to nearest, ties to even
inline float sum(F x) { return _mm512_reduce_add_ps(x); }
inline float largest(F x) { return _mm512_reduce_max_ps(x); }
// acc + a.low * b.low + a.high * b.high, of signed words
inline I dot2(I acc, I a, I b) {
    asm("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));  // of the intrinsic, gcc 12 copies the accumulator around
    return acc;
}
// 2^n for whole n as floats in lanes, n in [-126, 127]
inline F power2(F n) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), all(127)), 23)); }
inline F nearest(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline bool any_nan(F x) { return _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q); }
// lanes first .. first + L − 1 below n keep x, the others get y
inline F below(int n, F x, F y) { return _mm512_mask_blend_ps(__mmask16(n >= L ? 0xffff : n <= 0 ? 0 : (1 << n) - 1), y, x); }

inline F from_bf16(const uint16_t* p) {  // each word into the upper half of a lane
    const I order = _mm512_set_epi16(15, 0, 14, 0, 13, 0, 12, 0, 11, 0, 10, 0, 9, 0, 8, 0, 7, 0, 6, 0, 5, 0, 4, 0, 3, 0, 2, 0, 1, 0, 0, 0);
    const __m256i words = _mm256_loadu_si256((const __m256i*)p);
    F x;  // of the intrinsic, gcc 12 copies the words first
    asm("vpermw %g1, %2, %0%{%3%}%{z%}" : "=v"(x) : "v"(words), "v"(order), "Yk"(__mmask32(0xaaaaaaaa)));
    return x;
}
inline F from_f16(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }

// Signed words looked up by the low five bits of each word.
struct Table {
    I words;
    explicit Table(const int16_t* levels) : words(_mm512_loadu_si512(levels)) {}
};
inline I lookup(const Table& table, I index) { return _mm512_permutexvar_epi16(index, table.words); }
inline I lookup16(const Table& table, I index) { return lookup(table, index); }  // by the low four bits
template <int N>
inline I right16(I x) {
    return _mm512_srli_epi16(x, N);
}
template <int N>
inline I left16(I x) {
    return _mm512_slli_epi16(x, N);
}
inline I signed_low8(I x) { return _mm512_srai_epi16(_mm512_slli_epi16(x, 8), 8); }
inline I signed_high8(I x) { return _mm512_srai_epi16(x, 8); }
inline I low8(I x) { return _mm512_and_si512(x, _mm512_set1_epi16(255)); }
// bits of x where the mask has them, of y elsewhere
inline I choose(I mask, I x, I y) { return _mm512_ternarylogic_epi32(mask, x, y, 0xca); }
inline I all16(int16_t x) { return _mm512_set1_epi16(x); }

// COLUMNS dwords, from byte `at` on, of L rows: out[j] lane t is dword j of row t. `bytes` of them, whole dwords, exist; the rest is zero.
inline void columns(const uint8_t* const* rows, int64_t at, int bytes, I out[COLUMNS]) {
    I r[8], s[8];
    if (bytes >= 32) {
        for (int i = 0; i < 8; ++i) {
            const I a = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)(rows[i] + at)));
            r[i] = _mm512_inserti64x4(a, _mm256_loadu_si256((const __m256i*)(rows[i + 8] + at)), 1);
        }
    } else {
        const __mmask8 mask = (1 << (bytes / 4)) - 1;
        for (int i = 0; i < 8; ++i) {
            const __m256i a = _mm256_maskz_loadu_epi32(mask, rows[i] + at), b = _mm256_maskz_loadu_epi32(mask, rows[i + 8] + at);
            r[i] = _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
        }
    }
    for (int i = 0; i < 8; i += 2) {
        s[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        s[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int k = 0; k < 2; ++k) {
            r[i + 2 * k] = _mm512_unpacklo_epi64(s[i + k], s[i + k + 2]);
            r[i + 2 * k + 1] = _mm512_unpackhi_epi64(s[i + k], s[i + k + 2]);
        }
    const I low = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13), high = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
    for (int j = 0; j < 4; ++j) {
        out[j] = _mm512_permutex2var_epi64(r[j], low, r[j + 4]);
        out[j + 4] = _mm512_permutex2var_epi64(r[j], high, r[j + 4]);
    }
}

// L words, from byte `at` on, of two rows: lane i is (word i of a, word i of b). `bytes` of each row exist; the rest is zero.
inline I pair_words(const uint8_t* a, const uint8_t* b, int64_t at, int bytes) {
    const __mmask16 mask = bytes >= 32 ? 0xffff : (1 << (bytes / 2)) - 1;
    const __m256i x = _mm256_maskz_loadu_epi16(mask, a + at), y = _mm256_maskz_loadu_epi16(mask, b + at);
    const I order = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2,
                                     33, 1, 32, 0);
    return _mm512_permutex2var_epi16(_mm512_castsi256_si512(x), order, _mm512_castsi256_si512(y));
}
// The same of L bytes, each widened to a word.
inline I pair_bytes(const uint8_t* a, const uint8_t* b, int64_t at, int bytes) {
    const __mmask16 mask = bytes >= 16 ? 0xffff : (1 << bytes) - 1;
    const __m128i x = _mm_maskz_loadu_epi8(mask, a + at), y = _mm_maskz_loadu_epi8(mask, b + at);
    return _mm512_or_si512(_mm512_cvtepu8_epi32(x), _mm512_slli_epi32(_mm512_cvtepu8_epi32(y), 16));
}
// Pairs of neighbouring words, a lane each, of 2 L integers as floats: lane i is (a[2i], a[2i + 1]), of x = a[0..L), y = a[L..2L).
inline I pack_words(F x, F y) {
    const I lanes = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtsepi32_epi16(to_int(x))), _mm512_cvtsepi32_epi16(to_int(y)), 1);
    return lanes;
}

// Lane i is the sum of the lanes of x[i].
inline F sums(const F* x) {
    F y[4], z[2];
    for (int i = 0; i < 4; ++i) {
        const F* four = x + 4 * i;  // a, b, c, d: halves of their quarters side by side, then quarters
        const F ab = _mm512_unpacklo_ps(four[0], four[1]) + _mm512_unpackhi_ps(four[0], four[1]);
        const F cd = _mm512_unpacklo_ps(four[2], four[3]) + _mm512_unpackhi_ps(four[2], four[3]);
        y[i] = _mm512_shuffle_ps(ab, cd, 0x44) + _mm512_shuffle_ps(ab, cd, 0xee);
    }
    for (int i = 0; i < 2; ++i) z[i] = _mm512_shuffle_f32x4(y[2 * i], y[2 * i + 1], 0x44) + _mm512_shuffle_f32x4(y[2 * i], y[2 * i + 1], 0xee);
    return _mm512_shuffle_f32x4(z[0], z[1], 0x88) + _mm512_shuffle_f32x4(z[0], z[1], 0xdd);
}

// The dword (or float) for each lane, where `words` words in a row share one.
inline I group_lanes(int words) {
    alignas(64) int32_t lanes[L];
    for (int i = 0; i < L; ++i) lanes[i] = i / words;
    return load(static_cast<const void*>(lanes));
}
inline I spread(const int32_t* p, I lanes) { return _mm512_permutexvar_epi32(lanes, load(static_cast<const void*>(p))); }
inline F spread(const float* p, I lanes) { return _mm512_permutexvar_ps(lanes, load(p)); }

// ------------------------------------------------------------------------------------------------------------------------- AVX2
#elif defined(TQB_VARIANT_avx2)

constexpr int L = 8, COLUMNS = 8, kSums = 8;
using F = __m256;
using I = __m256i;

inline F load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, F x) { _mm256_storeu_ps(p, x); }
inline I load(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
inline void store(void* p, I x) { _mm256_storeu_si256((__m256i*)p, x); }
inline F all(float x) { return _mm256_set1_ps(x); }
inline I all(int32_t x) { return _mm256_set1_epi32(x); }
inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
inline F max(F a, F b) { return _mm256_max_ps(a, b); }
inline F abs(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
inline F to_float(I x) { return _mm256_cvtepi32_ps(x); }
inline I to_int(F x) { return _mm256_cvtps_epi32(x); }
inline I dot2(I acc, I a, I b) { return _mm256_add_epi32(acc, _mm256_madd_epi16(a, b)); }
inline F power2(F n) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), all(127)), 23)); }
inline F nearest(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline bool any_nan(F x) { return _mm256_movemask_ps(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)); }
inline F below(int n, F x, F y) {
    const I lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_blendv_ps(y, x, _mm256_castsi256_ps(_mm256_cmpgt_epi32(all(n), lanes)));
}
inline F from_bf16(const uint16_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
inline F from_f16(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }

struct Table {  // low and high bytes of the first and of the second sixteen levels
    I low[2], high[2];
    explicit Table(const int16_t* levels) {
        uint8_t bytes[4][16];
        for (int i = 0; i < 32; ++i) {
            bytes[i / 16][i % 16] = uint8_t(levels[i]);
            bytes[2 + i / 16][i % 16] = uint8_t(uint16_t(levels[i]) >> 8);
        }
        for (int k = 0; k < 2; ++k) {
            low[k] = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)bytes[k]));
            high[k] = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)bytes[2 + k]));
        }
    }
};
template <int Half = 0>
inline I lookup16(const Table& table, I index) {
    const I nibble = _mm256_and_si256(index, _mm256_set1_epi16(15));
    const I spread = _mm256_or_si256(nibble, _mm256_slli_epi16(nibble, 8)), even = _mm256_set1_epi16(255);
    return _mm256_blendv_epi8(_mm256_shuffle_epi8(table.high[Half], spread), _mm256_shuffle_epi8(table.low[Half], spread), even);
}
inline I lookup(const Table& table, I index) {
    const I upper = _mm256_srai_epi16(_mm256_slli_epi16(index, 11), 15);  // bit 4 says which sixteen
    return _mm256_blendv_epi8(lookup16<0>(table, index), lookup16<1>(table, index), upper);
}
template <int N>
inline I right16(I x) {
    return _mm256_srli_epi16(x, N);
}
template <int N>
inline I left16(I x) {
    return _mm256_slli_epi16(x, N);
}
inline I signed_low8(I x) { return _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8); }
inline I signed_high8(I x) { return _mm256_srai_epi16(x, 8); }
inline I low8(I x) { return _mm256_and_si256(x, _mm256_set1_epi16(255)); }
inline I choose(I mask, I x, I y) { return _mm256_or_si256(_mm256_and_si256(mask, x), _mm256_andnot_si256(mask, y)); }
inline I all16(int16_t x) { return _mm256_set1_epi16(x); }

inline void columns(const uint8_t* const* rows, int64_t at, int bytes, I out[COLUMNS]) {
    I r[8], s[8];
    if (bytes >= 32) {
        for (int i = 0; i < 8; ++i) r[i] = load(rows[i] + at);
    } else {
        const I mask = _mm256_cmpgt_epi32(all(bytes / 4), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
        for (int i = 0; i < 8; ++i) r[i] = _mm256_maskload_epi32((const int*)(rows[i] + at), mask);
    }
    for (int i = 0; i < 8; i += 2) {
        s[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
        s[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int k = 0; k < 2; ++k) {
            r[i + 2 * k] = _mm256_unpacklo_epi64(s[i + k], s[i + k + 2]);
            r[i + 2 * k + 1] = _mm256_unpackhi_epi64(s[i + k], s[i + k + 2]);
        }
    for (int j = 0; j < 4; ++j) {
        out[j] = _mm256_permute2x128_si256(r[j], r[j + 4], 0x20);
        out[j + 4] = _mm256_permute2x128_si256(r[j], r[j + 4], 0x31);
    }
}
inline __m128i first_dwords(const uint8_t* p, int count) {
    if (count >= 4) return _mm_loadu_si128((const __m128i*)p);
    return _mm_maskload_epi32((const int*)p, _mm_cmpgt_epi32(_mm_set1_epi32(count), _mm_setr_epi32(0, 1, 2, 3)));
}
inline I pair_words(const uint8_t* a, const uint8_t* b, int64_t at, int bytes) {
    const __m128i x = first_dwords(a + at, bytes / 4), y = first_dwords(b + at, bytes / 4);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_unpacklo_epi16(x, y)), _mm_unpackhi_epi16(x, y), 1);
}
inline I pair_bytes(const uint8_t* a, const uint8_t* b, int64_t at, int bytes) {
    const int count = bytes < 8 ? bytes / 4 : 2;
    const __m128i x = first_dwords(a + at, count), y = first_dwords(b + at, count);
    return _mm256_or_si256(_mm256_cvtepu8_epi32(x), _mm256_slli_epi32(_mm256_cvtepu8_epi32(y), 16));
}
inline I pack_words(F x, F y) { return _mm256_permute4x64_epi64(_mm256_packs_epi32(to_int(x), to_int(y)), 0xd8); }

inline F sums(const F* x) {
    F y[2];
    for (int i = 0; i < 2; ++i) {
        const F* four = x + 4 * i;
        const F ab = _mm256_unpacklo_ps(four[0], four[1]) + _mm256_unpackhi_ps(four[0], four[1]);
        const F cd = _mm256_unpacklo_ps(four[2], four[3]) + _mm256_unpackhi_ps(four[2], four[3]);
        y[i] = _mm256_shuffle_ps(ab, cd, 0x44) + _mm256_shuffle_ps(ab, cd, 0xee);
    }
    return _mm256_permute2f128_ps(y[0], y[1], 0x20) + _mm256_permute2f128_ps(y[0], y[1], 0x31);
}

inline I group_lanes(int words) {
    alignas(32) int32_t lanes[L];
    for (int i = 0; i < L; ++i) lanes[i] = i / words;
    return load(static_cast<const void*>(lanes));
}
inline I spread(const int32_t* p, I lanes) { return _mm256_permutevar8x32_epi32(load(static_cast<const void*>(p)), lanes); }
inline F spread(const float* p, I lanes) { return _mm256_permutevar8x32_ps(load(p), lanes); }

// ----------------------------------------------------------------------------------------- 128 bits: NEON, SSE2, or plain loops
#else

constexpr int L = 4, COLUMNS = 4, kSums = 8;
typedef float F __attribute__((vector_size(16)));
typedef int32_t I __attribute__((vector_size(16)));
typedef int16_t W __attribute__((vector_size(16)));
typedef uint16_t U __attribute__((vector_size(16)));

inline F load(const float* p) {
    F x;
    std::memcpy(&x, p, 16);
    return x;
}
inline void store(float* p, F x) { std::memcpy(p, &x, 16); }
inline I load(const void* p) {
    I x;
    std::memcpy(&x, p, 16);
    return x;
}
inline void store(void* p, I x) { std::memcpy(p, &x, 16); }
inline F all(float x) { return F{x, x, x, x}; }
inline I all(int32_t x) { return I{x, x, x, x}; }
inline F max(F a, F b) { return a > b ? a : b; }
inline F abs(F a) { return (F)((I)a & 0x7fffffff); }
inline F to_float(I x) { return __builtin_convertvector(x, F); }
#if defined(__ARM_NEON)
inline F fma(F a, F b, F c) { return (F)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
inline I to_int(F x) { return (I)vcvtnq_s32_f32((float32x4_t)x); }
inline F nearest(F x) { return (F)vrndnq_f32((float32x4_t)x); }
inline I dot2(I acc, I a, I b) {
    const int32x4_t low = vmull_s16(vget_low_s16((int16x8_t)a), vget_low_s16((int16x8_t)b));
    const int32x4_t high = vmull_s16(vget_high_s16((int16x8_t)a), vget_high_s16((int16x8_t)b));
    return acc + (I)vpaddq_s32(low, high);
}
#else
inline F fma(F a, F b, F c) { return a * b + c; }
inline F nearest(F x) {  // to even, for |x| < 2^22: adding 1.5 · 2^23 leaves no bits below one
    const F big = all(12582912.0f);
    volatile F sum = x + big;
    return sum - big;
}
#if defined(__SSE2__)
inline I to_int(F x) { return (I)_mm_cvtps_epi32((__m128)x); }
inline I dot2(I acc, I a, I b) { return acc + (I)_mm_madd_epi16((__m128i)a, (__m128i)b); }
#else
inline I to_int(F x) { return __builtin_convertvector(nearest(x), I); }
inline I dot2(I acc, I a, I b) { return acc + ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16); }
#endif
#endif
inline F power2(F n) { return (F)((to_int(n) + 127) << 23); }
inline bool any_nan(F x) {
    const I found = x != x;
    return found[0] | found[1] | found[2] | found[3];
}
inline F below(int n, F x, F y) { return (I{0, 1, 2, 3} < all(n)) ? x : y; }
typedef uint16_t Halves __attribute__((vector_size(8)));
inline I widen(const uint16_t* p) {
    Halves x;
    std::memcpy(&x, p, 8);
    return __builtin_convertvector(x, I);
}
inline F from_bf16(const uint16_t* p) { return (F)(widen(p) << 16); }
inline float half(uint16_t h) {
    const uint32_t sign = uint32_t(h & 0x8000u) << 16, exponent = h >> 10 & 0x1fu, mantissa = h & 0x3ffu;
    uint32_t bits;
    if (exponent == 0) {  // zero and subnormals: mantissa · 2^-24 is exact
        const float value = float(mantissa) * 0x1p-24f;
        std::memcpy(&bits, &value, 4);
        bits |= sign;
    } else {
        bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | mantissa << 13;
    }
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline F from_f16(const uint16_t* p) {
    const I x = widen(p), sign = (x & 0x8000) << 16, size = (x & 0x7fff) << 13;
    const F small = to_float(x & 0x7fff) * all(0x1p-24f);
    const I normal = size + (size < (0x7c00 << 13) ? all(112 << 23) : all(224 << 23));
    return (F)((size < (0x400 << 13) ? (I)small : normal) | sign);
}

struct Table {
    const int16_t* levels;
    explicit Table(const int16_t* given) : levels(given) {}
};
inline I lookup(const Table& table, I index) {
    U i = (U)index & 31;
    W found{};
    for (int k = 0; k < 8; ++k) found[k] = table.levels[i[k]];
    return (I)found;
}
inline I lookup16(const Table& table, I index) { return lookup(table, index); }
template <int N>
inline I right16(I x) {
    return (I)((U)x >> N);
}
template <int N>
inline I left16(I x) {
    return (I)((U)x << N);
}
inline I signed_low8(I x) { return (I)((W)((U)x << 8) >> 8); }
inline I signed_high8(I x) { return (I)((W)x >> 8); }
inline I low8(I x) { return (I)((U)x & 255); }
inline I choose(I mask, I x, I y) { return (mask & x) | (~mask & y); }
inline I all16(int16_t x) { return (I)W{x, x, x, x, x, x, x, x}; }

inline void columns(const uint8_t* const* rows, int64_t at, int bytes, I out[COLUMNS]) {
    for (int t = 0; t < L; ++t)
        for (int j = 0; j < COLUMNS; ++j) {
            int32_t dword = 0;
            if (4 * j < bytes) std::memcpy(&dword, rows[t] + at + 4 * j, 4);
            out[j][t] = dword;
        }
}
inline I pair_words(const uint8_t* a, const uint8_t* b, int64_t at, int bytes) {
    uint16_t x[4] = {}, y[4] = {};
    const size_t size = size_t(bytes < 8 ? bytes : 8);
    std::memcpy(x, a + at, size);
    std::memcpy(y, b + at, size);
    I out;
    for (int i = 0; i < 4; ++i) out[i] = int32_t(uint32_t(x[i]) | uint32_t(y[i]) << 16);
    return out;
}
inline I pair_bytes(const uint8_t* a, const uint8_t* b, int64_t at, int bytes) {
    I out;
    for (int i = 0; i < 4; ++i) out[i] = i < bytes ? int32_t(uint32_t(a[at + i]) | uint32_t(b[at + i]) << 16) : 0;
    return out;
}
inline F sums(const F* x) {
    const F a = x[0], b = x[1], c = x[2], d = x[3];
    const F ab = F{a[0], b[0], a[1], b[1]} + F{a[2], b[2], a[3], b[3]}, cd = F{c[0], d[0], c[1], d[1]} + F{c[2], d[2], c[3], d[3]};
    return F{ab[0], ab[1], cd[0], cd[1]} + F{ab[2], ab[3], cd[2], cd[3]};
}

inline I group_lanes(int words) { return I{0, 1, 2, 3} / words; }
inline I spread(const int32_t* p, I lanes) { return I{p[lanes[0]], p[lanes[1]], p[lanes[2]], p[lanes[3]]}; }
inline F spread(const float* p, I lanes) { return F{p[lanes[0]], p[lanes[1]], p[lanes[2]], p[lanes[3]]}; }
inline I pack_words(F x, F y) {
    const I a = to_int(x), b = to_int(y);
    W out{};
    for (int i = 0; i < 4; ++i) {
        out[i] = int16_t(a[i]);
        out[i + 4] = int16_t(b[i]);
    }
    return (I)out;
}
#endif

// ---------------------------------------------------------------------------------------------------------------- for all alike

typedef uint32_t Lanes __attribute__((vector_size(4 * L)));

#if !defined(TQB_VARIANT_avx512)
inline float sum(F x) {
    float lanes[L], total = 0;
    store(lanes, x);
    for (float lane : lanes) total += lane;
    return total;
}
inline float largest(F x) {
    float lanes[L];
    store(lanes, x);
    float most = lanes[0];
    for (float lane : lanes) most = lane > most ? lane : most;
    return most;
}
#endif

// The two lower, or the two upper bytes of each lane as words.
inline I widen_low(I x) {
    const Lanes lanes = (Lanes)x;
    return (I)((lanes & 0xff) | ((lanes & 0xff00) << 8));
}
inline I widen_high(I x) {
    const Lanes lanes = (Lanes)x;
    return (I)(((lanes >> 16) & 0xff) | ((lanes >> 8) & 0xff0000));
}

// The value in lanes where x > floor, 0 elsewhere.
inline F where_above(F x, F floor, F value) {
#if defined(TQB_VARIANT_avx512)
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, floor, _CMP_GT_OQ), value);
#elif defined(TQB_VARIANT_avx2)
    return _mm256_and_ps(_mm256_cmp_ps(x, floor, _CMP_GT_OQ), value);
#else
    return x > floor ? value : all(0.0f);
#endif
}

// e^x for x ≤ 0, to 2 units in the last place; below −87.3 it is 0. x = n ln 2 + r, |r| ≤ ln 2 / 2; the rest is a polynomial.
inline F exp_negative(F x) {
    const F floor = all(-87.3f), bounded = max(x, floor);
    const F n = nearest(bounded * all(1.44269504f));
    F r = fma(n, all(-0.693359375f), bounded);
    r = fma(n, all(2.12194440e-4f), r);
    F p = all(1.9875691500e-4f);
    p = fma(p, r, all(1.3981999507e-3f));
    p = fma(p, r, all(8.3334519073e-3f));
    p = fma(p, r, all(4.1665795894e-2f));
    p = fma(p, r, all(1.6666665459e-1f));
    p = fma(p, r, all(5.0000001201e-1f));
    const F value = fma(p * r, r, r + all(1.0f)) * power2(n);
    return where_above(x, floor, value);
}

}  // namespace
}  // namespace tqb::TQB_VARIANT
