// Scores of a strip of 2 L tokens: Σ_d q_d k_d for several rows (query heads) at once, tokens in lanes.
//
// Integer form: k_d = scale_g · unit · level_d with levels of 14 bits or less, and q_d ≈ step_f · word_d per run of 32 channels, so
//
//     q · k = Σ_g scale_g Σ_{f in g} unit · step_f Σ_{d in f} word_d level_d  +  Σ_g minimum_g Σ_{d in g} q_d
//
// The innermost sum is exact in 32 bits. Float form: for formats without such levels.
#pragma once

#include "attend/call.hpp"
#include "attend/plan.hpp"
#include "packed/rows.hpp"

namespace tqb::TQB_VARIANT {
namespace {

constexpr int kStrip = 2 * L;

struct KeyScratch {
    alignas(64) int32_t lanes[2 * kMaxDim * L];  // [block][pair or channel][L]
    alignas(64) uint8_t codes[kStrip * kMaxDim];
    alignas(64) uint8_t wide[kStrip * kMaxDim / 4];
    alignas(64) float floats[kStrip * kMaxDim];
    alignas(64) float scale[kMaxGroups * kStrip], minimum[kMaxGroups * kStrip];
};

// Scales and minima of the strip, groups first.
inline void scales_of_strip(const Head& head, const int64_t* tokens, KeyScratch& s) {
    const Packed& p = *head.packed;
    const Format& f = p.format;
    const int groups = (f.dim + f.group - 1) / f.group;
    for (int t = 0; t < kStrip; ++t)
        for (int g = 0; g < groups; ++g) s.scale[g * kStrip + t] = scale_of(head, tokens[t], g);
    if (f.minimum == kNone) return;
    for (int t = 0; t < kStrip; ++t)
        for (int g = 0; g < groups; ++g)
            s.minimum[g * kStrip + t] = number(head.minima + tokens[t] * p.minima.unit, g, f.minimum, f.scale_table);
}

// Bytes as words, so that they lie as the words do that they belong to.
inline void widen(int bytes, const uint8_t** rows, uint8_t* wide) {
    for (int t = 0; t < kStrip; ++t) {
        auto* out = reinterpret_cast<uint16_t*>(wide + t * kMaxDim / 4);
        for (int i = 0; i < bytes; ++i) out[i] = rows[t][i];
        rows[t] = reinterpret_cast<const uint8_t*>(out);
    }
}

// Levels of the strip as pairs of words, lanes tokens: lanes[block][pair][L].
template <class Extract>
inline void unpack_keys(const Plan& plan, const Extract& extract, const uint8_t* const* rows, const uint8_t* const* high, KeyScratch& s) {
    const int bytes = plan.row_bytes;
    for (int block = 0; block < 2; ++block)
        for (int c = 0; 4 * COLUMNS * c < bytes; ++c) {
            I x[COLUMNS] = {}, y[COLUMNS] = {};
            const int left = bytes - 4 * COLUMNS * c;
            columns(rows + block * L, 4 * COLUMNS * c, left, x);
            if (Extract::kHigh) columns(high + block * L, 4 * COLUMNS * c, left, y);
            int32_t* out = s.lanes + (block * plan.pairs + c * COLUMNS * Extract::kSteps) * L;
            for (int j = 0; j < COLUMNS && 4 * j < left; ++j) {
                I words[Extract::kSteps];
                each_step(extract, x[j], y[j], words);
                for (int i = 0; i < Extract::kSteps; ++i) store(out + (j * Extract::kSteps + i) * L, words[i]);
            }
        }
}

// Formats whose scale names the length of a group: divide by that of its levels.
inline void normalize(const Plan& plan, KeyScratch& s) {
    for (int block = 0; block < 2; ++block)
        for (int g = 0; g < plan.groups; ++g) {
            F squares = all(0.0f);
            const int end = g + 1 == plan.groups ? plan.pairs : (g + 1) * plan.pairs / plan.groups;
            for (int p = g * plan.pairs / plan.groups; p < end; ++p) {
                const I k = load(static_cast<const void*>(s.lanes + (block * plan.pairs + p) * L));
                squares = squares + to_float(dot2(all(0), k, k));
            }
            float length[L];
            store(length, squares);
            float* scale = s.scale + g * kStrip + block * L;
            for (int t = 0; t < L; ++t) scale[t] = length[t] > 0 ? scale[t] / __builtin_sqrtf(length[t]) : 0.0f;
        }
}

template <int R>
inline void dot_words(const Plan& plan, const QueryRows& q, int row, const KeyScratch& s, float* scores, int stride) {
    F total[R][2];
    for (int r = 0; r < R; ++r) total[r][0] = total[r][1] = all(0.0f);
    const int32_t* words[R];
    const float* steps[R];
    for (int r = 0; r < R; ++r) {
        words[r] = q.words(row + r);
        steps[r] = q.steps(row + r);
    }
    const bool grouped = plan.groups > 1;
    for (int f = 0, p = 0; p < plan.pairs; ++f) {
        const int end = p + plan.run < plan.pairs ? p + plan.run : plan.pairs;
        I acc[R][2];
        for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = all(0);
        for (; p < end; ++p) {
            const I a = load(static_cast<const void*>(s.lanes + p * L));
            const I b = load(static_cast<const void*>(s.lanes + (plan.pairs + p) * L));
            for (int r = 0; r < R; ++r) {
                const I word = all(words[r][p]);
                acc[r][0] = dot2(acc[r][0], a, word);
                acc[r][1] = dot2(acc[r][1], b, word);
            }
        }
        const float* scale = s.scale + (grouped ? f * 2 * plan.run / plan.group : 0) * kStrip;
        for (int r = 0; r < R; ++r)
            for (int k = 0; k < 2; ++k) {
                const F part = to_float(acc[r][k]) * all(steps[r][f]);
                total[r][k] = grouped ? fma(part, load(scale + k * L), total[r][k]) : total[r][k] + part;
            }
    }
    for (int r = 0; r < R; ++r)
        for (int k = 0; k < 2; ++k) {
            F x = grouped ? total[r][k] : total[r][k] * load(s.scale + k * L);
            if (plan.minima)
                for (int g = 0; g < plan.groups; ++g) x = fma(all(q.sums(row + r)[g]), load(s.minimum + g * kStrip + k * L), x);
            store(scores + r * stride + k * L, x + all(q.offset(row + r)));
        }
}

template <int R>
inline void dot_floats(int dim, const float* const* queries, const float* offsets, const KeyScratch& s, float* scores, int stride) {
    F acc[R][2];
    for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = all(offsets[r]);
    const auto* keys = reinterpret_cast<const float*>(s.lanes);
    for (int d = 0; d < dim; ++d) {
        const F a = load(keys + d * L), b = load(keys + (dim + d) * L);
        for (int r = 0; r < R; ++r) {
            const F x = all(queries[r][d]);
            acc[r][0] = fma(a, x, acc[r][0]);
            acc[r][1] = fma(b, x, acc[r][1]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int k = 0; k < 2; ++k) store(scores + r * stride + k * L, acc[r][k]);
}

// Vectors of the strip as floats, lanes tokens: lanes[block][channel][L].
inline void unpack_float_keys(const Head& head, int dim, const int64_t* tokens, KeyScratch& s) {
    const uint8_t* rows[kStrip];
    for (int t = 0; t < kStrip; ++t) {
        const bool repeated = t && tokens[t] == tokens[t - 1];
        if (!repeated) decode_row(head, tokens[t], s.floats + t * dim);
        rows[t] = repeated ? rows[t - 1] : reinterpret_cast<const uint8_t*>(s.floats + t * dim);
    }
    for (int block = 0; block < 2; ++block)
        for (int c = 0; COLUMNS * c < dim; ++c) {
            I x[COLUMNS] = {};
            columns(rows + block * L, 4 * COLUMNS * c, 4 * (dim - COLUMNS * c), x);
            for (int j = 0; j < COLUMNS && COLUMNS * c + j < dim; ++j) store(s.lanes + (block * dim + c * COLUMNS + j) * L, x[j]);
        }
}

// Scores of rows [first, last) with the tokens [from, from + n) of a source, n ≤ kStrip: what lies beyond n is not to be read.
inline void score_strip(const Plan& plan, const Head& head, const QueryRows& q, int first, int last, int64_t from, int n, KeyScratch& s,
                        float* scores, int stride) {
    int64_t tokens[kStrip];
    for (int t = 0; t < kStrip; ++t) tokens[t] = from + (t < n ? t : n - 1);  // beyond the end the last one again
    const Packed& p = *head.packed;
    if (plan.mode == Mode::floats) {
        unpack_float_keys(head, plan.dim, tokens, s);
        for (int r = first; r < last;) {
            const int count = last - r < 4 ? last - r : 4;
            const float* queries[4];
            float offsets[4];
            for (int i = 0; i < count; ++i) {
                queries[i] = plan.exact ? q.exact(r + i) : q.packed(r + i);
                offsets[i] = plan.exact ? 0.0f : q.offset(r + i);
            }
            float* out = scores + r * stride;
            if (count == 4) dot_floats<4>(plan.dim, queries, offsets, s, out, stride);
            else if (count == 3) dot_floats<3>(plan.dim, queries, offsets, s, out, stride);
            else if (count == 2) dot_floats<2>(plan.dim, queries, offsets, s, out, stride);
            else dot_floats<1>(plan.dim, queries, offsets, s, out, stride);
            r += count;
        }
        return;
    }
    const uint8_t *rows[kStrip], *high[kStrip];
    rows_of(plan, head, tokens, kStrip, s.codes, rows, high);
    if (p.format.arrangement == kSplit && plan.mode == Mode::words) widen(plan.dim / 8, high, s.wide);
    for (int t = 0; t < n; t += 1) __builtin_prefetch(rows[t] + kAhead * p.codes.unit);
    scales_of_strip(head, tokens, s);
    with_extract(plan, p.format, [&](const auto& extract) { unpack_keys(plan, extract, rows, high, s); });
    if (p.format.normalized) normalize(plan, s);
    for (int r = first; r < last;) {
        const int count = last - r < 4 ? last - r : 4;
        float* out = scores + r * stride;
        if (count == 4) dot_words<4>(plan, q, r, s, out, stride);
        else if (count == 3) dot_words<3>(plan, q, r, s, out, stride);
        else if (count == 2) dot_words<2>(plan, q, r, s, out, stride);
        else dot_words<1>(plan, q, r, s, out, stride);
        r += count;
    }
}

}  // namespace
}  // namespace tqb::TQB_VARIANT
