// Scores of a strip of L tokens: Σ_d q_d k_d for several rows (query heads) at once, tokens in lanes.
//
// Integer form: k_d = scale_g · unit · level_d with levels of 16 bits or less, and q_d ≈ step_f · word_d per run of 16 channels, so
//
//     q · k = Σ_g scale_g Σ_{f in g} unit · step_f Σ_{d in f} word_d level_d  +  Σ_g minimum_g Σ_{d in g} q_d
//
// The innermost sum is exact in 32 bits. Where one channel of a query is far above the others, what rounding left over of q is multiplied as well,
// as words of their own. Fast form: the same with levels and words of 8 bits, and runs of 32. Formats without such levels: floats.hpp.
#pragma once

#include "attend/extract.hpp"
#include "attend/query.hpp"

namespace tqb::TQB_VARIANT {
namespace {

struct KeyScratch {
    alignas(64) uint8_t codes[L * kMaxDim];
    alignas(64) float scale[kMaxGroups * L], minimum[kMaxGroups * L];
    const uint8_t *rows[L], *high[L];
};

// Calls fn(lane, levels) for all lanes of levels of the strip, and flush(run) after each run of them.
template <class Extract, class Fn, class Flush>
inline void walk(const Plan& plan, const Extract& extract, const KeyScratch& s, const Fn& fn, const Flush& flush) {
    constexpr int kSteps = Extract::kSteps;
    int lane = 0, left = plan.run, run = 0;
    for (int at = 0; at < plan.row_bytes; at += 4 * COLUMNS) {
        I x[COLUMNS], bits[COLUMNS];  // filled by columns() as far as they are read: to clear them first takes longer than that
        columns(s.rows, at, plan.row_bytes - at, x);
        if (Extract::kHigh) columns(s.high, at / 2, (plan.row_bytes - at) / 2, bits);  // a byte of third bits for two of codes
        const int count = plan.row_bytes - at < 4 * COLUMNS ? (plan.row_bytes - at) / 4 : COLUMNS;
        for (int j = 0; j < count; ++j) {
            I levels[kSteps], y = all(0);
            if (Extract::kHigh) y = Extract::third(bits[j / 2], j % 2);
            each_step(extract, x[j], y, levels);
            for (int i = 0; i < kSteps; ++i) fn(lane + i, levels[i]);
            lane += kSteps;
            if ((left -= kSteps) <= 0) {
                flush(run++);
                left = plan.run;
            }
        }
    }
    if (left < plan.run) flush(run);
}

// Formats whose scale names the length of a group: divide by that of its levels.
template <class Extract>
TQB_LOOP void normalize(const Plan& plan, const Extract& extract, KeyScratch& s) {
    F squares[kMaxGroups];
    for (int g = 0; g < plan.groups; ++g) squares[g] = all(0.0f);
    I acc = all(0);
    walk(
        plan, extract, s, [&](int, I levels) { acc = dot2(acc, levels, levels); },
        [&](int run) {
            F& sum = squares[plan.group_of[run]];
            sum = sum + to_float(acc);
            acc = all(0);
        });
    for (int g = 0; g < plan.groups; ++g) {
        float length[L];
        store(length, squares[g]);
        for (int t = 0; t < L; ++t) s.scale[g * L + t] = length[t] > 0 ? s.scale[g * L + t] / __builtin_sqrtf(length[t]) : 0.0f;
    }
}

// Scores, or what is to be added to them: then of words that are left over, and minima and offset are there already.
template <int R, class Extract>
TQB_LOOP void dot_words(const Plan& plan, const Extract& extract, const QueryRows& q, int row, const KeyScratch& s, float* scores, int stride,
                        bool add) {
    constexpr bool kStarts = Extract::kForm == Form::bytes;
    const int32_t *words[R], *starts[R];
    const float* steps[R];
    F total[R];
    I acc[R];
    for (int r = 0; r < R; ++r) {
        words[r] = q.words(row + r);
        starts[r] = q.starts(row + r);
        steps[r] = q.steps(row + r);
        total[r] = all(0.0f);
        acc[r] = all(kStarts ? starts[r][0] : 0);
    }
    const bool grouped = plan.groups > 1;
    walk(
        plan, extract, s,
        [&](int lane, I levels) {
            for (int r = 0; r < R; ++r) acc[r] = Extract::dot(acc[r], levels, all(words[r][lane]));
        },
        [&](int run) {
            const F scale = grouped ? load(s.scale + plan.group_of[run] * L) : all(1.0f);
            for (int r = 0; r < R; ++r) {
                total[r] = fma(to_float(acc[r]) * all(steps[r][run]), scale, total[r]);
                acc[r] = all(kStarts ? starts[r][run + 1] : 0);
            }
        });
    for (int r = 0; r < R; ++r) {
        F x = grouped ? total[r] : total[r] * load(s.scale);
        if (add) {
            store(scores + r * stride, load(scores + r * stride) + x);
            continue;
        }
        if (plan.minima)
            for (int g = 0; g < plan.groups; ++g) x = fma(all(q.sums(row + r)[g]), load(s.minimum + g * L), x);
        store(scores + r * stride, x + all(q.offset(row + r)));
    }
}

// Scores of rows [first, last) with the tokens [from, from + n) of a source, n ≤ L: what lies beyond n is not to be read.
inline void score_strip(const Plan& plan, const Head& head, const QueryRows& q, int first, int last, int64_t from, int n, KeyScratch& s,
                        float* scores, int stride) {
    const Packed& p = *head.packed;
    rows_of(plan, head, from, n, L, nullptr, s.codes, s.rows, s.high);
    scales_of(head, plan, from, n, L, s.scale, s.minimum);
    with_extract(plan, p.format, [&](const auto& extract) {
        if (extract.kForm == Form::words && p.format.normalized) normalize(plan, extract, s);  // others have no fast form
        in_groups<8>(first, last, [&](auto rows, int r) {
            dot_words<rows.value>(plan, extract, q, r, s, scores + r * stride, stride, false);
            float coarse = 0;
            for (int i = 0; i < rows.value; ++i) coarse += q.coarse(r + i);
            if (coarse > 0) dot_words<rows.value>(plan, extract, q.rest(), r, s, scores + r * stride, stride, true);
        });
    });
}

}  // namespace
}  // namespace tqb::TQB_VARIANT
