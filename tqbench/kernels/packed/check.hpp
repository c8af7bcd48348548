// Whether arrays are as large as a format says. Only for native.cpp files, which are compiled once.
#pragma once

#include "packed/format.hpp"

namespace tqb {

constexpr int64_t kMost = 512;  // values per vector
__extension__ typedef __int128 Wide;

// Whether `bytes` of each unit lie within the array.
inline bool array_is_sane(const Array& a, int64_t batch, int64_t heads, int64_t units, int64_t bytes) {
    if (!a.data || a.batch < 0 || a.head < 0 || a.unit < 0 || bytes < 1) return false;
    const Wide last = Wide(batch - 1) * a.batch + Wide(heads - 1) * a.head + Wide(units - 1) * a.unit;
    return last + bytes <= a.size;
}

inline bool exact_is_sane(const Exact& e, int64_t batch, int64_t heads, int64_t head_dim) {
    if (e.count == 0) return true;
    if (e.count < 0 || e.number < kF32 || e.number > kBf16) return false;
    return array_is_sane(e.rows, batch, heads, e.count, head_dim * bytes_of(e.number));
}

// Bits per value of the array of codes, and of that of high bits; 0 where there is none.
inline int64_t low_bits(const Format& f) { return f.arrangement == kHalves || f.arrangement == kFifth ? 4 : f.arrangement == kSplit ? 2 : f.bits; }
inline int64_t high_bits(const Format& f) { return f.arrangement == kFifth || f.arrangement == kSplit ? 1 : 0; }

// Whether the fields of a format fit together: kernels plan by them whether anything is packed or not.
inline bool format_is_sane(const Format& f) {
    const int64_t dim = f.dim;
    if (dim < 1 || dim > kMost || f.unit < 1 || f.unit > 4096) return false;
    if (f.arrangement == kFloats) return f.unit == 1 && f.number >= kF32 && f.number <= kBf16;
    if (f.arrangement < kStream || f.arrangement > kSplit) return false;
    if (f.bits < 1 || f.bits > 8 || f.group < 1 || f.value < kTable || f.value > kE5m2 || f.flip < 0 || f.flip > 255) return false;
    if (f.scale < kNone || f.scale > kByte || f.minimum < kNone || f.minimum > kByte) return false;
    if ((f.scale == kByte || f.minimum == kByte) && !f.scale_table) return false;
    if ((f.value == kTable && !f.values) || (f.value <= kLinear && f.bits <= 5 && !f.levels)) return false;
    if ((f.arrangement == kHalves && (f.bits != 4 || dim % 32)) || (f.arrangement == kFifth && (f.bits != 5 || dim % 32))) return false;
    if (f.arrangement == kSplit && (f.bits != 3 || dim % 8)) return false;
    const bool channels = f.unit > 1;
    if (channels && (f.arrangement != kStream || f.unit * f.bits % 8 || f.normalized)) return false;
    if (channels && (f.scale == kNone || f.scale == kByte || f.minimum == kByte)) return false;
    if (!channels && dim * low_bits(f) % 8) return false;
    return channels || f.arrangement != kStream || 8 % f.bits == 0 || dim % 8 == 0;
}

// Whether the arrays of a sane format hold that much.
inline bool packed_is_sane(const Packed& p, int64_t batch, int64_t heads) {
    const Format& f = p.format;
    const int64_t dim = f.dim, units = p.units;
    if (units < 1 || !format_is_sane(f) || (p.head_scale && p.head_scales != heads)) return false;
    if (f.arrangement == kFloats) return array_is_sane(p.codes, batch, heads, units, dim * bytes_of(f.number));
    const bool channels = f.unit > 1;
    const int64_t groups = channels ? dim : (dim + f.group - 1) / f.group, per = channels ? f.unit * dim : dim;
    if (!array_is_sane(p.codes, batch, heads, units, per * low_bits(f) / 8)) return false;
    if (high_bits(f) && !array_is_sane(p.high, batch, heads, units, per * high_bits(f) / 8)) return false;
    if (f.scale != kNone && !array_is_sane(p.scales, batch, heads, units, groups * bytes_of(f.scale))) return false;
    return f.minimum == kNone || array_is_sane(p.minima, batch, heads, units, groups * bytes_of(f.minimum));
}

}  // namespace tqb
