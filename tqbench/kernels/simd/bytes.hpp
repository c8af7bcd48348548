// The operations on lanes of four bytes: levels as unsigned bytes (level + 128), what they are multiplied with as signed ones. The sum
//
//     Σ (level + 128) · word = Σ level · word + 128 Σ word
//
// starts from −128 Σ word, so that nothing is left to correct.
#pragma once

#include "simd/simd.hpp"

namespace tqb::TQB_VARIANT {
namespace {

// Bytes looked up by the low six bits of each byte: tables repeat, so that what upper bits hold does not matter.
struct ByteTable {
    alignas(64) uint8_t levels[64];
};

// ---------------------------------------------------------------------------------------------------------------------- AVX-512
#if defined(TQB_VARIANT_avx512)

constexpr int kMostByte = 127;  // of a signed byte

// acc + the four products of each lane, of unsigned levels and signed words
inline I dot4(I acc, I levels, I words) {
    asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(levels), "v"(words));
    return acc;
}
struct ByteLookup {
    I levels;
    explicit ByteLookup(const ByteTable& table) : levels(load(static_cast<const void*>(table.levels))) {}
    template <int Entries>
    I get(I index) const {
        return _mm512_permutexvar_epi8(index, levels);
    }
};
struct Order {
    alignas(64) uint8_t at[64];
};
constexpr Order turning(int width, int shared) {  // lane i gets byte i / shared of each of four rows of `width` bytes
    Order order{};
    for (int i = 0; i < 64; ++i) order.at[i] = uint8_t(i % 4 * width + i / 4 / shared);
    return order;
}
constexpr Order kQuads = turning(16, 1), kNibbles = turning(8, 2);

// L bytes, from byte `at` on, of four rows: lane i is (byte i of each). `bytes` of each row, whole dwords, exist; the rest is zero.
inline I quad_bytes(const uint8_t* const* rows, int64_t at, int bytes) {
    const __mmask8 mask = bytes >= 16 ? 15 : __mmask8((1 << (bytes / 4)) - 1);
    I x = _mm512_castsi128_si512(_mm_maskz_loadu_epi32(mask, rows[0] + at));
    x = _mm512_inserti32x4(x, _mm_maskz_loadu_epi32(mask, rows[1] + at), 1);
    x = _mm512_inserti32x4(x, _mm_maskz_loadu_epi32(mask, rows[2] + at), 2);
    x = _mm512_inserti32x4(x, _mm_maskz_loadu_epi32(mask, rows[3] + at), 3);
    return _mm512_permutexvar_epi8(load(static_cast<const void*>(kQuads.at)), x);
}
// The same of L half bytes; upper halves hold whatever it is.
inline I quad_nibbles(const uint8_t* const* rows, int64_t at, int bytes) {
    const __mmask8 mask = bytes >= 8 ? 3 : 1;
    const auto two = [&](int r) {
        return _mm_unpacklo_epi64(_mm_maskz_loadu_epi32(mask, rows[r] + at), _mm_maskz_loadu_epi32(mask, rows[r + 1] + at));
    };
    const I x = _mm512_castsi256_si512(_mm256_inserti128_si256(_mm256_castsi128_si256(two(0)), two(2), 1));
    const I spread = _mm512_permutexvar_epi8(load(static_cast<const void*>(kNibbles.at)), x);
    return _mm512_mask_srli_epi32(spread, 0xaaaa, spread, 4);
}
inline void store_bytes(int8_t* p, F x) { _mm_storeu_si128((__m128i*)p, _mm512_cvtsepi32_epi8(to_int(x))); }

// ------------------------------------------------------------------------------------------------------------------------- AVX2
#elif defined(TQB_VARIANT_avx2)

constexpr int kMostByte = 64;  // two products of 255 · 64 are the most that the sum of a pair holds

inline I dot4(I acc, I levels, I words) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(levels, words), _mm256_set1_epi16(1)));
}
struct ByteLookup {
    I low, high;
    explicit ByteLookup(const ByteTable& table)
        : low(_mm256_broadcastsi128_si256(_mm_load_si128((const __m128i*)table.levels))),
          high(_mm256_broadcastsi128_si256(_mm_load_si128((const __m128i*)(table.levels + 16)))) {}
    template <int Entries>
    I get(I index) const {
        const I nibble = _mm256_and_si256(index, _mm256_set1_epi8(15)), found = _mm256_shuffle_epi8(low, nibble);
        return Entries <= 16 ? found : _mm256_blendv_epi8(found, _mm256_shuffle_epi8(high, nibble), _mm256_slli_epi16(index, 3));
    }
};
inline I quad_bytes(const uint8_t* const* rows, int64_t at, int bytes) {
    const int count = bytes < 8 ? bytes / 4 : 2;
    const __m128i a = first_dwords(rows[0] + at, count), b = first_dwords(rows[1] + at, count);
    const __m128i c = first_dwords(rows[2] + at, count), d = first_dwords(rows[3] + at, count);
    const __m128i x = _mm_unpacklo_epi8(a, b), y = _mm_unpacklo_epi8(c, d);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_unpacklo_epi16(x, y)), _mm_unpackhi_epi16(x, y), 1);
}
inline I quad_nibbles(const uint8_t* const* rows, int64_t at, int) {
    int32_t x[4];
    for (int r = 0; r < 4; ++r) std::memcpy(x + r, rows[r] + at, 4);
    const I order = _mm256_setr_epi8(0, 4, 8, 12, 0, 4, 8, 12, 1, 5, 9, 13, 1, 5, 9, 13, 2, 6, 10, 14, 2, 6, 10, 14, 3, 7, 11, 15, 3, 7, 11, 15);
    const I spread = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_setr_epi32(x[0], x[1], x[2], x[3])), order);
    return _mm256_srlv_epi32(spread, _mm256_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4));
}
inline void store_bytes(int8_t* p, F x) {
    const I words = _mm256_packs_epi32(to_int(x), all(0)), bytes = _mm256_packs_epi16(words, words);
    const int32_t low = _mm256_extract_epi32(bytes, 0), high = _mm256_extract_epi32(bytes, 4);
    std::memcpy(p, &low, 4);
    std::memcpy(p + 4, &high, 4);
}

// ------------------------------------------------------------------------------------------------------------------------- plain
#else

constexpr int kMostByte = 127;

inline I dot4(I acc, I levels, I words) {
    return dot2(dot2(acc, low8(levels), signed_low8(words)), right16<8>(levels), signed_high8(words));
}
struct ByteLookup {
    const uint8_t* levels;
    explicit ByteLookup(const ByteTable& table) : levels(table.levels) {}
    template <int Entries>
    I get(I index) const {
        uint8_t at[16];
        store(static_cast<void*>(at), index);
        for (uint8_t& x : at) x = levels[x & 63];
        return load(static_cast<const void*>(at));
    }
};
inline I quad_bytes(const uint8_t* const* rows, int64_t at, int) {
    uint8_t x[16];
    for (int i = 0; i < 16; ++i) x[i] = rows[i % 4][at + i / 4];
    return load(static_cast<const void*>(x));
}
inline I quad_nibbles(const uint8_t* const* rows, int64_t at, int) {
    uint8_t x[16];
    for (int i = 0; i < 16; ++i) x[i] = uint8_t(rows[i % 4][at + i / 8] >> i / 4 % 2 * 4);
    return load(static_cast<const void*>(x));
}
inline void store_bytes(int8_t* p, F x) {
    const I whole = to_int(x);
    for (int i = 0; i < L; ++i) p[i] = int8_t(whole[i]);
}
#endif

// The sum of signed bytes, four to a lane, in n lanes.
inline int32_t sum_bytes(const int32_t* words, int n) {
    I acc = all(0);
    int i = 0;
    for (; i + L <= n; i += L) acc = dot4(acc, all(0x01010101), load(static_cast<const void*>(words + i)));
    auto total = int32_t(sum(to_float(acc)));
    for (const auto* byte = reinterpret_cast<const int8_t*>(words + i); byte < reinterpret_cast<const int8_t*>(words + n); ++byte) total += *byte;
    return total;
}

}  // namespace
}  // namespace tqb::TQB_VARIANT
