// What is done with the codes of a format, as they lie in lanes: which levels an item gives at each step, and how they are multiplied.
#pragma once

#include "attend/plan.hpp"

namespace tqb::TQB_VARIANT {
namespace {

struct Words {  // two levels of 16 bits to a lane: precise
    static constexpr Form kForm = Form::words;
    static constexpr int kPer = per_lane(kForm), kItem = item_bytes(kForm);
    static I dot(I acc, I levels, I words) { return dot2(acc, levels, words); }
    static I gather(const uint8_t* const* rows, int at, int bytes) { return pair_words(rows[0], rows[1], at, bytes); }
    static I gather_third(const uint8_t* const* rows, int item, int items) { return pair_bytes(rows[0], rows[1], item, items); }
    static I third(I bits, int upper) { return upper ? widen_high(bits) : widen_low(bits); }
    static void narrow(void* out, F x, F y) { store(out, pack_words(x, y)); }  // 2 L numbers
    static int32_t start(const int32_t*, int) { return 0; }
};
struct Bytes {  // four of 8 bits: fast
    static constexpr Form kForm = Form::bytes;
    static constexpr int kPer = per_lane(kForm), kItem = item_bytes(kForm);
    static I dot(I acc, I levels, I words) { return dot4(acc, levels, words); }
    static I gather(const uint8_t* const* rows, int at, int bytes) { return quad_bytes(rows, at, bytes); }
    static I gather_third(const uint8_t* const* rows, int item, int items) { return quad_nibbles(rows, item / 2, items / 2); }
    static I third(I bits, int upper) {  // a byte for each word: four bits of it for each byte
        const I wide = Words::third(bits, upper);
        return wide | left16<4>(wide);
    }
    static void narrow(void* out, F x, F y) {
        store_bytes(static_cast<int8_t*>(out), x);
        store_bytes(static_cast<int8_t*>(out) + L, y);
    }
    static int32_t start(const int32_t* words, int n) { return -128 * sum_bytes(words, n); }
};

template <int Bits>
struct Packed16 : Words {
    static constexpr int kSteps = 16 / Bits;
    static constexpr bool kHigh = false;
    Table table;
    explicit Packed16(const Table& levels) : table(levels) {}
    template <int S>
    I get(I x, I) const {
        return lookup16(table, right16<Bits * S>(x));
    }
};
struct Split16 : Words {
    static constexpr int kSteps = 8;
    static constexpr bool kHigh = true;
    Table table;
    I low = all16(3);
    explicit Split16(const Table& levels) : table(levels) {}
    template <int S>
    I get(I x, I y) const {
        if constexpr (S < 2) return lookup16(table, choose(low, right16<2 * S>(x), left16<2 - S>(y)));
        else return lookup16(table, choose(low, right16<2 * S>(x), right16<S - 2>(y)));
    }
};
struct Looked8 : Words {
    static constexpr int kSteps = 2;
    static constexpr bool kHigh = false;
    Table table;
    explicit Looked8(const Table& levels) : table(levels) {}
    template <int S>
    I get(I x, I) const {
        return lookup(table, right16<8 * S>(x));
    }
};
struct Signed8 : Words {
    static constexpr int kSteps = 2;
    static constexpr bool kHigh = false;
    template <int S>
    I get(I x, I) const {
        return S ? signed_high8(x) : signed_low8(x);
    }
};
struct Centered8 : Words {  // an unsigned byte less 128
    static constexpr int kSteps = 2;
    static constexpr bool kHigh = false;
    I flip = all16(int16_t(0x8080));
    template <int S>
    I get(I x, I) const {
        return S ? signed_high8(x ^ flip) : signed_low8(x ^ flip);
    }
};
struct Unsigned8 : Words {
    static constexpr int kSteps = 2;
    static constexpr bool kHigh = false;
    template <int S>
    I get(I x, I) const {
        return S ? right16<8>(x) : low8(x);
    }
};

// The same of bytes.
template <int Bits>
struct PackedBytes : Bytes {  // of 8 bits: an index of five
    static constexpr int kSteps = 8 / Bits;
    static constexpr bool kHigh = false;
    ByteLookup table;
    explicit PackedBytes(const ByteTable& levels) : table(levels) {}
    template <int S>
    I get(I x, I) const {
        return table.get<(Bits < 8 ? 1 << Bits : 32)>(right16<Bits * S>(x));
    }
};
struct SplitBytes : Bytes {
    static constexpr int kSteps = 4;
    static constexpr bool kHigh = true;
    ByteLookup table;
    I low = all16(0x0303);
    explicit SplitBytes(const ByteTable& levels) : table(levels) {}
    template <int S>
    I get(I x, I y) const {
        if constexpr (S < 2) return table.get<8>(choose(low, right16<2 * S>(x), left16<2 - S>(y)));
        else return table.get<8>(choose(low, right16<2 * S>(x), right16<S - 2>(y)));
    }
};
struct FlippedBytes : Bytes {
    static constexpr int kSteps = 1;
    static constexpr bool kHigh = false;
    I flip;
    explicit FlippedBytes(int32_t flipped) : flip(all(flipped)) {}
    template <int S>
    I get(I x, I) const {
        return x ^ flip;
    }
};

template <class Extract, int S = 0, int End = Extract::kSteps>
inline void each_step(const Extract& extract, I x, I y, I* out) {
    *out = extract.template get<S>(x, y);
    if constexpr (S + 1 < End) each_step<Extract, S + 1, End>(extract, x, y, out + 1);
}

template <class Fn>
inline void with_extract(const Plan& plan, const Format& f, const Fn& fn) {
    if (plan.form == Form::bytes) {
        if (plan.mode == Mode::words) {
            if (f.arrangement == kSplit) fn(SplitBytes(plan.bytes));
            else if (f.bits == 4) fn(PackedBytes<4>(plan.bytes));
            else if (f.bits == 2) fn(PackedBytes<2>(plan.bytes));
            else fn(PackedBytes<1>(plan.bytes));
        } else if (f.bits <= 5) {
            fn(PackedBytes<8>(plan.bytes));
        } else {
            fn(FlippedBytes(plan.flip));
        }
        return;
    }
    const Table table(plan.levels);
    if (plan.mode == Mode::words) {
        if (f.arrangement == kSplit) fn(Split16(table));
        else if (f.bits == 4) fn(Packed16<4>(table));
        else if (f.bits == 2) fn(Packed16<2>(table));
        else fn(Packed16<1>(table));
    } else if (f.bits <= 5) {
        fn(Looked8(table));
    } else if (f.flip) {
        fn(Signed8());
    } else if (plan.center) {
        fn(Centered8{});
    } else {
        fn(Unsigned8{});
    }
}

}  // namespace
}  // namespace tqb::TQB_VARIANT
