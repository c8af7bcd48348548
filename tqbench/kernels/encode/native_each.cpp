// Encode: vectors into lanes, then every step for all lanes at once, then codes and scales back into rows. What a vector becomes does not
// depend on which vectors share its registers.
#include "encode/pack.hpp"
#include "encode/plan.hpp"
#include "encode/prepare.hpp"
#include "encode/quantize.hpp"

namespace tqb {
namespace TQB_VARIANT {
namespace {

int64_t whole(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// Registers per array. Words go through whole transposes, so there are as many as lanes.
int64_t carve(const Plan& plan, uint8_t* memory, Scratch& s) {
    uint8_t* at = memory;
    const auto take = [&at](int64_t registers) {
        uint8_t* start = at;
        at += registers * int64_t(sizeof(Floats));
        return start;
    };
    const int64_t longest = plan.unit > plan.dim ? plan.unit : plan.dim;
    s.y = (Floats*)take(whole(longest));
    s.codes = (Ints*)take(longest);
    s.words = (Ints*)take(whole(longest) + kLanes);
    s.first = (Floats*)take(longest);
    s.second = (Floats*)take(longest);
    s.wide = (Doubles*)take(plan.dim * kHalves);
    s.rows = (float*)take(whole(plan.head_dim));
    s.plain = (float*)take(plan.unit > 1 ? plan.unit * whole(plan.dim) / kLanes : 0);
    return at - memory;
}

void quantize(const Plan& plan, const Scratch& s, int groups, const char* ahead) {
    const Quantize run = quantizer(plan);
    for (int g = 0; g < groups; ++g)
        run(plan, {s.y + g * plan.group, s.codes + g * plan.group, s.first + g, s.second + g, plan.group, ahead + 64 * g * plan.group});
}

// The bits of what is kept, in place; false if a value does not fit its type.
bool narrow(Floats* values, int count, Type type) {
    Ints fits = all(-1);
    for (int i = 0; i < count; ++i) {
        const Floats x = values[i];
        fits &= finite(as_kept(x, type));
        values[i] = type == float32 ? x : floats(type == float16 ? to_half(x) : to_bfloat(x));
    }
    return !any(~fits);
}

bool fits(const Plan& plan, const Scratch& s) {
    Ints fine = all(-1);
    if (plan.format == cast)
        for (int c = 0; c < plan.dim; ++c) fine &= finite(as_kept(s.y[c], plan.kept));
    return !any(~fine);
}

int kept_bits(const Plan& plan) { return plan.kept == float32 ? 32 : 16; }

// Vectors `v` to `v + count`: channels share scales.
Status encode_vectors(const Plan& plan, Cursor& at, int64_t v, int count, const Output& out, Scratch& s) {
    const int64_t head = at.h;
    Cursor scales = at;
    if (!prepare(plan, at, count, s)) return not_finite;
    if (plan.head_scale) {
        Floats scale = all(plan.head_scale[head]);
        for (int l = 0; l < count; ++l, scales.next()) scale[l] = plan.head_scale[scales.h];
        for (int c = 0; c < plan.dim; ++c) s.y[c] = s.y[c] / scale;
    }
    if (!fits(plan, s)) return overflow;
    const int groups = plan.dim / plan.group;
    quantize(plan, s, groups, at.address());
    for (int p = 0; p < plan.planes; ++p) {
        const int64_t size = int64_t(plan.dim) * plan.plane[p].bits / 8;
        pack(s.codes, plan.plane[p], plan.dim, s.words);
        store_rows(s.words, size, out.planes[p] + v * size, count);
    }
    for (int k = 0; k < plan.kept_count; ++k) {
        Floats* kept = k ? s.second : s.first;
        if (!narrow(kept, groups, plan.kept)) return overflow;
        const Plane stream = {kept_bits(plan), 0, plan.natural};
        const int64_t size = int64_t(groups) * stream.bits / 8;
        pack((Ints*)kept, stream, groups, s.words);
        store_rows(s.words, size, out.kept[k] + v * size, count);
    }
    return fine;
}

// Unit `u`: its tokens share a scale per channel. Lanes are channels.
Status encode_unit(const Plan& plan, Cursor& at, int64_t u, const Output& out, Scratch& s) {
    const int64_t width = whole(plan.dim), size = int64_t(plan.unit) * plan.bits / 8;
    const int itemsize = kept_bits(plan) / 8;
    for (int t = 0; t < plan.unit; t += kLanes) {
        const int count = plan.unit - t < kLanes ? plan.unit - t : kLanes;
        if (!prepare(plan, at, count, s)) return not_finite;
        for (int c = plan.dim; c < width; ++c) s.y[c] = Floats{};
        for (int64_t c = 0; c < width; c += kLanes) {
            transpose(s.y + c);
            for (int l = 0; l < count; ++l) store(s.plain + (t + l) * width + c, s.y[c + l]);
        }
    }
    for (int c = 0; c < plan.dim; c += kLanes) {
        const int lanes = plan.dim - c < kLanes ? plan.dim - c : kLanes;
        for (int t = 0; t < plan.unit; ++t) s.y[t] = load<Floats>(s.plain + t * width + c);
        quantize(plan, s, 1, at.address() + 64 * int64_t(c) / kLanes * plan.unit);
        pack(s.codes, plan.plane[0], plan.unit, s.words);
        store_columns(s.words, size, out.planes[0] + u * size * plan.dim + c, plan.dim, lanes);
        for (int k = 0; k < plan.kept_count; ++k) {
            Floats* kept = k ? s.second : s.first;
            if (!narrow(kept, 1, plan.kept)) return overflow;
            uint8_t* to = out.kept[k] + (u * plan.dim + c) * itemsize;
            const Shorts narrow_kept = __builtin_convertvector((Ints)*kept & 0xffff, Shorts);
            memcpy(to, itemsize == 4 ? (const void*)kept : (const void*)&narrow_kept, size_t(lanes) * size_t(itemsize));
        }
    }
    return fine;
}

}  // namespace

int64_t encode_scratch(const Plan& plan) {
    Scratch s;
    return carve(plan, nullptr, s);
}

// Units `first` to `last` (vectors, if a unit is one token). `memory` is aligned to a register.
Status encode_range(const Plan& plan, const Input& in, const Output& out, int64_t first, int64_t last, uint8_t* memory) {
    Scratch s;
    carve(plan, memory, s);
    Cursor at(in, first * plan.unit);
    if (plan.unit > 1) {
        for (int64_t u = first; u < last; ++u)
            if (const Status status = encode_unit(plan, at, u, out, s)) return status;
        return fine;
    }
    for (int64_t v = first; v < last; v += kLanes) {
        const int count = int(last - v < kLanes ? last - v : kLanes);
        if (const Status status = encode_vectors(plan, at, v, count, out, s)) return status;
    }
    return fine;
}

}  // namespace TQB_VARIANT
}  // namespace tqb
