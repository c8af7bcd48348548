// From vectors of the cache to lanes: read, centre, order, pad and rotate.
#pragma once

#include "encode/plan.hpp"
#include "simd/fwht.hpp"
#include "simd/lanes.hpp"

namespace tqb {
namespace TQB_VARIANT {
namespace {

constexpr int kHalves = 2;  // registers of doubles per register of floats

struct Scratch {
    Floats *y, *first, *second;  // [dim], [groups], [groups]
    Doubles* wide;               // [dim][kHalves], and as much again for a dense rotation
    Ints *codes, *words;
    float *rows, *plain;  // [kLanes][head_dim], [unit][dim], both rounded up to whole registers
};

// Counts vectors in the order [batch, heads, tokens].
struct Cursor {
    const Input& in;
    int64_t b, h, t;

    Cursor(const Input& input, int64_t v) : in(input), b(v / in.tokens / in.heads), h(v / in.tokens % in.heads), t(v % in.tokens) {}
    int64_t offset() const { return b * in.stride[0] + h * in.stride[1] + t * in.stride[2]; }
    const char* address() const { return (const char*)in.x + offset() * (in.type == float32 ? 4 : 2); }
    void next() {
        if (++t < in.tokens) return;
        t = 0;
        if (++h < in.heads) return;
        h = 0, ++b;
    }
};

inline float widen(uint16_t x, Type type) {
    if (type == bfloat16) {
        const uint32_t word = uint32_t(x) << 16;
        float f;
        memcpy(&f, &word, 4);
        return f;
    }
    return from_half(all(int32_t(x)))[0];
}

// One vector as contiguous floats, less the mean.
inline void read_row(const Plan& plan, const Cursor& at, float* row) {
    const int64_t stride = at.in.stride[3], offset = at.offset();
    const int n = plan.head_dim;
    if (at.in.type == float32) {
        const float* x = (const float*)at.in.x + offset;
        for (int c = 0; c < n; ++c) row[c] = x[c * stride];
    } else {
        const uint16_t* x = (const uint16_t*)at.in.x + offset;
        int c = 0;
        for (; stride == 1 && c + kLanes <= n; c += kLanes) {
            const Ints word = __builtin_convertvector(load<Shorts>(x + c), Ints);
            store(row + c, at.in.type == bfloat16 ? floats(word << 16) : from_half(word));
        }
        for (; c < n; ++c) row[c] = widen(x[c * stride], at.in.type);
    }
    if (plan.mean)
        for (int c = 0; c < n; ++c) row[c] -= plan.mean[at.h * n + c];
}

// y[channel][lane] of the next `count` vectors; lanes beyond repeat the last one. Returns whether all values are finite.
inline bool read_lanes(const Plan& plan, Cursor& at, int count, Scratch& s) {
    const int n = plan.head_dim, padded = (n + kLanes - 1) / kLanes * kLanes;
    const bool direct = at.in.type == float32 && at.in.stride[3] == 1 && !plan.mean && n == padded;
    const float* row[kLanes];
    for (int l = 0; l < count; ++l, at.next()) {
        row[l] = direct ? (const float*)at.in.x + at.offset() : s.rows + l * padded;
        if (!direct) read_row(plan, at, s.rows + l * padded);
    }
    for (int l = count; l < kLanes; ++l) row[l] = row[count - 1];
    Ints most = {};
    for (int c = 0; c < n; c += kLanes) {
        Floats tile[kLanes];
        for (int l = 0; l < kLanes; ++l) tile[l] = load<Floats>(row[l] + c);
        transpose(tile);
        for (int j = 0; j < kLanes && c + j < n; ++j) {
            const Ints size = bits(tile[j]) & 0x7fffffff;
            most = size > most ? size : most;
            s.y[plan.channel ? plan.channel[c + j] : c + j] = tile[j];
        }
    }
    for (int c = n; c < plan.dim; ++c) s.y[c] = Floats{};
    return !any(most >= 0x7f800000);
}

inline Doubles wide_half(const Floats& x, int half) {
    return __builtin_convertvector(load<HalfFloats>((const float*)&x + half * (kLanes / kHalves)), Doubles);
}

inline void narrow_half(Floats& x, int half, const Doubles& value) {
    store((float*)&x + half * (kLanes / kHalves), __builtin_convertvector(value, HalfFloats));
}

// y = after · H (before · x); adding 0 makes the sum of zeros +0, as it is elsewhere. In double the sums of floats are exact or nearly so, hence the floats that come out are the reference's, and so
// are codes that are rounded. A codebook's coordinates are divided by a norm that was summed in float; for them float is enough, and twice as
// fast.
inline void turn_hadamard(const Plan& plan, Scratch& s) {
    for (int c = 0; c < plan.dim; ++c)
        for (int half = 0; half < kHalves; ++half) s.wide[c * kHalves + half] = wide_half(s.y[c], half) * plan.before[c];
    for (int c = 0; c < plan.dim; c += plan.turned) fwht(s.wide + c * kHalves, plan.turned, kHalves);
    for (int c = 0; c < plan.dim; ++c)
        for (int half = 0; half < kHalves; ++half) narrow_half(s.y[c], half, s.wide[c * kHalves + half] * plan.after[c] + 0.0);
}

inline void turn_hadamard_fast(const Plan& plan, Scratch& s) {
    for (int c = 0; c < plan.dim; ++c) s.y[c] *= float(plan.before[c]);
    for (int c = 0; c < plan.dim; c += plan.turned) fwht(s.y + c, plan.turned, 1);
    for (int c = 0; c < plan.dim; ++c) s.y[c] *= float(plan.after[c]);
}

// `count` rows of a matrix times one block, for one half of the lanes.
template <int count>
inline void multiply(const double* matrix, const Doubles* x, int n, Floats* y, int half) {
    Doubles sums[count] = {};
    for (int k = 0; k < n; ++k)
#pragma GCC unroll 8
        for (int i = 0; i < count; ++i) sums[i] += x[k * kHalves] * matrix[i * n + k];
    for (int i = 0; i < count; ++i) narrow_half(y[i], half, sums[i]);
}

inline void turn_dense(const Plan& plan, Scratch& s) {
    const int n = plan.turned;
    for (int c = 0; c < plan.dim; ++c)
        for (int half = 0; half < kHalves; ++half) s.wide[c * kHalves + half] = wide_half(s.y[c], half);
    for (int c = 0; c < plan.dim; c += n) {
        const double* matrix = plan.matrices + int64_t(c / n % plan.matrix_count) * n * n;
        for (int half = 0; half < kHalves; ++half) {
            const Doubles* x = s.wide + c * kHalves + half;
            int i = 0;
            for (; i + 8 <= n; i += 8) multiply<8>(matrix + i * n, x, n, s.y + c + i, half);
            for (; i < n; ++i) multiply<1>(matrix + i * n, x, n, s.y + c + i, half);
        }
    }
}

inline bool prepare(const Plan& plan, Cursor& at, int count, Scratch& s) {
    const bool fine = read_lanes(plan, at, count, s);
    if (plan.turn == hadamard) (plan.format == codebook ? turn_hadamard_fast : turn_hadamard)(plan, s);
    if (plan.turn == dense) turn_dense(plan, s);
    return fine;
}

}  // namespace
}  // namespace TQB_VARIANT
}  // namespace tqb
