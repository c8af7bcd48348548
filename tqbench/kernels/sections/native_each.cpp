// Codes of one row: its range in fp16, rounded outward, then the nearest step. As the reference has it, operation by operation.
#include <stdint.h>

#include "simd/lanes.hpp"

namespace tqb {
namespace TQB_VARIANT {
namespace {

// The bits of the largest half that is not above x, and of the smallest that is not below.
inline uint16_t half_below(float x) {
    const Ints near = to_half(all(x));
    const int32_t half = near[0];
    if (!(from_half(near)[0] > x)) return uint16_t(half);
    return uint16_t((half & 0x7fff) == 0 ? 0x8001 : half & 0x8000 ? half + 1 : half - 1);
}

inline uint16_t half_above(float x) { return uint16_t(half_below(-x) ^ 0x8000); }

inline float value_of(uint16_t half) { return from_half(all(int32_t(half)))[0]; }

inline Floats first(const float* from, int64_t count, float rest) {
    Floats x = all(rest);
    memcpy(&x, from, size_t(count < kLanes ? count : kLanes) * sizeof(float));
    return x;
}

struct Ends {
    float low, high;
};

inline Ends range_of(const float* row, int64_t count) {
    Floats low = first(row, count, row[0]), high = low;
    for (int64_t i = kLanes; i < count; i += kLanes) {
        const Floats x = first(row + i, count - i, row[0]);
        low = smaller(x, low);
        high = larger(x, high);
    }
    Ends ends = {low[0], high[0]};
    for (int l = 1; l < kLanes; ++l) {
        ends.low = low[l] < ends.low ? low[l] : ends.low;
        ends.high = high[l] > ends.high ? high[l] : ends.high;
    }
    return ends;
}

// The means of what is not above the mean and of what is, the levels of one bit. The lower sum is no difference of others, which rounds.
inline Ends halves_of(const float* row, int64_t count) {
    double total = 0, lower = 0, upper = 0;
    int64_t above = 0;
    for (int64_t i = 0; i < count; ++i) total += row[i];
    const double mean = total / double(count);
    for (int64_t i = 0; i < count; ++i) {
        const bool over = row[i] > mean;
        above += over;
        (over ? upper : lower) += row[i];
    }
    if (above == 0 || above == count) return {float(mean), float(mean)};
    return {float(lower / double(count - above)), float(upper / double(above))};
}

}  // namespace

// Returns whether minimum and step fit fp16.
bool quantize_row(const float* row, int64_t count, int width, int32_t* codes, uint16_t* minimum, uint16_t* step) {
    if (!width) {
        memset(codes, 0, size_t(count) * sizeof(int32_t));
        *minimum = *step = 0;
        return true;
    }
    const Ends ends = width == 1 ? halves_of(row, count) : range_of(row, count);
    const float top = float((1 << width) - 1);
    *minimum = half_below(ends.low);
    const float from = value_of(*minimum), wide = (ends.high - from) / top;
    *step = half_above(wide > 0x1p-24f ? wide : 0x1p-24f);
    const float by = value_of(*step);
    for (int64_t i = 0; i < count; i += kLanes) {
        const Ints code = to_ints(clamp(round_even((first(row + i, count - i, from) - from) / by), 0, top));
        memcpy(codes + i, &code, size_t(count - i < kLanes ? count - i : kLanes) * sizeof(int32_t));
    }
    return (*minimum & 0x7c00) != 0x7c00 && (*step & 0x7c00) != 0x7c00;
}

void dequantize_row(const int32_t* codes, int64_t count, uint16_t minimum, uint16_t step, float* row) {
    const float from = value_of(minimum), by = value_of(step);
    for (int64_t i = 0; i < count; ++i) row[i] = float(codes[i]) * by + from;
}

}  // namespace TQB_VARIANT
}  // namespace tqb
