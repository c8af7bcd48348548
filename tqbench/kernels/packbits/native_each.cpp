// Eight codes at a time as one word of 8 · bits bits: plain loops of fixed width, which compilers turn into shifts of whole registers.
#include <stdint.h>

namespace tqb {
namespace TQB_VARIANT {
namespace {

template <int bits>
void pack_words(const uint8_t* codes, uint8_t* packed, int64_t count) {
    for (int64_t i = 0; i < count; i += 8) {
        const int present = count - i < 8 ? int(count - i) : 8;  // fewer only at the end, where they end on a byte
        uint64_t word = 0;
        for (int k = 0; k < present; ++k) word |= uint64_t(codes[i + k] & ((1 << bits) - 1)) << k * bits;
        for (int k = 0; k < present * bits / 8; ++k) packed[i * bits / 8 + k] = uint8_t(word >> 8 * k);
    }
}

template <int bits>
void unpack_words(const uint8_t* packed, uint8_t* codes, int64_t count) {
    for (int64_t i = 0; i < count; i += 8) {
        const int present = count - i < 8 ? int(count - i) : 8;
        uint64_t word = 0;
        for (int k = 0; k < present * bits / 8; ++k) word |= uint64_t(packed[i * bits / 8 + k]) << 8 * k;
        for (int k = 0; k < present; ++k) codes[i + k] = uint8_t(word >> k * bits & ((1 << bits) - 1));
    }
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
