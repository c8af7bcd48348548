// How a format is read by integer arithmetic: as words of packed codes, each of which gives several levels by shifting and looking up.
#pragma once

#include "attend/call.hpp"
#include "packed/rows.hpp"
#include "simd/bytes.hpp"

namespace tqb::TQB_VARIANT {
namespace {

constexpr int kMaxGroups = 32, kTile = 64;

// As many numbers as registers hold that hold `dim`.
inline int padded_dim(int dim) { return (dim + L - 1) / L * L; }

// How levels lie in lanes: two words each, or, in the fast form, four bytes. An item is what of a vector's codes goes to one of these.
enum class Form { words, bytes };
constexpr int per_lane(Form form) { return form == Form::bytes ? 4 : 2; }
constexpr int item_bytes(Form form) { return form == Form::bytes ? 1 : 2; }

// words: packed codes as they lie. bytes: one code per byte, expanded first where they lie otherwise. floats: decoded vectors.
enum class Mode { words, bytes, floats };

struct Plan {
    Mode mode;
    Form form;
    int ahead;    // tokens between what is computed and what is fetched from memory; 0: nothing is
    bool exact;   // sinks and tail: vectors that no basis has changed
    bool minima;
    int dim, group, groups;
    int steps;        // levels per item
    int row_bytes;    // of the items of a vector
    int group_items;  // items of a vector that share a scale
    int lanes;        // that the levels of a vector fill
    int run;          // lanes whose products are summed up in integers
    int limit;        // of the integers that levels are multiplied with
    int64_t room;     // what those of one sum may come to, so that it cannot overflow
    float unit;     // what a level of 1 is worth
    int center;     // taken off the codes of formats with minima, which get it back: small integers round less
    int16_t levels[32];
    ByteTable bytes;  // the same as bytes, level + 128
    uint8_t group_of[kMaxDim / 16 + 1];  // of each run
    int32_t flip;     // what turns bytes as they lie into level + 128

    int per() const { return per_lane(form); }
    int items() const { return row_bytes / item_bytes(form); }

    // The channel of level `s` of item `i`.
    int channel(const Format& f, int i, int s) const {
        if (mode != Mode::words || f.arrangement != kHalves) return i * steps + s;
        return form == Form::words ? i / 8 * 32 + i % 8 * 2 + s / 2 + (s % 2) * 16 : i / 16 * 32 + i % 16 + s * 16;
    }
};

// Items of so many bits that a group of channels fills, or 0 if groups do not end with items.
inline int items_in(int group, int bits, int item) { return group * bits % item ? 0 : group * bits / item; }

// Whether a vector of L items lies in one group, or holds whole groups.
inline bool lanes_fit(int items) { return items > 0 && (items % L == 0 || L % items == 0); }

// Levels as bytes, level + 128, in the unit in which they are rounded least; returns how many of the old unit that is.
inline float round_levels(const int16_t* levels, int count, int most, ByteTable& table) {
    int best = 127;
    float least = -1;
    for (int top = 127; top > 63 && least != 0; --top) {
        float wrong = 0;
        for (int i = 0; i < count; ++i) {
            const float x = float(levels[i]) * float(top) / float(most), off = (x - __builtin_rintf(x)) / float(top);
            wrong += off * off;
        }
        if (least < 0 || wrong < least) least = wrong, best = top;
    }
    for (int i = 0; i < 64; ++i)
        table.levels[i] = uint8_t(128 + int(__builtin_rintf(float(levels[i % count]) * float(best) / float(most))));
    return float(most) / float(best);
}

inline Plan plan_of(const Format& f, bool keys, const AttendCall& call, bool exact) {
    const bool fast = call.fast && !exact;
    Plan p{};
    p.exact = exact;
    p.dim = f.dim;
    p.form = fast ? Form::bytes : Form::words;
    p.ahead = int(call.ahead);
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
    if (fast && (f.normalized || (byte && f.bits == 8 && !f.flip && !p.minima))) return p;
    const int per = p.per(), item = 8 * item_bytes(p.form), steps = item / (words ? word_bits : 8);
    p.group_items = items_in(f.group, words ? word_bits : 8, item);
    if (f.dim % 4 || (!keys && (f.normalized || (p.groups > 1 && !lanes_fit(p.group_items))))) return p;
    // Runs of 16 channels, or 32 where a query is rounded to bytes anyway, unless codes or groups ask for others.
    int run = (fast && (p.groups == 1 || f.group % 32 == 0) ? 32 : 16) / per;
    run = steps > run ? steps : run;
    if (p.groups > 1 && f.group % (per * run)) return p;
    p.steps = steps;
    p.mode = words ? Mode::words : Mode::bytes;
    p.row_bytes = words ? f.dim * word_bits / 8 : f.dim;
    p.lanes = f.dim / per;
    p.run = run;
    for (int i = 0; p.groups > 1 && i * per * run < f.dim; ++i) p.group_of[i] = uint8_t(i * per * run / f.group);
    const int count = 1 << (f.bits < 5 ? f.bits : 5);
    for (int i = 0; i < 32 && table; ++i) p.levels[i] = f.levels[i % count];  // whatever the upper bits of an index are
    if (p.minima && f.value == kLinear && !f.flip && !f.bias && (table || f.bits == 8)) p.center = table ? count / 2 : 128;
    int most = byte ? (f.flip || p.center ? 128 : 255) : 1;
    for (int i = 0; i < 32 && table; ++i) {
        p.levels[i] = int16_t(p.levels[i] - p.center);
        most = p.levels[i] > most ? p.levels[i] : -p.levels[i] > most ? -p.levels[i] : most;
    }
    p.unit = byte || f.normalized ? 1.0f : f.level_unit;
    if (fast) {
        if (table) p.unit *= round_levels(p.levels, count, most, p.bytes);
        p.flip = p.center ? 0 : int32_t(0x80808080);
        p.limit = kMostByte;
        return p;
    }
    p.limit = 32767;
    p.room = INT64_C(2147483647) / most;
    return p;
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

// Scales or minima of n tokens, groups first: out[group * stride + token].
inline void turned(const uint8_t* data, const Array& array, int32_t type, const float* table, int64_t from, int n, int groups, float factor,
                   int stride, float* out) {
    float found[kMaxGroups * 64];
    numbers_of(data, array, type, table, from, n, groups, found);
    for (int t = 0; t < n && groups == 1; ++t) out[t] = found[t] * factor;
    if (groups == 1) return;
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

// Into the second cache: the first one has too few places for what is on its way.
inline void fetch(const uint8_t* p, int bytes) {
    for (int i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 0, 2);
}

// Where the codes of the n tokens from `from` on lie, or of those n after it that are picked, and those of the last one again up to
// `count`; expanded into `codes` where they do not lie as they are read. `high` are third bits. What comes later is fetched meanwhile.
inline void rows_of(const Plan& plan, const Head& head, int64_t from, int n, int count, const int* picked, uint8_t* codes,
                    const uint8_t** rows, const uint8_t** high) {
    const Packed& p = *head.packed;
    const Format& f = p.format;
    const bool expand = plan.mode == Mode::bytes && f.bits != 8;
    const int64_t ahead = plan.ahead * p.codes.unit;
    for (int t = 0; t < n; ++t) {
        const int64_t token = from + (picked ? picked[t] : t);
        const uint8_t* row = head.codes + token * p.codes.unit;
        if (ahead) fetch(row + ahead, plan.row_bytes);
        rows[t] = expand ? codes + t * f.dim : row;
        if (expand) codes_of(head, token, codes + t * f.dim);
        if (f.arrangement == kSplit) high[t] = head.high + token * p.high.unit;
    }
    for (int t = n; t < count; ++t) {
        rows[t] = rows[n - 1];
        high[t] = high[n - 1];
    }
}

}  // namespace
}  // namespace tqb::TQB_VARIANT
