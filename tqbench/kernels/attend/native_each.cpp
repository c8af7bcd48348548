// Attention of some queries over one head's keys and values, packed or exact, tile by tile with an online softmax:
//
//     m' = max(m, max_t s_t),  l' = l e^{m − m'} + Σ_t e^{s_t − m'},  o' = o e^{m − m'} + Σ_t e^{s_t − m'} v_t
//
// Keys and values of a tile are unpacked once for all rows (query heads that share them, and queries). What is packed is summed up apart
// from what is exact, for it lies in the rotated basis. Tasks are (head, block of rows, stretch of tokens); their sums are merged at the end.
#include "attend/keys.hpp"
#include "attend/values.hpp"
#include "simd/dispatch.hpp"

#include <cmath>
#include <cstdlib>

namespace tqb::TQB_VARIANT {
namespace {

constexpr int64_t kAlone = 1 << 19;  // products that one thread does before another one has woken up
constexpr int kRowBlock = 64, kStride = kTile + kFloatTile;  // a strip may start late in a tile, and is written whole

struct Sides {  // plans of what is exact and what is packed
    Plan exact, packed;
};

struct Task {
    const AttendCall& call;
    const Sides &k, &v;
    const Packed &k_sinks, &k_tail, &v_sinks, &v_tail;
    int64_t sharing;
};

// The sums of one row: largest score, Σ weights, Σ weights of packed values, Σ dropped weights, what minima of packed values add per
// group, Σ packed values, Σ exact values.
struct Sums {
    static constexpr int kFirst = 4;
    float* base;
    int64_t groups, packed_slots, exact_slots;
    int64_t stride() const { return kFirst + groups + packed_slots + exact_slots; }
    float* row(int64_t r) const { return base + r * stride(); }
    float* lows(int64_t r) const { return row(r) + kFirst; }
    float* packed(int64_t r) const { return row(r) + kFirst + groups; }
    float* exact(int64_t r) const { return row(r) + kFirst + groups + packed_slots; }
};

struct Scratch {
    KeyScratch keys;
    ValueScratch values;
    FloatScratch floats;
    alignas(64) float scores[kRowBlock * kStride], other[kRowBlock * kStride];
};

inline void rescale(float* x, int64_t n, float factor) {
    for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

// Which of n tokens have weight in any row; their weights are moved together. Returns how many.
inline int pick(float* weights, int first, int last, int n, int* picked) {
    int count = 0;
    for (int t = 0; t < n; ++t) {
        float most = 0;
        for (int r = first; r < last; ++r) most += weights[r * kStride + t];
        picked[count] = t;  // no branch: which it is cannot be foretold
        count += most > 0;
    }
    for (int r = first; r < last && count < n; ++r)
        for (int t = 0; t < n; ++t) weights[r * kStride + t] = t < count ? weights[r * kStride + picked[t]] : 0.0f;
    return count;
}

// The n tokens from position `a` on, for rows [first, last) of a block whose first row is `row0`.
struct Tile {
    const Task& task;
    const QueryRows& q;
    int64_t b, h, row0;
    int first, last;
    int64_t a;
    int n;
    Scratch& s;
    const Sums& sums;

    int64_t query(int r) const { return (row0 + r) / task.sharing; }
    bool sinks() const { return a < task.call.k.sinks.count; }
    int packed_before(const AttendSide& side, int r) const {  // how many of the tokens row r sees packed
        const int64_t left = sinks() ? 0 : side.bounds[query(r)] - a;
        return int(left < 0 ? 0 : left < n ? left : n);
    }
    struct Seen {
        int least, most;
    };
    Seen seen_packed(const AttendSide& side) const {  // by the row that sees the fewest, and the most
        Seen seen{n, 0};
        for (int r = first; r < last; ++r) {
            const int packed = packed_before(side, r);
            seen.least = packed < seen.least ? packed : seen.least;
            seen.most = packed > seen.most ? packed : seen.most;
        }
        return seen;
    }

    // Scores of the tokens [from, from + count) of one source.
    void score_from(const Plan& plan, const Packed& source, int64_t from, int count, float* scores) const {
        const Head head(source, b, h);
        if (plan.mode == Mode::floats) return score_floats(plan, head, q, first, last, from, count, s.floats, scores, kStride);
        for (int t = 0; t < count; t += L)
            score_strip(plan, head, q, first, last, from + t, count - t < L ? count - t : L, s.keys, scores + t, kStride);
    }

    void score() const {
        const AttendSide& k = task.call.k;
        if (sinks()) return score_from(task.k.exact, task.k_sinks, a, n, s.scores);
        const auto [least, most] = seen_packed(k);
        if (most > 0) score_from(task.k.packed, k.packed, a - k.sinks.count, most, s.scores);
        if (least == n) return;
        float* exact = most > 0 ? s.other : s.scores;
        score_from(task.k.exact, task.k_tail, a + least - k.tail_start, n - least, exact + least);
        for (int r = first; r < last && most > 0; ++r)
            for (int t = packed_before(k, r); t < n; ++t) s.scores[r * kStride + t] = s.other[r * kStride + t];
    }

    // A row's scores to weights, relative to its largest score so far; what it does not see gets none.
    void soften(int r) const {
        const AttendCall& c = task.call;
        float *scores = s.scores + r * kStride, *row = sums.row(r);
        const int64_t t = c.start + query(r), from = t + 1 - c.reach;
        const int end = int(t + 1 - a < n ? t + 1 - a : n), begin = from <= a ? 0 : int(from - a < end ? from - a : end);
        if (c.softcap > 0)
            for (int i = 0; i < end; ++i) scores[i] = c.softcap * std::tanh(scores[i] / c.softcap);
        for (int i = 0; i < begin; ++i) scores[i] = -INFINITY;
        F top = all(-INFINITY);
        for (int i = 0; i < kTile; i += L) {
            const F x = below(end - i, load(scores + i), all(-INFINITY));
            if (any_nan(x)) row[1] = NAN;  // and stays it
            store(scores + i, x);
            top = max(top, x);
        }
        const float best = largest(top);
        if (!(best > row[0])) {
            if (row[0] == -INFINITY) {
                for (int i = 0; i < kTile; ++i) scores[i] = 0.0f;
                return;
            }
        } else {
            if (row[0] != -INFINITY) rescale(row + 1, sums.stride() - 1, std::exp(row[0] - best));
            row[0] = best;
        }
        F total = all(0.0f);
        for (int i = 0; i < kTile; i += L) {
            const F w = exp_negative(load(scores + i) - all(row[0]));
            store(scores + i, w);
            total = total + w;
        }
        row[1] += sum(total);
        if (!(c.sparse > 0)) return;
        F lost = all(0.0f);
        for (int i = 0; i < kTile; i += L) {
            const F w = load(scores + i), kept = where_above(w, all(c.sparse), w);
            store(scores + i, kept);
            lost = lost + (w - kept);
        }
        row[3] += sum(lost);
    }

    void mix_from(const Plan& plan, const Packed& source, int64_t from, int count, float* weights, bool packed) const {
        const Head head(source, b, h);
        int picked[kTile];
        const int live = task.call.sparse > 0 ? pick(weights, first, last, count, picked) : count;
        if (live == 0) return;
        mix_tile(plan, head, first, last, from, live, live < count ? picked : nullptr, s.values, s.floats,
                 [&](int r, const float*& w, float*& out, float*& low) {
                     w = weights + r * kStride;
                     out = packed ? sums.packed(r) : sums.exact(r);
                     low = sums.lows(r);
                 });
    }

    void mix() const {
        const AttendSide& v = task.call.v;
        if (sinks()) return mix_from(task.v.exact, task.v_sinks, a, n, s.scores, false);
        const auto [least, most] = seen_packed(v);
        const bool mixed = least < n && most > 0;
        for (int r = first; r < last && mixed; ++r) {  // each position counts once: its weight goes to the form that the row sees
            const int end = packed_before(v, r);
            float *packed = s.scores + r * kStride, *exact = s.other + r * kStride;
            for (int t = 0; t < kTile; ++t) {
                const float w = packed[t];
                packed[t] = t < end ? w : 0.0f;
                exact[t] = t < end ? 0.0f : w;
            }
        }
        if (most > 0) {
            for (int r = first; r < last; ++r) {
                F mass = all(0.0f);
                for (int i = 0; i < kTile; i += L) mass = mass + load(s.scores + r * kStride + i);
                sums.row(r)[2] += sum(mass);
            }
            mix_from(task.v.packed, v.packed, a - v.sinks.count, most, s.scores, true);
        }
        if (least == n) return;
        // From `least` on; what lies before has no weight left. The tile is read from there, so its end must not run over.
        float* weights = mixed ? s.other : s.scores;
        for (int r = first; r < last && least > 0; ++r) {
            float* w = weights + r * kStride;
            for (int t = 0; t < kTile; ++t) w[t] = t + least < n ? w[t + least] : 0.0f;
        }
        mix_from(task.v.exact, task.v_tail, a + least - v.tail_start, n - least, weights, false);
    }

    void add() const {
        score();
        for (int r = first; r < last; ++r) soften(r);
        mix();
    }
};

inline void stretch(const Task& task, const QueryRows& q, int64_t b, int64_t h, int64_t row0, int rows, int64_t from, int64_t to, Scratch& s,
                    const Sums& sums) {
    const AttendCall& c = task.call;
    const int64_t sinks = c.k.sinks.count;
    for (int r = 0; r < rows; ++r) {
        float* row = sums.row(r);
        std::memset(row, 0, size_t(sums.stride()) * sizeof(float));
        row[0] = -INFINITY;
    }
    for (int64_t a = from; a < to;) {
        int64_t end = a + kTile < to ? a + kTile : to;
        if (a < sinks && end > sinks) end = sinks;
        int first = 0, last = rows;  // rows are in order of their queries, and so of what they see
        while (first < last && c.start + (row0 + first) / task.sharing < a) ++first;
        while (last > first && c.start + (row0 + last - 1) / task.sharing + 1 - c.reach >= end) --last;
        if (first < last) Tile{task, q, b, h, row0, first, last, a, int(end - a), s, sums}.add();
        a = end;
    }
}

// out = (basisᵀ Σ packed + mass · offset + Σ exact) / Σ weights, over all stretches.
inline void finish(const AttendCall& c, const Plan& plan, const float* sums, int64_t splits, int64_t split_stride, const Sums& shape,
                   int64_t kv_head, int64_t at) {
    const int head_dim = int(c.head_dim), dim = plan.dim;
    float* out = c.out + at * head_dim;
    float top = -INFINITY;
    for (int64_t i = 0; i < splits; ++i) top = sums[i * split_stride] > top ? sums[i * split_stride] : top;
    float weight = 0, mass = 0, dropped = 0, lows[kMaxGroups] = {}, slots[kMaxDim + 16 * L] = {}, y[kMaxDim], x[kMaxDim] = {};
    for (int64_t i = 0; i < splits; ++i) {
        const float* row = sums + i * split_stride;
        if (row[0] == -INFINITY && row[1] == 0) continue;
        const float share = std::exp(row[0] - top);
        weight += share * row[1];
        mass += share * row[2];
        dropped += share * row[3];
        const float *packed = row + Sums::kFirst + shape.groups, *exact = packed + shape.packed_slots;
        for (int64_t g = 0; g < shape.groups; ++g) lows[g] += share * row[Sums::kFirst + g];
        for (int64_t d = 0; d < shape.packed_slots; ++d) slots[d] += share * packed[d];
        for (int d = 0; d < head_dim; ++d) x[d] += share * exact[d];
    }
    if (plan.mode == Mode::floats) {
        std::memcpy(y, slots, size_t(dim) * sizeof(float));
    } else {
        for (int w = 0; w < plan.items(); ++w)
            for (int i = 0; i < plan.steps; ++i) {
                const int channel = plan.channel(c.v.packed.format, w, i);
                y[channel] = slots[(w / L * plan.steps + i) * L + w % L] + lows[plan.groups > 1 ? channel / plan.group : 0];
            }
    }
    if (mass > 0) {
        if (!c.v.basis) {
            for (int d = 0; d < head_dim; ++d) x[d] += y[d];
        } else {
            for (int i = 0; i < dim; ++i) {
                const float* row = c.v.basis + int64_t(i) * head_dim;
                for (int d = 0; d < head_dim; ++d) x[d] += y[i] * row[d];
            }
        }
        if (c.v.offset)
            for (int d = 0; d < head_dim; ++d) x[d] += mass * c.v.offset[kv_head * head_dim + d];
    }
    for (int d = 0; d < head_dim; ++d) out[d] = x[d] / weight;
    if (c.dropped) c.dropped[at] = dropped / weight;
}

Packed as_packed(const Exact& e, int64_t head_dim) {
    Packed p{};
    p.format.arrangement = kFloats;
    p.format.dim = p.format.group = int32_t(head_dim);
    p.format.unit = 1;
    p.format.number = e.number;
    p.codes = e.rows;
    p.units = e.count;
    return p;
}

}  // namespace

// Returns 0, or 1 if there is no memory.
int attend(const AttendCall& c) {
    const Packed k_sinks = as_packed(c.k.sinks, c.head_dim), k_tail = as_packed(c.k.tail, c.head_dim);
    const Packed v_sinks = as_packed(c.v.sinks, c.head_dim), v_tail = as_packed(c.v.tail, c.head_dim);
    const Sides k{plan_of(k_tail.format, true, c, true), plan_of(c.k.packed.format, true, c, false)};
    const Sides v{plan_of(v_tail.format, false, c, true), plan_of(c.v.packed.format, false, c, false)};
    const int64_t sharing = c.heads / c.kv_heads, rows = sharing * c.queries, pairs = c.batch * c.kv_heads;
    const Task task{c, k, v, k_sinks, k_tail, v_sinks, v_tail, sharing};
    const int64_t tokens = c.start + c.queries, blocks = (rows + kRowBlock - 1) / kRowBlock;
    const int64_t oldest = c.start + 1 - c.reach > 0 ? (c.start + 1 - c.reach) / kTile * kTile : 0;
    int64_t split = c.split > 0 ? c.split : 2048;
    if (blocks > 1 && c.split <= 0) split = tokens;
    split = (split + kTile - 1) / kTile * kTile;
    const int64_t splits = (tokens - oldest + split - 1) / split;

    Sums shape{nullptr, v.packed.mode == Mode::floats ? 0 : v.packed.groups, slots_of(v.packed), slots_of(v.exact)};
    QueryRows queries(nullptr, c.head_dim, k.packed);
    const int64_t prepared = pairs * rows * queries.stride, partial = pairs * rows * splits * shape.stride();
    auto* memory = static_cast<float*>(std::malloc(size_t(prepared + partial) * sizeof(float)));
    if (!memory) return 1;
    queries.base = memory;
    float* const sums = memory + prepared;

    const int64_t all_rows = pairs * rows, tasks = pairs * blocks * splits;
    int failed = 0;
#pragma omp parallel if (tasks > 1 && all_rows * tokens * c.head_dim > kAlone)
    {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < all_rows; ++i) {
            const int64_t pair = i / rows, r = i % rows, b = pair / c.kv_heads, h = pair % c.kv_heads;
            const int64_t head = h * sharing + r % sharing, query = r / sharing;
            prepare(c, k.packed, c.q + ((b * c.heads + head) * c.queries + query) * c.head_dim, h, queries.from(i));
        }
        void* raw = nullptr;
        if (posix_memalign(&raw, 64, sizeof(Scratch))) {
#pragma omp atomic write
            failed = 1;
        }
        auto* scratch = static_cast<Scratch*>(raw);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < tasks; ++i) {
            if (!scratch) continue;
            const int64_t pair = i / (blocks * splits), block = i / splits % blocks, part = i % splits;
            const int64_t row0 = block * kRowBlock, from = oldest + part * split, to = from + split < tokens ? from + split : tokens;
            const int count = int(rows - row0 < kRowBlock ? rows - row0 : kRowBlock);
            // [pair][block's rows][split]: the rows of a block lie together, its parts one after another
            const Sums own{sums + ((pair * rows + row0) * splits + part * count) * shape.stride(), shape.groups, shape.packed_slots,
                           shape.exact_slots};
            stretch(task, queries.from(pair * rows + row0), pair / c.kv_heads, pair % c.kv_heads, row0, count, from, to, *scratch, own);
        }
        std::free(raw);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < all_rows; ++i) {
            if (failed) continue;
            const int64_t pair = i / rows, r = i % rows, b = pair / c.kv_heads, h = pair % c.kv_heads;
            const int64_t row0 = r / kRowBlock * kRowBlock, count = rows - row0 < kRowBlock ? rows - row0 : kRowBlock;
            const float* own = sums + ((pair * rows + row0) * splits + (r - row0)) * shape.stride();
            const int64_t head = h * sharing + r % sharing, query = r / sharing;
            finish(c, v.packed, own, splits, count * shape.stride(), shape, h, (b * c.heads + head) * c.queries + query);
        }
    }
    std::free(memory);
    return failed;
}

}  // namespace tqb::TQB_VARIANT
