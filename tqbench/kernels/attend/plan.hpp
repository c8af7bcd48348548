// How a format is read by integer arithmetic: as words of packed codes, each of which gives several levels by shifting and looking up.
#pragma once

#include "attend/call.hpp"
#include "packed/rows.hpp"

namespace tqb::TQB_VARIANT {
namespace {

constexpr int kMaxGroups = 32, kAhead = 128;  // tokens between what is computed and what is fetched from memory

// words: packed codes as they lie. bytes: one code per byte, expanded first where they lie otherwise. floats: decoded vectors.
enum class Mode { words, bytes, floats };

struct Plan {
    Mode mode;
    bool exact;   // sinks and tail: vectors that no basis has changed
    bool minima;
    int dim, group, groups;
    int steps;      // levels per word
    int row_bytes;  // of the words of a vector
    int group_words;  // words of a vector that share a scale
    int pairs;      // of levels
    int run;        // pairs whose products are summed up in integers
    int64_t weights;  // what the integers that levels are multiplied with may sum up to, so that the products cannot overflow
    float unit;     // what a level of 1 is worth
    int center;     // taken off the codes of formats with minima, which get it back: small integers round less
    int16_t levels[32];

    int group_of(int of_run) const { return groups > 1 ? of_run * 2 * run / group : 0; }

    // The channel of level `s` of word `w`.
    int channel(const Format& f, int w, int s) const {
        if (mode == Mode::words && f.arrangement == kHalves) return w / 8 * 32 + w % 8 * 2 + s / 2 + (s % 2) * 16;
        return w * steps + s;
    }
};

// Words that a group of channels fills, or 0 if groups do not end with words.
inline int words_in(int group, int bits) { return group * bits % 16 ? 0 : group * bits / 16; }

// Whether a vector of L words lies in one group, or holds whole groups.
inline bool lanes_fit(int words) { return words > 0 && (words % L == 0 || L % words == 0); }

inline Plan plan_of(const Format& f, bool keys) {
    Plan p{};
    p.dim = f.dim;
    p.mode = Mode::floats;
    p.minima = f.minimum != kNone;
    p.group = f.group;
    p.groups = f.group ? (f.dim + f.group - 1) / f.group : 1;
    if (f.arrangement == kFloats || f.unit > 1 || f.value > kLinear || p.groups > kMaxGroups) return p;
    const bool table = f.bits <= 5, byte = f.value == kLinear && f.bits >= 6 && ((f.flip == 128 && f.bias == -128) || (!f.flip && !f.bias));
    if (!table && !byte) return p;
    const bool nibbles = f.arrangement == kHalves || (f.arrangement == kStream && (f.bits == 1 || f.bits == 2 || f.bits == 4));
    const int word_bits = f.arrangement == kSplit ? 2 : f.bits;
    const bool words = (nibbles || f.arrangement == kSplit) && f.dim * word_bits % 32 == 0 && (f.arrangement != kSplit || f.dim % 32 == 0);
    const int steps = words ? 16 / word_bits : 2;
    p.group_words = words_in(f.group, words ? word_bits : 8);
    if (f.dim % 4 || (!keys && (f.normalized || (p.groups > 1 && !lanes_fit(p.group_words))))) return p;
    const int run = steps > 8 ? steps : 8;
    if (p.groups > 1 && f.group % (2 * run)) return p;
    p.steps = steps;
    p.mode = words ? Mode::words : Mode::bytes;
    p.row_bytes = words ? f.dim * word_bits / 8 : f.dim;
    p.pairs = f.dim / 2;
    p.run = run;
    const int count = 1 << (f.bits < 5 ? f.bits : 5);
    for (int i = 0; i < 32 && table; ++i) p.levels[i] = f.levels[i % count];  // whatever the upper bits of an index are
    if (p.minima && f.value == kLinear && !f.flip && !f.bias && (table || f.bits == 8)) p.center = table ? count / 2 : 128;
    int most = byte ? (f.flip || p.center ? 128 : 255) : 1;
    for (int i = 0; i < 32 && table; ++i) {
        p.levels[i] = int16_t(p.levels[i] - p.center);
        most = p.levels[i] > most ? p.levels[i] : -p.levels[i] > most ? -p.levels[i] : most;
    }
    p.weights = INT64_C(2147483647) / most;
    p.unit = byte || f.normalized ? 1.0f : f.level_unit;
    return p;
}

// What is prepared of each row (one query head of one query) before any key is read.
struct QueryRows {
    float* base;
    int64_t stride, at_packed, at_words, at_steps, at_sums, at_offset;  // in floats

    QueryRows(float* memory, int64_t head_dim, const Plan& plan) : base(memory) {
        at_packed = head_dim;
        at_words = at_packed + plan.dim;
        at_steps = at_words + plan.dim / 2;
        at_sums = at_steps + plan.dim / 16 + 1;
        at_offset = at_sums + plan.groups;
        stride = at_offset + 1;
    }
    QueryRows from(int64_t row) const {
        QueryRows rows = *this;
        rows.base += row * stride;
        return rows;
    }
    float* exact(int64_t r) const { return base + r * stride; }
    float* packed(int64_t r) const { return base + r * stride + at_packed; }
    int32_t* words(int64_t r) const { return reinterpret_cast<int32_t*>(base + r * stride + at_words); }
    float* steps(int64_t r) const { return base + r * stride + at_steps; }
    float* sums(int64_t r) const { return base + r * stride + at_sums; }
    float& offset(int64_t r) const { return base[r * stride + at_offset]; }
};

// What a word gives at each step.
template <int Bits>
struct Packed16 {
    static constexpr int kSteps = 16 / Bits;
    static constexpr bool kHigh = false;
    Table table;
    template <int S>
    I get(I x, I) const {
        return lookup16(table, right16<Bits * S>(x));
    }
};
struct Split16 {
    static constexpr int kSteps = 8;
    static constexpr bool kHigh = true;
    Table table;
    I low = all16(3);
    template <int S>
    I get(I x, I y) const {
        if constexpr (S < 2) return lookup16(table, choose(low, right16<2 * S>(x), left16<2 - S>(y)));
        else return lookup16(table, choose(low, right16<2 * S>(x), right16<S - 2>(y)));
    }
};
struct Looked8 {
    static constexpr int kSteps = 2;
    static constexpr bool kHigh = false;
    Table table;
    template <int S>
    I get(I x, I) const {
        return lookup(table, right16<8 * S>(x));
    }
};
struct Signed8 {
    static constexpr int kSteps = 2;
    static constexpr bool kHigh = false;
    template <int S>
    I get(I x, I) const {
        return S ? signed_high8(x) : signed_low8(x);
    }
};
struct Centered8 {  // an unsigned byte less 128
    static constexpr int kSteps = 2;
    static constexpr bool kHigh = false;
    I flip = all16(int16_t(0x8080));
    template <int S>
    I get(I x, I) const {
        return S ? signed_high8(x ^ flip) : signed_low8(x ^ flip);
    }
};
struct Unsigned8 {
    static constexpr int kSteps = 2;
    static constexpr bool kHigh = false;
    template <int S>
    I get(I x, I) const {
        return S ? right16<8>(x) : low8(x);
    }
};

template <class Extract, int S = 0, int End = Extract::kSteps>
inline void each_step(const Extract& extract, I x, I y, I* out) {
    *out = extract.template get<S>(x, y);
    if constexpr (S + 1 < End) each_step<Extract, S + 1, End>(extract, x, y, out + 1);
}

// Calls fn(count, row) for rows [first, last) in groups of at most Most, the count known to the compiler.
template <int N>
struct Count {
    static constexpr int value = N;
};
template <int Most, class Fn>
inline void in_groups(int first, int last, const Fn& fn) {
    for (int r = first; r < last;) {
        const int left = last - r;
        if (Most >= 8 && left >= 8) {
            if constexpr (Most >= 8) fn(Count<8>{}, r);
            r += 8;
        } else if (left >= 4) {
            fn(Count<4>{}, r);
            r += 4;
        } else {
            if (left == 3) fn(Count<3>{}, r);
            else if (left == 2) fn(Count<2>{}, r);
            else fn(Count<1>{}, r);
            r = last;
        }
    }
}

template <class Fn>
inline void with_extract(const Plan& plan, const Format& f, const Fn& fn) {
    const Table table(plan.levels);
    if (plan.mode == Mode::words) {
        if (f.arrangement == kSplit) fn(Split16{table});
        else if (f.bits == 4) fn(Packed16<4>{table});
        else if (f.bits == 2) fn(Packed16<2>{table});
        else fn(Packed16<1>{table});
    } else if (f.bits <= 5) {
        fn(Looked8{table});
    } else if (f.flip) {
        fn(Signed8{});
    } else if (plan.center) {
        fn(Centered8{});
    } else {
        fn(Unsigned8{});
    }
}

// Scales or minima of n tokens, groups first: out[group * stride + token].
inline void turned(const uint8_t* data, const Array& array, int32_t type, const float* table, int64_t from, int n, int groups, float factor,
                   int stride, float* out) {
    float found[kMaxGroups * 64];
    numbers_of(data, array, type, table, from, n, groups, found);
    for (int g = 0; g < groups; ++g)
        for (int t = 0; t < n; ++t) out[g * stride + t] = found[t * groups + g] * factor;
}
inline void scales_of(const Head& head, const Plan& plan, int64_t from, int n, int stride, float* scale, float* minimum) {
    const Packed& p = *head.packed;
    const int groups = plan.groups;
    const Format& f = p.format;
    if (f.scale != kNone) turned(head.scales, p.scales, f.scale, f.scale_table, from, n, groups, head.factor, stride, scale);
    else
        for (int i = 0; i < groups * stride; ++i) scale[i] = head.factor;
    if (f.minimum != kNone) turned(head.minima, p.minima, f.minimum, f.scale_table, from, n, groups, 1.0f, stride, minimum);
    for (int g = 0; g < groups && plan.center; ++g)
        for (int t = 0; t < n; ++t) minimum[g * stride + t] += float(plan.center) * scale[g * stride + t];
}

// Where the words of the n tokens from `from` on lie, and those of the last one again up to `count`; expanded into `codes` where they do
// not lie as they are read. `high` are third bits, a byte of them for each word. What comes later is fetched meanwhile.
inline void rows_of(const Plan& plan, const Head& head, int64_t from, int n, int count, uint8_t* codes, const uint8_t** rows,
                    const uint8_t** high) {
    const Packed& p = *head.packed;
    const Format& f = p.format;
    const bool expand = plan.mode == Mode::bytes && f.bits != 8;
    const uint8_t* row = head.codes + from * p.codes.unit;
    for (int t = 0; t < n; ++t, row += p.codes.unit) {
        for (int at = 0; at < plan.row_bytes; at += 64) __builtin_prefetch(row + kAhead * p.codes.unit + at);
        rows[t] = expand ? codes + t * f.dim : row;
        if (expand) codes_of(head, from + t, codes + t * f.dim);
    }
    if (f.arrangement == kSplit)
        for (int t = 0; t < n; ++t) high[t] = head.high + (from + t) * p.high.unit;
    for (int t = n; t < count; ++t) {
        rows[t] = rows[n - 1];
        high[t] = high[n - 1];
    }
}

}  // namespace
}  // namespace tqb::TQB_VARIANT
