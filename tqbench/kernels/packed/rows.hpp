// Packed vectors as bytes of codes, and as floats: one vector at a time, for every format. The loops are plain, for the compiler.
#pragma once

#include "packed/format.hpp"
#include "simd/simd.hpp"

namespace tqb::TQB_VARIANT {
namespace {

constexpr int kMaxDim = 512;

struct Head {  // the arrays of one head of one sequence
    const Packed* packed;
    const uint8_t *codes, *high, *scales, *minima;
    float factor;
    Head(const Packed& p, int64_t b, int64_t h)
        : packed(&p), codes(at(p.codes, b, h)), high(at(p.high, b, h)), scales(at(p.scales, b, h)), minima(at(p.minima, b, h)),
          factor(p.head_scale ? p.head_scale[h] : 1.0f) {}
    static const uint8_t* at(const Array& a, int64_t b, int64_t h) { return a.data ? a.data + b * a.batch + h * a.head : nullptr; }
};

inline float from_half(uint16_t h) {
#if defined(TQB_VARIANT_avx512) || defined(TQB_VARIANT_avx2)
    return _cvtsh_ss(h);
#else
    return half(h);
#endif
}

inline float number(const uint8_t* data, int64_t i, int32_t type, const float* table) {
    if (type == kByte) return table[data[i]];
    if (type == kF32) {
        float x;
        std::memcpy(&x, data + 4 * i, 4);
        return x;
    }
    uint16_t x;
    std::memcpy(&x, data + 2 * i, 2);
    if (type == kF16) return from_half(x);
    const uint32_t bits = uint32_t(x) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// One code per byte, in channel order, of token `t` of a head.
inline void codes_of(const Head& head, int64_t t, uint8_t* out) {
    const Packed& p = *head.packed;
    const Format& f = p.format;
    const int dim = f.dim, bits = f.bits, mask = (1 << bits) - 1;
    if (f.unit > 1) {  // the stream runs along the tokens of the unit
        const int64_t unit = t / f.unit, bit = t % f.unit * bits;
        const uint8_t* row = head.codes + unit * p.codes.unit + bit / 8 * dim;
        const int shift = int(bit % 8);
        if (shift + bits <= 8)
            for (int d = 0; d < dim; ++d) out[d] = uint8_t(row[d] >> shift & mask);
        else
            for (int d = 0; d < dim; ++d) out[d] = uint8_t((row[d] | row[d + dim] << 8) >> shift & mask);
        return;
    }
    const uint8_t* row = head.codes + t * p.codes.unit;
    if (f.arrangement == kHalves || f.arrangement == kFifth) {
        for (int b = 0; b < dim / 32; ++b)
            for (int i = 0; i < 16; ++i) {
                out[32 * b + i] = row[16 * b + i] & 15;
                out[32 * b + i + 16] = row[16 * b + i] >> 4;
            }
        if (f.arrangement == kFifth) {
            const uint8_t* high = head.high + t * p.high.unit;
            for (int d = 0; d < dim; ++d) out[d] = uint8_t(out[d] | (high[d / 8] >> d % 8 & 1) << 4);
        }
    } else if (f.arrangement == kSplit) {
        const uint8_t* high = head.high + t * p.high.unit;
        for (int d = 0; d < dim; ++d) out[d] = uint8_t((row[d / 4] >> d % 4 * 2 & 3) | (high[d / 8] >> d % 8 & 1) << 2);
    } else if (bits == 8) {
        std::memcpy(out, row, size_t(dim));
    } else if (bits == 4) {
        for (int i = 0; i < dim / 2; ++i) {
            out[2 * i] = row[i] & 15;
            out[2 * i + 1] = row[i] >> 4;
        }
    } else if (8 % bits == 0) {
        const int per = 8 / bits;
        for (int i = 0; i < dim / per; ++i)
            for (int k = 0; k < per; ++k) out[per * i + k] = uint8_t(row[i] >> k * bits & mask);
    } else {  // eight codes are `bits` bytes
        for (int i = 0; i < dim / 8; ++i) {
            uint64_t word = 0;
            for (int k = 0; k < bits; ++k) word |= uint64_t(row[i * bits + k]) << 8 * k;
            for (int k = 0; k < 8; ++k) out[8 * i + k] = uint8_t(word >> k * bits & uint64_t(mask));
        }
    }
}

inline void floats_of(const uint8_t* row, int32_t type, int dim, float* out) {
    int d = 0;
    if (type == kF32) {
        std::memcpy(out, row, size_t(dim) * 4);
        return;
    }
    const auto* words = reinterpret_cast<const uint16_t*>(row);
    for (; d + L <= dim; d += L) store(out + d, type == kF16 ? from_f16(words + d) : from_bf16(words + d));
    for (; d < dim; ++d) out[d] = number(row, d, type, nullptr);
}

// The values of codes before scale and minimum.
inline void values_of(const Format& f, const uint8_t* codes, float* out) {
    const int dim = f.dim;
    if (f.value == kLinear) {
        const float bias = float(f.bias);
        for (int d = 0; d < dim; ++d) out[d] = float(codes[d] ^ f.flip) + bias;
    } else if (f.value == kTable) {
        for (int d = 0; d < dim; ++d) out[d] = f.values[codes[d]];
    } else {  // the bits of an eight-bit float are the upper ones of a half, up to the exponent's bias
        uint16_t words[kMaxDim];
        const bool wide = f.value == kE5m2;
        for (int d = 0; d < dim; ++d) words[d] = uint16_t(wide ? codes[d] << 8 : (codes[d] & 127) << 7 | (codes[d] & 128) << 8);
        floats_of(reinterpret_cast<const uint8_t*>(words), kF16, dim, out);
        if (!wide)
            for (int d = 0; d < dim; ++d) out[d] *= 256.0f;
    }
}

// The scale of a group of token `t`, as it multiplies values.
inline float scale_of(const Head& head, int64_t t, int g) {
    const Packed& p = *head.packed;
    return p.format.scale == kNone ? head.factor
                                   : head.factor * number(head.scales + t * p.scales.unit, g, p.format.scale, p.format.scale_table);
}

// The scales (or minima) of n tokens from `t` on, as floats [token][group].
inline void numbers_of(const uint8_t* data, const Array& array, int32_t type, const float* table, int64_t t, int n, int groups, float* out) {
    const uint8_t* row = data + t * array.unit;
    if (type != kByte && array.unit == int64_t(groups) * bytes_of(type)) return floats_of(row, type, n * groups, out);
    for (int i = 0; i < n; ++i, row += array.unit)
        for (int g = 0; g < groups; ++g) out[i * groups + g] = number(row, g, type, table);
}

// One vector as floats.
TQB_LOOP void decode_row(const Head& head, int64_t t, float* out) {
    const Packed& p = *head.packed;
    const Format& f = p.format;
    if (f.arrangement == kFloats) return floats_of(head.codes + t * p.codes.unit, f.number, f.dim, out);
    uint8_t codes[kMaxDim];
    codes_of(head, t, codes);
    values_of(f, codes, out);
    if (f.unit > 1) {
        const uint8_t *scales = head.scales + t / f.unit * p.scales.unit, *minima = head.minima + t / f.unit * p.minima.unit;
        for (int d = 0; d < f.dim; ++d) {
            out[d] *= number(scales, d, f.scale, nullptr);
            if (f.minimum != kNone) out[d] += number(minima, d, f.minimum, nullptr);
        }
        return;
    }
    for (int g = 0, start = 0; start < f.dim; ++g, start += f.group) {
        const int end = start + f.group < f.dim ? start + f.group : f.dim;
        float scale = scale_of(head, t, g);
        if (f.normalized) {
            float squares = 0;
            for (int d = start; d < end; ++d) squares += out[d] * out[d];
            scale = squares > 0 ? scale / __builtin_sqrtf(squares) : 0.0f;
        }
        const float low = f.minimum == kNone ? 0.0f : number(head.minima + t * p.minima.unit, g, f.minimum, f.scale_table);
        for (int d = start; d < end; ++d) out[d] = out[d] * scale + low;
    }
}

}  // namespace
}  // namespace tqb::TQB_VARIANT
