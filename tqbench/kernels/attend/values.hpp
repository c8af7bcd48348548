// Σ_t w_t v_t over a tile for several rows at once, channels in lanes.
//
// Integer form: v_t = scale_t · unit · level_t, and w_t scale_t ≈ step · word_t per row and tile, so
//
//     Σ_t w_t v_td = unit · step Σ_t word_t level_td
//
// with an inner sum that is exact in 32 bits, for step is so chosen that Σ_t |word_t| · |level| < 2^31. Float form: for other formats.
#pragma once

#include "attend/plan.hpp"

namespace tqb::TQB_VARIANT {
namespace {

constexpr int kTile = 64, kFloatTile = 16;

struct ValueScratch {
    alignas(64) int32_t lanes[kTile / 2 * (kMaxDim + 16 * L)];  // [pair of tokens][vector][L]
    alignas(64) uint8_t codes[kTile * kMaxDim];
    alignas(64) float floats[kFloatTile * kMaxDim];
    alignas(64) float scale[kTile], minimum[kTile];
    alignas(64) int32_t words[4][kTile / 2];
    float steps[4];
};

// How many vectors of L lanes the integers of one token pair take, and how many floats a sum of values.
inline int vectors_of(const Plan& plan) { return (plan.row_bytes / 2 + L - 1) / L * plan.steps; }
inline int slots_of(const Plan& plan) { return plan.mode == Mode::floats ? (plan.dim + L - 1) / L * L : vectors_of(plan) * L; }

template <class Extract>
inline void unpack_values(const Plan& plan, const Extract& extract, const uint8_t* const* rows, const uint8_t* const* high, int pairs,
                          ValueScratch& s) {
    const int words = plan.row_bytes / 2, vectors = vectors_of(plan);
    for (int t = 0; t < pairs; ++t)
        for (int w = 0; w < words; w += L) {
            const I x = pair_words(rows[2 * t], rows[2 * t + 1], 2 * w, plan.row_bytes - 2 * w);
            I y = all(0);
            if (Extract::kHigh) y = pair_bytes(high[2 * t], high[2 * t + 1], w, words - w);
            I found[Extract::kSteps];
            each_step(extract, x, y, found);
            int32_t* out = s.lanes + (t * vectors + w / L * Extract::kSteps) * L;
            for (int i = 0; i < Extract::kSteps; ++i) store(out + i * L, found[i]);
        }
}

// The weights of a row times the scales, as pairs of words; returns their step, 0 if there are none.
inline float weigh(const Plan& plan, const float* weights, int n, const float* scale, int32_t* words) {
    float w[kTile];
    F most = all(0.0f), total = all(0.0f);
    for (int t = 0; t < n; t += L) {
        const F x = load(weights + t) * load(scale + t);
        store(w + t, x);
        most = max(most, abs(x));
        total = total + abs(x);
    }
    const float top = largest(most), whole = sum(total);
    if (!(top > 0)) return 0.0f;
    // Rounding adds at most a half to each word.
    const float room = float(plan.weights - kTile) / whole, span = 32767.0f / top, factor = room < span ? room : span;
    for (int t = 0; t < n; t += 2 * L) store(words + t / 2, pack_words(load(w + t) * all(factor), load(w + t + L) * all(factor)));
    return 1.0f / factor;
}

template <int R>
inline void mix_words(const Plan& plan, int pairs, const ValueScratch& s, float* const* sums) {
    constexpr int V = R == 1 ? 8 : 4;
    const int vectors = vectors_of(plan);
    F step[R];
    for (int r = 0; r < R; ++r) step[r] = all(s.steps[r] * plan.unit);
    for (int v = 0; v < vectors; v += V) {
        const int count = vectors - v < V ? vectors - v : V;
        I acc[R][V];
        for (int r = 0; r < R; ++r)
            for (int i = 0; i < V; ++i) acc[r][i] = all(0);
        if (count == V) {
            for (int t = 0; t < pairs; ++t) {
                const int32_t* lanes = s.lanes + (t * vectors + v) * L;
                I x[V];
                for (int i = 0; i < V; ++i) x[i] = load(static_cast<const void*>(lanes + i * L));
                for (int r = 0; r < R; ++r) {
                    const I word = all(s.words[r][t]);
                    for (int i = 0; i < V; ++i) acc[r][i] = dot2(acc[r][i], x[i], word);
                }
            }
        } else {
            for (int i = 0; i < count; ++i)
                for (int t = 0; t < pairs; ++t) {
                    const I x = load(static_cast<const void*>(s.lanes + (t * vectors + v + i) * L));
                    for (int r = 0; r < R; ++r) acc[r][i] = dot2(acc[r][i], x, all(s.words[r][t]));
                }
        }
        for (int r = 0; r < R; ++r)
            for (int i = 0; i < count; ++i) {
                float* out = sums[r] + (v + i) * L;
                store(out, fma(to_float(acc[r][i]), step[r], load(out)));
            }
    }
}

template <int R>
inline void mix_floats(int slots, int n, const ValueScratch& s, const float* const* weights, float* const* sums) {
    constexpr int V = R == 1 ? 8 : 4;
    for (int v = 0; v < slots; v += V * L) {
        const int count = (slots - v) / L < V ? (slots - v) / L : V;
        F acc[R][V];
        for (int r = 0; r < R; ++r)
            for (int i = 0; i < count; ++i) acc[r][i] = load(sums[r] + v + i * L);
        if (count == V) {
            for (int t = 0; t < n; ++t) {
                const float* row = s.floats + t * slots + v;
                F x[V];
                for (int i = 0; i < V; ++i) x[i] = load(row + i * L);
                for (int r = 0; r < R; ++r)
                    for (int i = 0; i < V; ++i) acc[r][i] = fma(x[i], all(weights[r][t]), acc[r][i]);
            }
        } else {
            for (int i = 0; i < count; ++i)
                for (int t = 0; t < n; ++t)
                    for (int r = 0; r < R; ++r) acc[r][i] = fma(load(s.floats + t * slots + v + i * L), all(weights[r][t]), acc[r][i]);
        }
        for (int r = 0; r < R; ++r)
            for (int i = 0; i < count; ++i) store(sums[r] + v + i * L, acc[r][i]);
    }
}

template <int R>
inline void mix_rows(const Plan& plan, int n, const float* const* weights, ValueScratch& s, float* const* sums, float* const* lows) {
    for (int r = 0; r < R; ++r) {
        s.steps[r] = weigh(plan, weights[r], kTile, s.scale, s.words[r]);
        if (!(s.steps[r] > 0)) std::memset(s.words[r], 0, sizeof s.words[r]);
        if (plan.minima) {
            F low = all(0.0f);
            for (int t = 0; t < kTile; t += L) low = fma(load(weights[r] + t), load(s.minimum + t), low);
            *lows[r] += sum(low);
        }
    }
    mix_words<R>(plan, (n + 1) / 2, s, sums);
}

// Adds the values of the tokens [from, from + n), n ≤ kTile, times weights[row][t] to the sums of rows [first, last). Weights beyond n
// are zero. `lows` get what the minima add to every channel.
template <class Row>
inline void mix_tile(const Plan& plan, const Head& head, int first, int last, int64_t from, int n, ValueScratch& s, const Row& row_of) {
    const Packed& p = *head.packed;
    const auto rows4 = [&](const auto& fn) {
        for (int r = first; r < last;) {
            const int count = last - r < 4 ? last - r : 4;
            const float* weights[4];
            float *sums[4], *lows[4];
            for (int i = 0; i < count; ++i) row_of(r + i, weights[i], sums[i], lows[i]);
            fn(count, weights, sums, lows);
            r += count;
        }
    };
    if (plan.mode == Mode::floats) {
        const int slots = slots_of(plan);
        for (int start = 0; start < n; start += kFloatTile) {
            const int count = n - start < kFloatTile ? n - start : kFloatTile;
            for (int t = 0; t < count; ++t) {
                decode_row(head, from + start + t, s.floats + t * slots);
                for (int d = plan.dim; d < slots; ++d) s.floats[t * slots + d] = 0.0f;
            }
            rows4([&](int rows, const float** weights, float** sums, float**) {
                for (int i = 0; i < rows; ++i) weights[i] += start;
                if (rows == 4) mix_floats<4>(slots, count, s, weights, sums);
                else if (rows == 3) mix_floats<3>(slots, count, s, weights, sums);
                else if (rows == 2) mix_floats<2>(slots, count, s, weights, sums);
                else mix_floats<1>(slots, count, s, weights, sums);
            });
        }
        return;
    }
    int64_t tokens[kTile];
    const uint8_t *rows[kTile], *high[kTile];
    const int even = (n + 1) / 2 * 2;
    for (int t = 0; t < even; ++t) tokens[t] = from + (t < n ? t : n - 1);
    rows_of(plan, head, tokens, even, s.codes, rows, high);
    for (int t = 0; t < n; ++t) __builtin_prefetch(rows[t] + kAhead * p.codes.unit);
    for (int t = 0; t < kTile; ++t) {
        s.scale[t] = t < n ? scale_of(head, from + t, 0) : 0.0f;
        if (plan.minima) s.minimum[t] = t < n ? number(head.minima + (from + t) * p.minima.unit, 0, p.format.minimum, p.format.scale_table) : 0.0f;
    }
    with_extract(plan, p.format, [&](const auto& extract) { unpack_values(plan, extract, rows, high, even / 2, s); });
    rows4([&](int count, const float** weights, float** sums, float** lows) {
        if (count == 4) mix_rows<4>(plan, n, weights, s, sums, lows);
        else if (count == 3) mix_rows<3>(plan, n, weights, s, sums, lows);
        else if (count == 2) mix_rows<2>(plan, n, weights, s, sums, lows);
        else mix_rows<1>(plan, n, weights, s, sums, lows);
    });
}

}  // namespace
}  // namespace tqb::TQB_VARIANT
