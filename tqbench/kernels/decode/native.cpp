// The C interface of decode.
#include "packed/check.hpp"
#include "simd/dispatch.hpp"

TQB_DECLARE(void, decode, const tqb::Packed&, int64_t, int64_t, float*)

// `size` floats fit in `out`. Returns 0, or 2 if the arguments are not sane.
extern "C" int tqbench_decode(const tqb::Packed* packed, int64_t batch, int64_t heads, float* out, int64_t size) {
    if (!packed || batch < 1 || heads < 1 || batch > 1 << 20 || heads > 1 << 20 || !tqb::packed_is_sane(*packed, batch, heads)) return 2;
    if (!out || size != batch * heads * packed->units * packed->format.unit * packed->format.dim) return 2;
    TQB_CHOSEN(decode)(*packed, batch, heads, out);
    return 0;
}
