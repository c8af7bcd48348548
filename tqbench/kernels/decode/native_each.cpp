// Packed vectors to floats; what rotation and padding did to them is undone elsewhere.
#include "packed/rows.hpp"
#include "simd/dispatch.hpp"

namespace tqb::TQB_VARIANT {

void decode(const Packed& packed, int64_t batch, int64_t heads, float* out) {
    const int64_t tokens = packed.units * packed.format.unit, dim = packed.format.dim, rows = batch * heads * tokens;
#pragma omp parallel for schedule(static) if (rows * dim > 65536)
    for (int64_t i = 0; i < rows; ++i) {
        const int64_t pair = i / tokens;
        decode_row(Head(packed, pair / heads, pair % heads), i % tokens, out + i * dim);
    }
}

}  // namespace tqb::TQB_VARIANT
