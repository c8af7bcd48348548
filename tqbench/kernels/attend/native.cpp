// The C interface of attention: every size and stride is checked here, so that no kernel reads beyond an array.
#include "attend/call.hpp"
#include "packed/check.hpp"
#include "simd/dispatch.hpp"

#include <initializer_list>

TQB_DECLARE(int, attend, const tqb::AttendCall&)

namespace {

using namespace tqb;

bool sane(const AttendCall& c, const AttendSide& s) {
    if (!exact_is_sane(s.sinks, c.batch, c.kv_heads, c.head_dim) || !exact_is_sane(s.tail, c.batch, c.kv_heads, c.head_dim)) return false;
    if (s.packed.units ? !packed_is_sane(s.packed, c.batch, c.kv_heads) : !format_is_sane(s.packed.format)) return false;
    const int64_t dim = s.packed.format.dim, tokens = c.start + c.queries, sinks = s.sinks.count;
    if (!s.basis && dim != c.head_dim) return false;
    if (s.packed_end - sinks != s.packed.units * s.packed.format.unit || s.packed_end < sinks) return false;
    int64_t least = tokens;
    for (int64_t i = 0; i < c.queries; ++i) {
        const int64_t bound = s.bounds[i];
        if (bound < (sinks < c.start + i + 1 ? sinks : c.start + i + 1) || (bound > s.packed_end && bound > sinks)) return false;
        least = bound < least ? bound : least;  // from the smallest bound on, a tile is read in exact form too
    }
    return least == tokens || (s.tail_start <= least && s.tail_start + s.tail.count >= tokens);
}

}  // namespace

// Returns 0; 1 if there is no memory; 2 if the arguments are not sane.
extern "C" int tqbench_attend(const tqb::AttendCall* call) {
    if (!call) return 2;
    const AttendCall& c = *call;
    const int64_t most = INT64_C(1) << 40;
    for (int64_t n : {c.batch, c.heads, c.kv_heads, c.queries, c.head_dim})
        if (n < 1 || n > most) return 2;
    if (c.head_dim > kMost || c.heads % c.kv_heads || c.start < 0 || c.start > most || c.reach < 1) return 2;
    if (c.split < 0 || c.split > most || c.ahead < 0 || c.ahead > 1 << 20 || !(c.sparse >= 0)) return 2;
    if (!c.q || !c.out || !c.k.bounds || !c.v.bounds || c.k.sinks.count != c.v.sinks.count || !(c.softcap >= 0)) return 2;
    if (!sane(c, c.k) || !sane(c, c.v)) return 2;
    return TQB_CHOSEN(attend)(c);
}
