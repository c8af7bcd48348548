// Codes of any width into bit streams, one stream per lane, and from the lanes into rows of bytes.
#pragma once

#include "encode/plan.hpp"
#include "simd/lanes.hpp"

namespace tqb {
namespace TQB_VARIANT {
namespace {

// `count` codes of `width` bits into words, least significant bit first. The rest of the last word is zero.
template <int width>
inline void pack_run(const Ints* codes, const int32_t* order, int shift, int count, Ints* words) {
    constexpr int mask = width == 32 ? -1 : int((1u << (width & 31)) - 1);
    Ints word = {};
    int fill = 0;
#pragma GCC unroll 32
    for (int i = 0; i < count; ++i) {
        const Ints code = codes[order[i]] >> shift & mask;
        word |= code << fill;
        fill += width;
        if (fill >= 32) {
            *words++ = word;
            fill -= 32;
            word = fill ? code >> ((width - fill) & 31) : Ints{};
        }
    }
    if (fill) *words = word;
}

template <int width>
inline void pack_stream(const Ints* codes, const int32_t* order, int shift, int count, Ints* words) {
    for (; count >= 32; count -= 32, order += 32, words += width) pack_run<width>(codes, order, shift, 32, words);
    if (count) pack_run<width>(codes, order, shift, count, words);
}

inline void pack(const Ints* codes, const Plane& plane, int count, Ints* words) {
    using Pack = void (*)(const Ints*, const int32_t*, int, int, Ints*);
    static constexpr Pack narrow[] = {pack_stream<1>, pack_stream<2>, pack_stream<3>, pack_stream<4>,
                                      pack_stream<5>, pack_stream<6>, pack_stream<7>, pack_stream<8>};
    const Pack chosen = plane.bits <= 8 ? narrow[plane.bits - 1] : plane.bits == 16 ? pack_stream<16> : pack_stream<32>;
    chosen(codes, plane.order, plane.shift, count, words);
}

// Lane l's words become the `size` bytes of row l, for the first `rows` lanes. Writes over the words, whole transposes at a time.
inline void store_rows(Ints* words, int64_t size, uint8_t* out, int rows) {
    int64_t done = 0;
    for (; size - done > 8; done += kLanes * 4, words += kLanes) {
        transpose(words);
        const int64_t left = size - done;
        if (left >= kLanes * 4) {
            for (int l = 0; l < rows; ++l) store(out + l * size + done, words[l]);
        } else {
            for (int l = 0; l < rows; ++l) memcpy(out + l * size + done, words + l, size_t(left));
        }
    }
    for (; done < size; done += 4, ++words)
        for (int l = 0; l < rows; ++l) {
            const int32_t word = (*words)[l];
            uint8_t* to = out + l * size + done;
            if (size - done >= 4) {
                memcpy(to, &word, 4);
            } else if (size - done == 2) {
                memcpy(to, &word, 2);
            } else {
                for (int64_t i = 0; i < size - done; ++i) to[i] = uint8_t(word >> 8 * i);
            }
        }
}

// Byte i of every lane's stream becomes row i of `out`, whose rows are `stride` bytes apart: for values that are packed down a channel.
inline void store_columns(const Ints* words, int64_t size, uint8_t* out, int64_t stride, int lanes) {
    for (int64_t i = 0; i < size; ++i) {
        const Bytes bytes = __builtin_convertvector(words[i / 4] >> int(i % 4 * 8) & 255, Bytes);
        memcpy(out + i * stride, &bytes, size_t(lanes));
    }
}

}  // namespace
}  // namespace TQB_VARIANT
}  // namespace tqb
