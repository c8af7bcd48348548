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

inline bool packed_is_sane(const Packed& p, int64_t batch, int64_t heads) {
    const Format& f = p.format;
    const int64_t dim = f.dim, units = p.units;
    if (units < 1 || dim < 1 || dim > kMost || f.unit < 1 || f.unit > 4096) return false;
    if (f.arrangement == kFloats)
        return f.unit == 1 && f.number >= kF32 && f.number <= kBf16 && array_is_sane(p.codes, batch, heads, units, dim * bytes_of(f.number));
    if (f.bits < 1 || f.bits > 8 || f.group < 1 || f.value < kTable || f.value > kE5m2 || f.flip < 0 || f.flip > 255) return false;
    if (f.scale < kNone || f.scale > kByte || f.minimum < kNone || f.minimum > kByte) return false;
    if ((f.scale == kByte || f.minimum == kByte) && !f.scale_table) return false;
    if ((f.value == kTable && !f.values) || (f.value <= kLinear && f.bits <= 5 && !f.levels)) return false;
    int64_t low = f.bits, high = 0;
    switch (f.arrangement) {
        case kStream: break;
        case kHalves: low = 4; break;
        case kFifth: low = 4, high = 1; break;
        case kSplit: low = 2, high = 1; break;
        default: return false;
    }
    if ((f.arrangement == kHalves && (f.bits != 4 || dim % 32)) || (f.arrangement == kFifth && (f.bits != 5 || dim % 32))) return false;
    if (f.arrangement == kSplit && (f.bits != 3 || dim % 8)) return false;
    const bool channels = f.unit > 1;
    if (channels && (f.arrangement != kStream || f.unit * f.bits % 8 || f.normalized)) return false;
    if (!channels && dim * low % 8) return false;
    if (!channels && f.arrangement == kStream && 8 % f.bits && dim % 8) return false;
    const int64_t groups = channels ? dim : (dim + f.group - 1) / f.group, per = channels ? f.unit * dim : dim;
    if (!array_is_sane(p.codes, batch, heads, units, per * low / 8)) return false;
    if (high && !array_is_sane(p.high, batch, heads, units, per * high / 8)) return false;
    if (f.scale != kNone && !array_is_sane(p.scales, batch, heads, units, groups * bytes_of(f.scale))) return false;
    if (channels && (f.scale == kNone || f.scale == kByte || f.minimum == kByte)) return false;
    return f.minimum == kNone || array_is_sane(p.minima, batch, heads, units, groups * bytes_of(f.minimum));
}

}  // namespace tqb
