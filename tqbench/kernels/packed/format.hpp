// What the kernels must know about a format, and where its arrays lie. Filled in from Python (kernels/packed/__init__.py), field by field.
#pragma once

#include <cstdint>

namespace tqb {

// How the codes of a vector lie in its bytes.
enum Arrangement : int32_t {
    kStream = 0,  // one stream of `bits` each, least significant first
    kHalves = 1,  // blocks of 32 in 16 bytes: code i in the low half of byte i, i + 16 in the high half (ggml)
    kFifth = 2,   // the same, and a fifth bit each in a stream of their own
    kSplit = 3,   // a stream of two bits and a stream of one
    kFloats = 4,  // no codes: floating-point values
};

// What a code stands for, before scale and minimum.
enum Value : int32_t {
    kTable = 0,   // levels[code] · level_unit = values[code]
    kLinear = 1,  // (code ^ flip) + bias
    kE4m3 = 2,
    kE5m2 = 3,
};

enum Number : int32_t { kNone = 0, kF32 = 1, kF16 = 2, kBf16 = 3, kByte = 4 };  // kByte: an index into a table of 256

struct Format {
    int32_t arrangement, bits;
    int32_t dim;    // values per vector as stored
    int32_t group;  // channels that share a scale
    int32_t unit;   // tokens that are encoded together; above one, each channel has a scale per unit, and codes run along the tokens
    int32_t value, flip, bias;
    int32_t scale, minimum;  // Number
    int32_t number;          // of kFloats
    int32_t normalized;      // each group is scaled to the length that its scale names, whatever its levels
    float level_unit;
    const int16_t* levels;     // 32
    const float* values;       // 256
    const float* scale_table;  // 256, for kByte
};

// One array of packed vectors [batch, heads, units, …]: strides and sizes in bytes.
struct Array {
    const uint8_t* data;
    int64_t batch, head, unit;  // strides
    int64_t size;               // bytes from data to the end of its memory
};

struct Packed {
    Format format;
    Array codes, high, scales, minima;
    int64_t units;
    const float* head_scale;  // [head_scales], or null
    int64_t head_scales;      // as many as heads
};

struct Exact {  // floating-point vectors [batch, heads, rows, head_dim]
    Array rows;
    int64_t count;
    int32_t number;
};

static inline int32_t bytes_of(int32_t number) { return number == kF32 ? 4 : number == kByte ? 1 : number == kNone ? 0 : 2; }

}  // namespace tqb
