// What is prepared of each query before any key is read: itself in the basis of the packed keys, as floats and as integers.
#pragma once

#include "attend/extract.hpp"

namespace tqb::TQB_VARIANT {
namespace {

// What is prepared of each row (one query head of one query) before any key is read.
struct QueryRows {
    float* base;
    int64_t stride, at_packed, at_words, at_steps, at_starts, at_sums, at_offset, at_rest;  // in floats

    QueryRows(float* memory, int64_t head_dim, const Plan& plan) : base(memory) {
        at_packed = padded_dim(int(head_dim));  // with zeros behind both, so that they fill registers
        at_words = at_packed + padded_dim(plan.dim);
        at_steps = at_words + plan.dim / 2 + 2 * L;  // words are written in whole vectors
        at_starts = at_steps + plan.dim / 16 + 1;
        at_sums = at_starts + plan.dim / 16 + 2;
        at_offset = at_sums + plan.groups;
        at_rest = at_words;
        stride = at_offset + 2;
        if (plan.mode == Mode::floats) return;
        at_rest = stride;
        stride += at_sums - at_words;
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
    int32_t* starts(int64_t r) const { return reinterpret_cast<int32_t*>(base + r * stride + at_starts); }
    float* sums(int64_t r) const { return base + r * stride + at_sums; }
    float& offset(int64_t r) const { return base[r * stride + at_offset]; }
    float& coarse(int64_t r) const { return base[r * stride + at_offset + 1]; }  // above 0: the words alone are not precise
    QueryRows rest() const {  // words, steps and starts of what rounding left over
        QueryRows rows = *this;
        rows.at_words += at_rest - at_words;
        rows.at_steps += at_rest - at_words;
        rows.at_starts += at_rest - at_words;
        return rows;
    }
};

// Whether the largest of n channels is so many times what the others are on average that a step which reaches it is too wide for them. Of
// sixteen Gaussian values it is 2.4 times that.
constexpr float kFar = 16;
inline bool is_far(float most, float whole, int n) { return most * float(n - 1) > kFar * (whole - most); }

// Σ_d x_d basis[d], into dim floats.
TQB_LOOP void turn(const float* basis, const float* x, int head_dim, int dim, float* out) {
    int y = 0;
    for (; y + 4 * L <= dim; y += 4 * L) {
        F acc[4] = {all(0.0f), all(0.0f), all(0.0f), all(0.0f)};
        for (int d = 0; d < head_dim; ++d)
            for (int i = 0; i < 4; ++i) acc[i] = fma(load(basis + int64_t(d) * dim + y + i * L), all(x[d]), acc[i]);
        for (int i = 0; i < 4; ++i) store(out + y + i * L, acc[i]);
    }
    for (; y < dim; ++y) {
        float total = 0;
        for (int d = 0; d < head_dim; ++d) total += basis[int64_t(d) * dim + y] * x[d];
        out[y] = total;
    }
}

// Floats in the order of the levels of a vector of keys as integers, a step for each run; what rounding leaves over takes their place. Returns
// whether a run has a channel that is far above the others.
template <class Arithmetic>
inline bool round_runs(const Plan& plan, float* ordered, const QueryRows& q) {
    constexpr int kPer = Arithmetic::kPer;
    const int length = plan.run * kPer;
    float scaled[kMaxDim + 2 * L] = {};
    bool far = false;
    for (int from = 0, run = 0; from < plan.dim; from += length, ++run) {
        const int end = from + length < plan.dim ? from + length : plan.dim;
        float most = 0, whole = 0;
        for (int i = from; i < end; ++i) {
            const float size = __builtin_fabsf(ordered[i]);
            most = size > most ? size : most;
            whole += size;
        }
        far = far || is_far(most, whole, end - from);
        float factor = most > 0 ? float(plan.limit) / most : 0.0f;
        if (Arithmetic::kForm == Form::words && most > 0) {  // rounding adds at most a half to each word
            const float room = float(plan.room - length) / whole;
            factor = room < factor ? room : factor;
        }
        for (int i = from; i < end; ++i) {
            scaled[i] = ordered[i] * factor;
            const float left = (scaled[i] - __builtin_rintf(scaled[i])) / factor;
            ordered[i] = __builtin_fabsf(left) < __builtin_inff() ? left : 0.0f;
        }
        q.steps(0)[run] = most > 0 ? plan.unit / factor : 0.0f;
    }
    int32_t* words = q.words(0);
    for (int i = 0; i < plan.dim; i += 2 * L) Arithmetic::narrow(words + i / kPer, load(scaled + i), load(scaled + i + L));
    for (int lane = 0, run = 0; lane < plan.lanes; lane += plan.run, ++run)
        q.starts(0)[run] = Arithmetic::start(words + lane, lane + plan.run < plan.lanes ? plan.run : plan.lanes - lane);
    return far;
}

// The query as integers, and what that leaves over as integers once more.
template <class Arithmetic>
TQB_LOOP void round_query(const Plan& plan, const Format& f, const QueryRows& q) {
    const float* packed = q.packed(0);
    float ordered[kMaxDim + 2 * L] = {};
    for (int item = 0, at = 0; item < plan.items(); item += Arithmetic::kPer)
        for (int s = 0; s < plan.steps; ++s)
            for (int k = 0; k < Arithmetic::kPer; ++k) ordered[at++] = packed[plan.channel(f, item + k, s)];
    q.coarse(0) = round_runs<Arithmetic>(plan, ordered, q) ? 1.0f : 0.0f;
    round_runs<Arithmetic>(plan, ordered, q.rest());
}

// Query rows in the basis of the packed keys, their words, and what minima and offsets need of them.
inline void prepare(const AttendCall& c, const Plan& plan, const float* query, int64_t kv_head, const QueryRows& q) {
    const int dim = plan.dim, head_dim = int(c.head_dim);
    float *exact = q.exact(0), *packed = q.packed(0);
    std::memset(exact, 0, size_t(q.at_words) * sizeof(float));
    for (int d = 0; d < head_dim; ++d) exact[d] = query[d] * c.scale;
    if (c.k.basis) turn(c.k.basis, exact, head_dim, dim, packed);
    else std::memcpy(packed, exact, size_t(dim) * sizeof(float));
    float offset = 0;
    if (c.k.offset)
        for (int d = 0; d < head_dim; ++d) offset += exact[d] * c.k.offset[kv_head * head_dim + d];
    for (int d = 0; d < dim; ++d) offset += 0.0f * packed[d];  // NaN and infinity have no integers: every score becomes NaN
    q.offset(0) = offset;
    if (plan.mode == Mode::floats) return;
    if (plan.minima)
        for (int g = 0; g < plan.groups; ++g) {
            float total = 0;
            for (int d = g * plan.group; d < dim && d < (g + 1) * plan.group; ++d) total += packed[d];
            q.sums(0)[g] = total;
        }
    if (plan.form == Form::bytes) round_query<Bytes>(plan, c.k.packed.format, q);
    else round_query<Words>(plan, c.k.packed.format, q);
    float most = 0, whole = 0;  // a rotation spreads such a channel over all
    for (int d = 0; d < head_dim; ++d) {
        const float size = __builtin_fabsf(exact[d]);
        most = size > most ? size : most;
        whole += size;
    }
    if (is_far(most, whole, head_dim)) q.coarse(0) = 1.0f;
}

}  // namespace
}  // namespace tqb::TQB_VARIANT
