// Attention on vectors of floating-point numbers, channels in lanes: Σ_d q_d k_d of several rows and tokens at once, each in a register
// that is summed up at the end, and Σ_t w_t v_t. They are read where they lie; what other formats without integer levels store is decoded
// first.
#pragma once

#include "attend/plan.hpp"
#include "attend/query.hpp"

namespace tqb::TQB_VARIANT {
namespace {

constexpr int kFloatTile = 16;  // vectors that are decoded at a time

struct FloatScratch {
    alignas(64) float decoded[kFloatTile * kMaxDim];
    const uint8_t* rows[kTile + kFloatTile];
};

// L numbers of each type, as floats.
struct Float32 {
    static constexpr int kBytes = 4;
    static F get(const uint8_t* p) { return load(reinterpret_cast<const float*>(p)); }
};
struct Float16 {
    static constexpr int kBytes = 2;
    static F get(const uint8_t* p) { return from_f16(reinterpret_cast<const uint16_t*>(p)); }
};
struct Brain16 {
    static constexpr int kBytes = 2;
    static F get(const uint8_t* p) { return from_bf16(reinterpret_cast<const uint16_t*>(p)); }
};

// The tokens [from, from + n), or those n after `from` that are picked, as vectors of floats: calls fn(type, start, count, ahead) with
// `s.rows` pointing to `count` of them, and the last one again, from the one numbered `start` on. `ahead` is how far what comes later lies
// behind what is read, in bytes; 0 if unknown. They are decoded once where many rows share them, and where they do not fill registers.
template <class Fn>
inline void with_floats(const Plan& plan, const Head& head, int rows, int64_t from, int n, const int* picked, FloatScratch& s, const Fn& fn) {
    const Packed& p = *head.packed;
    const bool as_they_lie = p.format.arrangement == kFloats && plan.dim % L == 0 && (rows <= 4 || p.format.number == kF32);
    const int padded = padded_dim(plan.dim), most = as_they_lie ? kTile : kFloatTile;
    for (int start = 0; start < n; start += most) {
        const int count = n - start < most ? n - start : most;
        const auto token_of = [&](int t) { return from + (picked ? picked[start + t] : start + t); };
        for (int t = 0; t < count && as_they_lie; ++t) s.rows[t] = head.codes + token_of(t) * p.codes.unit;
        for (int t = 0; t < count && !as_they_lie; ++t) {
            float* decoded = s.decoded + t * padded;
            s.rows[t] = reinterpret_cast<const uint8_t*>(decoded);
            decode_row(head, token_of(t), decoded);
            for (int d = plan.dim; d < padded; ++d) decoded[d] = 0.0f;
        }
        for (int t = count; t < count + kFloatTile; ++t) s.rows[t] = s.rows[count - 1];
        const int64_t ahead = plan.ahead * p.codes.unit;
        if (!as_they_lie) fn(Float32{}, start, count, 0);
        else if (p.format.number == kF32) fn(Float32{}, start, count, ahead);
        else if (p.format.number == kF16) fn(Float16{}, start, count, ahead);
        else fn(Brain16{}, start, count, ahead);
    }
}

// Scores of R rows with n tokens, and with more until kSums are full.
template <int R, class Number>
TQB_LOOP void dot_floats(const uint8_t* const* keys, int n, int dim, int64_t ahead, const float* const* queries, const float* offsets,
                         float* scores, int stride) {
    constexpr int T = kSums / R;  // tokens at a time
    F start[R];
    for (int r = 0; r < R; ++r) start[r] = below(1, all(offsets[r]), all(0.0f));
    for (int t = 0; t < n; t += T) {
        F acc[kSums];
        for (int i = 0; i < kSums; ++i) acc[i] = i < R * T ? start[i / T] : all(0.0f);
        for (int d = 0; d < dim; d += L) {
            F query[R];
            for (int r = 0; r < R; ++r) query[r] = load(queries[r] + d);
            for (int k = 0; k < T; ++k) {
                if (ahead) fetch(keys[t + k] + ahead + d * Number::kBytes, L * Number::kBytes);
                const F key = Number::get(keys[t + k] + d * Number::kBytes);
                for (int r = 0; r < R; ++r) acc[r * T + k] = fma(key, query[r], acc[r * T + k]);
            }
        }
        alignas(64) float found[kSums];
        for (int i = 0; i < kSums; i += L) store(found + i, sums(acc + i));
        for (int r = 0; r < R; ++r) std::memcpy(scores + r * stride + t, found + r * T, T * sizeof(float));
    }
}

// Adds n weighted values to the sums of R rows: V registers of channels from `channel` on.
template <int R, int V, class Number>
TQB_LOOP void mix_floats(const uint8_t* const* values, int n, int channel, int64_t ahead, const float* const* weights, float* const* sums) {
    F acc[R][V];
    for (int r = 0; r < R; ++r)
        for (int i = 0; i < V; ++i) acc[r][i] = load(sums[r] + channel + i * L);
    for (int t = 0; t < n; ++t) {
        const uint8_t* row = values[t] + channel * Number::kBytes;
        if (ahead) fetch(row + ahead, V * L * Number::kBytes);
        F x[V];
        for (int i = 0; i < V; ++i) x[i] = Number::get(row + i * L * Number::kBytes);
        for (int r = 0; r < R; ++r) {
            const F weight = all(weights[r][t]);
            for (int i = 0; i < V; ++i) acc[r][i] = fma(x[i], weight, acc[r][i]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int i = 0; i < V; ++i) store(sums[r] + channel + i * L, acc[r][i]);
}

// Scores of rows [first, last) with the tokens [from, from + n) of a source, and what lies beyond n up to kFloatTile more.
inline void score_floats(const Plan& plan, const Head& head, const QueryRows& q, int first, int last, int64_t from, int n, FloatScratch& s,
                         float* scores, int stride) {
    with_floats(plan, head, last - first, from, n, nullptr, s, [&](auto type, int start, int count, int64_t ahead) {
        in_groups<4>(first, last, [&](auto rows, int r) {
            const float* queries[rows.value];
            float offsets[rows.value];
            for (int i = 0; i < rows.value; ++i) {
                queries[i] = plan.exact ? q.exact(r + i) : q.packed(r + i);
                offsets[i] = plan.exact ? 0.0f : q.offset(r + i);
            }
            dot_floats<rows.value, decltype(type)>(s.rows, count, padded_dim(plan.dim), r == first ? ahead : 0, queries, offsets,
                                                   scores + r * stride + start, stride);
        });
    });
}

}  // namespace
}  // namespace tqb::TQB_VARIANT
