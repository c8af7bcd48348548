// Eight codes at a time as one word of 8 · bits bits: plain loops of fixed width, which compilers turn into shifts of whole registers.
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

using Run = void (*)(const uint8_t*, uint8_t*, int64_t);

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

}  // namespace TQB_VARIANT
}  // namespace tqb
