// Eight codes at a time as one word of 8 · bits bits: plain loops of fixed width, which compilers turn into shifts of whole registers.
// Codes are bytes, or 32-bit integers of which a plane of `bits` bits is taken.
#include <stdint.h>

namespace tqb {
namespace TQB_VARIANT {
namespace {

template <int bits>
inline void pack_word(const uint8_t* codes, uint8_t* packed, int count) {
    uint64_t word = 0;
    for (int k = 0; k < count; ++k) word |= uint64_t(codes[k] & ((1 << bits) - 1)) << k * bits;
    for (int k = 0; k < count * bits / 8; ++k) packed[k] = uint8_t(word >> 8 * k);
}

template <int bits>
inline void pack_plane_word(const int32_t* codes, uint8_t* packed, int count, int shift) {
    uint64_t word = 0;
    for (int k = 0; k < count; ++k) word |= uint64_t(uint32_t(codes[k]) >> shift & ((1 << bits) - 1)) << k * bits;
    for (int k = 0; k < (count * bits + 7) / 8; ++k) packed[k] = uint8_t(word >> 8 * k);
}

template <int bits>
inline void unpack_plane_word(const uint8_t* packed, int32_t* codes, int count, int shift) {
    uint64_t word = 0;
    for (int k = 0; k < (count * bits + 7) / 8; ++k) word |= uint64_t(packed[k]) << 8 * k;
    for (int k = 0; k < count; ++k) {
        const int32_t code = int32_t(word >> k * bits & ((1 << bits) - 1)) << shift;
        codes[k] = shift ? codes[k] | code : code;
    }
}

template <int bits>
inline void unpack_word(const uint8_t* packed, uint8_t* codes, int count) {
    uint64_t word = 0;
    for (int k = 0; k < count * bits / 8; ++k) word |= uint64_t(packed[k]) << 8 * k;
    for (int k = 0; k < count; ++k) codes[k] = uint8_t(word >> k * bits & ((1 << bits) - 1));
}

// Fewer than eight only at the end, where they end on a byte.
template <int bits>
void pack_words(const uint8_t* codes, uint8_t* packed, int64_t count) {
    for (; count >= 8; count -= 8, codes += 8, packed += bits) pack_word<bits>(codes, packed, 8);
    pack_word<bits>(codes, packed, int(count));
}

template <int bits>
void unpack_words(const uint8_t* packed, uint8_t* codes, int64_t count) {
    for (; count >= 8; count -= 8, codes += 8, packed += bits) unpack_word<bits>(packed, codes, 8);
    unpack_word<bits>(packed, codes, int(count));
}

// Fewer than eight only at the end, where zeros fill the byte.
template <int bits>
void pack_plane(const int32_t* codes, uint8_t* packed, int64_t count, int shift) {
    for (; count >= 8; count -= 8, codes += 8, packed += bits) pack_plane_word<bits>(codes, packed, 8, shift);
    pack_plane_word<bits>(codes, packed, int(count), shift);
}

template <int bits>
void unpack_plane(const uint8_t* packed, int32_t* codes, int64_t count, int shift) {
    for (; count >= 8; count -= 8, codes += 8, packed += bits) unpack_plane_word<bits>(packed, codes, 8, shift);
    unpack_plane_word<bits>(packed, codes, int(count), shift);
}

using Run = void (*)(const uint8_t*, uint8_t*, int64_t);

using PackPlane = void (*)(const int32_t*, uint8_t*, int64_t, int);
using UnpackPlane = void (*)(const uint8_t*, int32_t*, int64_t, int);

}  // namespace

void pack_bits(const uint8_t* codes, uint8_t* packed, int64_t count, int bits) {
    static constexpr Run runs[] = {pack_words<1>, pack_words<2>, pack_words<3>, pack_words<4>,
                                   pack_words<5>, pack_words<6>, pack_words<7>, pack_words<8>};
    runs[bits - 1](codes, packed, count);
}

void unpack_bits(const uint8_t* packed, uint8_t* codes, int64_t count, int bits) {
    static constexpr Run runs[] = {unpack_words<1>, unpack_words<2>, unpack_words<3>, unpack_words<4>,
                                   unpack_words<5>, unpack_words<6>, unpack_words<7>, unpack_words<8>};
    runs[bits - 1](packed, codes, count);
}

void pack_plane_bits(const int32_t* codes, uint8_t* packed, int64_t count, int bits, int shift) {
    static constexpr PackPlane runs[] = {pack_plane<1>, pack_plane<2>, pack_plane<3>, pack_plane<4>,
                                         pack_plane<5>, pack_plane<6>, pack_plane<7>, pack_plane<8>};
    runs[bits - 1](codes, packed, count, shift);
}

void unpack_plane_bits(const uint8_t* packed, int32_t* codes, int64_t count, int bits, int shift) {
    static constexpr UnpackPlane runs[] = {unpack_plane<1>, unpack_plane<2>, unpack_plane<3>, unpack_plane<4>,
                                           unpack_plane<5>, unpack_plane<6>, unpack_plane<7>, unpack_plane<8>};
    runs[bits - 1](packed, codes, count, shift);
}

}  // namespace TQB_VARIANT
}  // namespace tqb
