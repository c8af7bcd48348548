// C ABI of bit streams: codes of 1 to 8 bits, least significant bit first. Eight codes are `bits` bytes, so pieces of eight codes are
// independent of one another.
#include <cstdint>

#include "simd/dispatch.hpp"

TQB_DECLARE(void, pack_bits, const uint8_t*, uint8_t*, int64_t, int)
TQB_DECLARE(void, unpack_bits, const uint8_t*, uint8_t*, int64_t, int)

namespace {

constexpr int64_t kPiece = 1 << 15;  // codes, a multiple of eight

bool sane(const void* from, const void* to, int64_t codes, int bits) {
    return bits >= 1 && bits <= 8 && codes >= 0 && codes <= INT64_MAX / 8 && codes * bits % 8 == 0 && (codes == 0 || (from && to));
}

}  // namespace

// Both return 0, or 1 if the arguments are not sane. `codes` is the number of codes on either side.
extern "C" int tqbench_packbits(const uint8_t* codes, uint8_t* packed, int64_t count, int bits) {
    if (!sane(codes, packed, count, bits)) return 1;
#pragma omp parallel for schedule(static) if (count > 8 * kPiece)
    for (int64_t first = 0; first < count; first += kPiece)
        TQB_CHOSEN(pack_bits)(codes + first, packed + first * bits / 8, count - first < kPiece ? count - first : kPiece, bits);
    return 0;
}

extern "C" int tqbench_unpackbits(const uint8_t* packed, uint8_t* codes, int64_t count, int bits) {
    if (!sane(packed, codes, count, bits)) return 1;
#pragma omp parallel for schedule(static) if (count > 8 * kPiece)
    for (int64_t first = 0; first < count; first += kPiece)
        TQB_CHOSEN(unpack_bits)(packed + first * bits / 8, codes + first, count - first < kPiece ? count - first : kPiece, bits);
    return 0;
}
