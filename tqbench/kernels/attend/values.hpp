// Σ_t w_t v_t over a tile for several rows at once, channels in lanes.
//
// Integer form: v_t = scale_t · unit · level_t + minimum_t, and w_t scale_t ≈ step · word_t per row, tile and group of channels, so
//
//     Σ_t w_t v_td = unit · step Σ_t word_t level_td  +  Σ_t w_t minimum_t
//
// with an inner sum that is exact in 32 bits, for step is so chosen that Σ_t |word_t| · |level| < 2^31. Fast form: the same with
// levels and words of 8 bits. Other formats: floats.hpp.
#pragma once

#include "attend/extract.hpp"
#include "attend/floats.hpp"

namespace tqb::TQB_VARIANT {
namespace {

struct ValueScratch {
    alignas(64) uint8_t codes[kTile * kMaxDim];
    alignas(64) float scale[kMaxGroups * kTile], minimum[kMaxGroups * kTile];
    alignas(64) int32_t words[4][kMaxGroups * kTile / 2 + L];  // [group][lane], or [lane][group] where a vector spans several groups
    alignas(64) float steps[4][kMaxGroups + L];
    alignas(64) int32_t starts[4][kMaxGroups + L];
    const uint8_t *rows[kTile], *high[kTile];
};

// How many floats a sum of values takes.
inline int slots_of(const Plan& plan) {
    return plan.mode == Mode::floats ? padded_dim(plan.dim) : (plan.items() + L - 1) / L * plan.steps * L;
}

// The weights of a row times the scales, as words or bytes in lanes; returns their step: 0 if there are none, NaN if one is not finite.
template <class Arithmetic>
inline float weigh(const Plan& plan, const float* weights, const float* scale, int32_t* words) {
    F x[kTile / L], most = all(0.0f), total = all(0.0f);
    for (int i = 0; i < kTile / L; ++i) {
        x[i] = load(weights + i * L) * load(scale + i * L);
        most = max(most, abs(x[i]));
        total = total + abs(x[i]);
    }
    const float top = largest(most), whole = sum(total);
    if (!(top > 0) || !(whole < __builtin_inff())) {  // the largest of some may be none of them that is NaN, their sum is NaN
        std::memset(words, 0, kTile / Arithmetic::kPer * sizeof(int32_t));
        return whole < __builtin_inff() ? 0.0f : __builtin_nanf("");
    }
    float factor = float(plan.limit) / top;
    if (Arithmetic::kForm == Form::words) {  // rounding adds at most a half to each word
        const float room = float(plan.room - kTile) / whole;
        factor = room < factor ? room : factor;
    }
    for (int i = 0; i < kTile / L; i += 2)
        Arithmetic::narrow(words + i * L / Arithmetic::kPer, x[i] * all(factor), x[i + 1] * all(factor));
    return 1.0f / factor;
}

// All rows' weights, per group, and what the minima add.
template <int R, class Arithmetic>
TQB_LOOP void weigh_rows(const Plan& plan, const float* const* weights, ValueScratch& s, float* const* lows) {
    constexpr int kLanes = kTile / Arithmetic::kPer;
    const bool spread = plan.group_items < L && plan.groups > 1;
    for (int r = 0; r < R; ++r)
        for (int g = 0; g < plan.groups; ++g) {
            alignas(64) int32_t words[kLanes];
            int32_t* out = spread ? words : s.words[r] + g * kLanes;
            s.steps[r][g] = plan.unit * weigh<Arithmetic>(plan, weights[r], s.scale + g * kTile, out);
            s.starts[r][g] = Arithmetic::start(out, kLanes);
            for (int t = 0; t < kLanes && spread; ++t) s.words[r][t * plan.groups + g] = words[t];
            if (!plan.minima) continue;
            F low = all(0.0f);
            for (int t = 0; t < kTile; t += L) low = fma(load(weights[r] + t), load(s.minimum + g * kTile + t), low);
            lows[r][g] += sum(low);
        }
}

// Levels First … First + V − 1 of each item, over all items. Spread: a vector spans several groups.
template <int R, int First, int V, bool Spread, class Extract>
TQB_LOOP void mix_steps(const Plan& plan, const Extract& extract, int lanes, const ValueScratch& s, float* const* sums) {
    constexpr int kPer = Extract::kPer, kItem = Extract::kItem;
    const I order = Spread ? group_lanes(plan.group_items) : all(0);
    const int items = plan.items();
    for (int item = 0; item < items; item += L) {
        const int group = plan.groups > 1 ? item / plan.group_items : 0, stride = Spread ? plan.groups : 1;
        const int first = Spread ? group : group * kTile / kPer;
        I acc[R][V];
        for (int r = 0; r < R; ++r) {
            I start = all(0);
            if (Extract::kForm == Form::bytes) start = Spread ? spread(s.starts[r] + group, order) : all(s.starts[r][group]);
            for (int i = 0; i < V; ++i) acc[r][i] = start;
        }
        for (int t = 0; t < lanes; ++t) {
            const I x = Extract::gather(s.rows + kPer * t, kItem * item, kItem * (items - item));
            I y = all(0);
            if (Extract::kHigh) y = Extract::gather_third(s.high + kPer * t, item, items - item);
            I levels[V];
            each_step<Extract, First, First + V>(extract, x, y, levels);
            for (int r = 0; r < R; ++r) {
                const int32_t* at = s.words[r] + first + t * stride;
                const I weight = Spread ? spread(at, order) : all(*at);
                for (int i = 0; i < V; ++i) acc[r][i] = Extract::dot(acc[r][i], levels[i], weight);
            }
        }
        for (int r = 0; r < R; ++r) {
            const F step = Spread ? spread(s.steps[r] + group, order) : all(s.steps[r][group]);
            for (int i = 0; i < V; ++i) {
                float* out = sums[r] + (item / L * Extract::kSteps + First + i) * L;
                store(out, fma(to_float(acc[r][i]), step, load(out)));
            }
        }
    }
}

template <int R, class Extract, int First = 0>
inline void mix_words(const Plan& plan, const Extract& extract, int lanes, const ValueScratch& s, float* const* sums) {
    constexpr int V = Extract::kSteps < 4 ? Extract::kSteps : 4;
    if (plan.groups > 1 && plan.group_items < L) mix_steps<R, First, V, true>(plan, extract, lanes, s, sums);
    else mix_steps<R, First, V, false>(plan, extract, lanes, s, sums);
    if constexpr (First + V < Extract::kSteps) mix_words<R, Extract, First + V>(plan, extract, lanes, s, sums);
}

template <int R, class Extract>
inline void mix_rows(const Plan& plan, const Extract& extract, const float* const* weights, int lanes, ValueScratch& s, float* const* sums,
                     float* const* lows) {
    weigh_rows<R, Extract>(plan, weights, s, lows);
    mix_words<R>(plan, extract, lanes, s, sums);
}

// Adds the values of the tokens [from, from + n), n ≤ kTile, times the weights of each row to its sums, for rows [first, last); or of
// those n after `from` that are picked. Weights beyond n are zero. The lows get what minima add to every channel. `row_of(r, weights, sums, low)` says where they are.
template <class Row>
inline void mix_tile(const Plan& plan, const Head& head, int first, int last, int64_t from, int n, const int* picked, ValueScratch& s,
                     FloatScratch& floats, const Row& row_of) {
    const Packed& p = *head.packed;
    const Format& f = p.format;
    const float* weights[4];
    float *sums[4], *lows[4];
    if (plan.mode == Mode::floats) {
        return with_floats(plan, head, last - first, from, n, picked, floats, [&](auto type, int start, int count, int64_t ahead) {
            in_groups<4>(first, last, [&](auto rows, int r) {
                for (int i = 0; i < rows.value; ++i) {
                    row_of(r + i, weights[i], sums[i], lows[i]);
                    weights[i] += start;
                }
                constexpr int R = rows.value, V = kSums / 4;
                const int64_t fetched = r == first ? ahead : 0;
                int d = 0;
                for (; d + V * L <= plan.dim; d += V * L) mix_floats<R, V, decltype(type)>(floats.rows, count, d, fetched, weights, sums);
                for (; d < plan.dim; d += L) mix_floats<R, 1, decltype(type)>(floats.rows, count, d, fetched, weights, sums);
            });
        });
    }
    const int lanes = (n + plan.per() - 1) / plan.per();
    rows_of(plan, head, from, n, lanes * plan.per(), picked, s.codes, s.rows, s.high);
    scales_of(head, plan, from, picked ? picked[n - 1] + 1 : n, kTile, s.scale, s.minimum);
    for (int g = 0; g < plan.groups && picked; ++g)
        for (int t = 0; t < n; ++t) {
            s.scale[g * kTile + t] = s.scale[g * kTile + picked[t]];
            s.minimum[g * kTile + t] = s.minimum[g * kTile + picked[t]];
        }
    for (int g = 0; g < plan.groups && n < kTile; ++g)
        for (int t = n; t < kTile; ++t) s.scale[g * kTile + t] = s.minimum[g * kTile + t] = 0.0f;
    with_extract(plan, f, [&](const auto& extract) {
        in_groups<4>(first, last, [&](auto rows, int r) {
            for (int i = 0; i < rows.value; ++i) row_of(r + i, weights[i], sums[i], lows[i]);
            mix_rows<rows.value>(plan, extract, weights, lanes, s, sums, lows);
        });
    });
}

}  // namespace
}  // namespace tqb::TQB_VARIANT
