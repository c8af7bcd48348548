// The lossy part of every format: y[count] to a code per value, and to what is kept per group, one vector of the cache per lane. Every line
// rounds where the reference rounds (codecs/*.py), so this is compiled without fused multiply-add.
#pragma once

#include "encode/plan.hpp"
#include "simd/lanes.hpp"

namespace tqb {
namespace TQB_VARIANT {
namespace {

// One group: `n` values in, their codes out, and what is kept of the group.
struct Group {
    const Floats* y;
    Ints* codes;
    Floats *first, *second;
    int n;
    const char* ahead;  // where the vectors lie that come next: a line per value, so that they arrive while this
                        // group is computed; the processor sees no pattern in rows
};

inline void emit(const Group& g, int value, const Ints& code) {
    g.codes[value] = code;
    __builtin_prefetch(g.ahead + 64 * value);
}

inline Floats largest_size(const Floats* y, int n) {
    Floats most = {};
    for (int i = 0; i < n; ++i) most = larger(magnitude(y[i]), most);
    return most;
}

// The value of largest magnitude, with its sign; the first of several.
inline Floats largest_value(const Floats* y, int n) {
    Floats value = y[0], size = magnitude(value);
    for (int i = 1; i < n; ++i) {
        const Floats other = magnitude(y[i]);
        value = other > size ? y[i] : value;
        size = larger(other, size);
    }
    return value;
}

inline void range(const Floats* y, int n, Floats& low, Floats& high) {
    low = high = y[0];
    for (int i = 1; i < n; ++i) low = smaller(y[i], low), high = larger(y[i], high);
}

inline Floats inverse(const Floats& scale) { return scale == 0.0f ? Floats{} : 1.0f / scale; }

inline Floats as_kept(const Floats& x, Type type) {
    return type == float16 ? from_half(to_half(x)) : type == bfloat16 ? floats(to_bfloat(x) << 16) : x;
}

inline Floats lookup(const float* table, const Ints& index) {
    Floats r = {};
    for (int l = 0; l < kLanes; ++l) r[l] = table[index[l]];
    return r;
}

// How many of the 2^bits − 1 ascending edges are ≤ u: binary search, exact.
template <int bits>
inline Ints nearest(const float* edges, const Floats& u) {
    Ints index = u >= edges[(1 << (bits - 1)) - 1] ? all(1 << (bits - 1)) : Ints{};
#pragma GCC unroll 8
    for (int step = 1 << (bits - 1) >> 1; step; step >>= 1)
        index = u >= (bits <= 4 ? lookup16(edges + step - 1, index) : lookup(edges + step - 1, index)) ? index + step : index;
    return index;
}

// codebook: n = ‖y‖ (or what the largest coordinate asks for), u = y √g / n, codes = the nearest levels c; kept is the length that the scale
// rule makes of n, ⟨u, c⟩ and ‖c‖². Four partial sums each, so that additions do not wait for one another.
template <int width, bool by_product>
inline void codebook_group(const Plan& plan, const Group& g) {
    const float size = sqrtf(float(g.n));
    Floats length;
    if (plan.scale == max_abs) {
        length = largest_size(g.y, g.n) * size / plan.outermost;
    } else {
        Floats sums[4] = {};
        for (int i = 0; i < g.n; i += 4)
            for (int k = 0; k < 4; ++k) sums[k] += g.y[i + k] * g.y[i + k];
        length = root((sums[0] + sums[1]) + (sums[2] + sums[3]));
    }
    length = length > 1e-10f ? length : Floats{};
    const Floats factor = length > 0.0f ? size / length : Floats{};
    Floats squares[4] = {}, products[4] = {};
    for (int i = 0; i < g.n; i += 4)
        for (int k = 0; k < 4; ++k) {
            const Floats u = g.y[i + k] * factor;
            const Ints index = nearest<width>(plan.edges, u);
            const Floats c = width <= 4 ? lookup16(plan.levels, index) : lookup(plan.levels, index);
            emit(g, i + k, index);
            squares[k] += c * c;
            if (by_product) products[k] += u * c;
        }
    const Floats square = (squares[0] + squares[1]) + (squares[2] + squares[3]);
    const Floats product = (products[0] + products[1]) + (products[2] + products[3]);
    switch (plan.scale) {
        case norm_corrected: *g.first = length * size / root(square); break;
        case least_squares: *g.first = length * product / square; break;
        case unbiased: *g.first = length > 0.0f ? length * float(g.n) / product : Floats{}; break;
        default: *g.first = length;
    }
}

// q8_0: d = max|x| / 127, code = round(x / d), halves away from zero. q5_0, q4_0: d = x* / −2^(bits−1),
// code = min(2^bits − 1, ⌊x / d + 2^(bits−1) + ½⌋).
inline void block_symmetric_group(const Plan& plan, const Group& g) {
    if (plan.bits == 8) {
        *g.first = largest_size(g.y, g.n) / 127.0f;
        const Floats factor = inverse(*g.first);
        for (int i = 0; i < g.n; ++i) {
            const Floats scaled = g.y[i] * factor;
            const Ints whole = to_ints(scaled), up = magnitude(scaled - to_floats(whole)) >= 0.5f;
            emit(g, i, whole + (up & (scaled < 0.0f ? all(-1) : all(1))));
        }
        return;
    }
    const float half = float(1 << (plan.bits - 1));
    *g.first = largest_value(g.y, g.n) / -half;
    const Floats factor = inverse(*g.first);
    for (int i = 0; i < g.n; ++i) emit(g, i, to_ints(clamp(g.y[i] * factor + (half + 0.5f), 0.0f, 2 * half - 1)));
}

// q5_1, q4_1: d = (max − min) / (2^bits − 1), m = min, code = ⌊(x − m) / d + ½⌋.
inline void block_affine_group(const Plan& plan, const Group& g) {
    const float most = float((1 << plan.bits) - 1);
    Floats low, high;
    range(g.y, g.n, low, high);
    *g.first = (high - low) / most;
    *g.second = low;
    const Floats factor = inverse(*g.first);
    for (int i = 0; i < g.n; ++i) emit(g, i, to_ints(clamp((g.y[i] - low) * factor + 0.5f, 0.0f, most)));
}

// iq4_nl: code = the nearest of 16 levels q to x / d, d = x* / −127; kept is Σ x² q x / Σ x² q², in double as in the
// reference, and rounded to float before half precision, as torch does.
inline void block_nonlinear_group(const Plan& plan, const Group& g) {
    const Floats largest = largest_value(g.y, g.n), factor = inverse(largest / plan.levels[0]);
    const Ints zero = magnitude(largest) < 1e-15f;
    double above[kLanes] = {}, below[kLanes] = {};
    for (int i = 0; i < g.n; ++i) {
        const Ints index = nearest<4>(plan.edges, g.y[i] * factor);
        const Floats levels = lookup16(plan.levels, index);
        emit(g, i, ~zero & index);
        for (int l = 0; l < kLanes; ++l) {
            const double x = g.y[i][l], q = levels[l];
            above[l] += x * x * x * q;
            below[l] += x * x * (q * q);
        }
    }
    for (int l = 0; l < kLanes; ++l) (*g.first)[l] = zero[l] ? 0.0f : float(above[l] / below[l]);
}

inline Ints affine_round(const Plan& plan, const Floats& scaled, float low, float high) {
    return to_ints(clamp(plan.half_up ? round_down(scaled + 0.5f) : round_even(scaled), low, high));
}

// affine: scale = (max − min) / (2^bits − 1), code = round((x − minimum) / scale), against what is kept or against the exact values.
inline void affine_group(const Plan& plan, const Group& g) {
    const float most = float((1 << plan.bits) - 1);
    Floats low, high;
    range(g.y, g.n, low, high);
    Floats scale = (high - low) / most;
    if (plan.exact) scale = larger(scale, all(plan.smallest));
    *g.first = scale;
    *g.second = low;
    if (!plan.exact) scale = as_kept(scale, plan.kept), low = as_kept(low, plan.kept);
    const Floats divisor = scale == 0.0f ? all(1.0f) : scale;
    for (int i = 0; i < g.n; ++i) emit(g, i, affine_round(plan, (g.y[i] - low) / divisor, 0.0f, most));
}

// affine, symmetric: scale = max|x| / (2^(bits−1) − 1), code = round(x · (1 / scale)).
inline void symmetric_group(const Plan& plan, const Group& g) {
    const float half = float(1 << (plan.bits - 1));
    Floats scale = larger(largest_size(g.y, g.n) / (half - 1.0f), all(plan.smallest));
    *g.first = scale;
    if (!plan.exact) scale = as_kept(scale, plan.kept);
    const Floats factor = 1.0f / (scale == 0.0f ? all(1.0f) : scale);
    for (int i = 0; i < g.n; ++i) emit(g, i, affine_round(plan, g.y[i] * factor, -half, half - 1.0f));
}

// mlx_affine: the larger edge is a level, and so is zero: n = round(edge / scale), scale = edge / n.
inline void mlx_affine_group(const Plan& plan, const Group& g) {
    const float most = float((1 << plan.bits) - 1);
    Floats low, high;
    range(g.y, g.n, low, high);
    const Floats width = larger((high - low) / most, all(plan.smallest));
    const Ints below = magnitude(low) > magnitude(high);
    const Floats edge = below ? low : high, signed_width = below ? width : -width;
    const Floats n = round_even(edge / signed_width);
    const Floats scale = n == 0.0f ? signed_width : edge / n, bias = n == 0.0f ? Floats{} : edge;
    *g.first = scale;
    *g.second = bias;
    for (int i = 0; i < g.n; ++i) emit(g, i, to_ints(clamp(round_even((g.y[i] - bias) / scale), 0.0f, most)));
}

// The code of the nearest 8-bit float, ties to the even mantissa, saturating. Normal values: round the float's mantissa to `mantissa` bits
// and re-bias the exponent. Subnormal ones are multiples of 2^(lowest − mantissa).
inline Ints minifloat(const Plan& plan, const Floats& x) {
    const int shift = 23 - plan.mantissa;
    const Floats size = smaller(magnitude(x), all(plan.largest));
    const Ints word = bits(size);
    const Ints normal = ((word + ((1 << (shift - 1)) - 1) + (word >> shift & 1)) >> shift) - ((plan.lowest + 126) << plan.mantissa);
    const Floats steps = size * floats(all((127 + plan.mantissa - plan.lowest) << 23));
    const Ints small = to_ints(round_even(steps));
    return (word < (plan.lowest + 127) << 23 ? small : normal) | (bits(x) >> 24 & 0x80);
}

inline void fp8_group(const Plan& plan, const Group& g) {
    if (!plan.kept_count) {
        for (int i = 0; i < g.n; ++i) emit(g, i, minifloat(plan, g.y[i]));
        return;
    }
    const Floats scale = larger(largest_size(g.y, g.n) / plan.largest, all(plan.smallest)), factor = 1.0f / scale;
    *g.first = scale;
    for (int i = 0; i < g.n; ++i) emit(g, i, minifloat(plan, g.y[i] * factor));
}

inline void cast_group(const Plan& plan, const Group& g) {
    for (int i = 0; i < g.n; ++i) {
        const Floats y = g.y[i];
        emit(g, i, plan.kept == float16 ? to_half(y) : plan.kept == bfloat16 ? to_bfloat(y) : bits(y));
    }
}

using Quantize = void (*)(const Plan&, const Group&);

inline Quantize quantizer(const Plan& plan) {
    static constexpr Quantize codebooks[][2] = {
        {codebook_group<1, false>, codebook_group<1, true>}, {codebook_group<2, false>, codebook_group<2, true>},
        {codebook_group<3, false>, codebook_group<3, true>}, {codebook_group<4, false>, codebook_group<4, true>},
        {codebook_group<5, false>, codebook_group<5, true>}, {codebook_group<6, false>, codebook_group<6, true>},
        {codebook_group<7, false>, codebook_group<7, true>}, {codebook_group<8, false>, codebook_group<8, true>}};
    static constexpr Quantize others[] = {nullptr,         block_symmetric_group, block_affine_group, block_nonlinear_group, affine_group,
                                          symmetric_group, mlx_affine_group,      fp8_group,          cast_group};
    const bool by_product = plan.scale == least_squares || plan.scale == unbiased;
    return plan.format == codebook ? codebooks[plan.bits - 1][by_product] : others[plan.format];
}

}  // namespace
}  // namespace TQB_VARIANT
}  // namespace tqb
