// C ABI of bit streams: codes of 1 to 8 bits, least significant bit first. Eight codes are `bits` bytes, so pieces of eight codes are
// independent of one another. Mixed widths: a width of 0 to 16 for each row of codes; more than 8 bits make two streams.
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "simd/dispatch.hpp"

TQB_DECLARE(void, pack_bits, const uint8_t*, uint8_t*, int64_t, int)
TQB_DECLARE(void, unpack_bits, const uint8_t*, uint8_t*, int64_t, int)
TQB_DECLARE(void, pack_plane_bits, const int32_t*, uint8_t*, int64_t, int, int)
TQB_DECLARE(void, unpack_plane_bits, const uint8_t*, int32_t*, int64_t, int, int)

namespace {

constexpr int64_t kPiece = 1 << 15;  // codes, a multiple of eight

bool sane(const void* from, const void* to, int64_t codes, int bits) {
    return bits >= 1 && bits <= 8 && codes >= 0 && codes <= INT64_MAX / 8 && codes * bits % 8 == 0 && (codes == 0 || (from && to));
}

constexpr int64_t kMost = int64_t(1) << 40;

// Sections of `components` rows of `count` codes, head by head, `units` of each; widths [heads, components].
struct Mixed {
    const uint8_t* widths;
    int64_t sections, heads, units, components, count, size;  // size: bytes of a section

    const uint8_t* of(int64_t section) const { return widths + section / units % heads * components; }

    int64_t stream(int bits) const { return (count * bits + 7) / 8; }

    bool sane(const void* codes, const void* packed) const {
        if (sections < 0 || components < 0 || count < 0 || size < 0 || count > kMost || size > kMost) return false;
        if (!sections) return true;
        if (heads < 1 || units < 1 || (components && count && !codes) || (size && !packed) || (components && !widths)) return false;
        for (int64_t head = 0; head < heads; ++head) {
            int64_t bytes = 0;
            for (int64_t c = 0; c < components; ++c) {
                const int width = widths[head * components + c];
                if (width > 16) return false;
                bytes += width > 8 ? stream(8) + stream(width - 8) : stream(width);
            }
            if (bytes > size) return false;
        }
        return true;
    }
};

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

// Of mixed widths: codes [sections, components, count], packed [sections, size], zeros after the last stream. The same is returned.
extern "C" int tqbench_pack_mixed(const int32_t* codes, const uint8_t* widths, int64_t sections, int64_t heads, int64_t units,
                                  int64_t components, int64_t count, int64_t size, uint8_t* packed) {
    const Mixed m = {widths, sections, heads, units, components, count, size};
    if (!m.sane(codes, packed)) return 1;
    if (!size) return 0;
#pragma omp parallel for schedule(static) if (sections * components * count > 8 * kPiece)
    for (int64_t s = 0; s < sections; ++s) {
        uint8_t* out = packed + s * size;
        const int32_t* row = codes + s * components * count;
        for (int64_t c = 0; c < components; ++c, row += count) {
            const int width = m.of(s)[c];
            for (int shift = 0; shift < width; shift += 8) {
                const int bits = width - shift < 8 ? width - shift : 8;
                TQB_CHOSEN(pack_plane_bits)(row, out, count, bits, shift);
                out += m.stream(bits);
            }
        }
        std::memset(out, 0, std::size_t(packed + (s + 1) * size - out));
    }
    return 0;
}

extern "C" int tqbench_unpack_mixed(const uint8_t* packed, const uint8_t* widths, int64_t sections, int64_t heads, int64_t units,
                                    int64_t components, int64_t count, int64_t size, int32_t* codes) {
    const Mixed m = {widths, sections, heads, units, components, count, size};
    if (!m.sane(codes, packed)) return 1;
    if (!count) return 0;
#pragma omp parallel for schedule(static) if (sections * components * count > 8 * kPiece)
    for (int64_t s = 0; s < sections; ++s) {
        const uint8_t* in = packed + s * size;
        int32_t* row = codes + s * components * count;
        for (int64_t c = 0; c < components; ++c, row += count) {
            const int width = m.of(s)[c];
            if (!width) std::memset(row, 0, std::size_t(count) * sizeof(int32_t));
            for (int shift = 0; shift < width; shift += 8) {
                const int bits = width - shift < 8 ? width - shift : 8;
                TQB_CHOSEN(unpack_plane_bits)(in, row, count, bits, shift);
                in += m.stream(bits);
            }
        }
    }
    return 0;
}
