// The fast Walsh–Hadamard transform in Sylvester's order: y_i = Σ_j (−1)^popcount(i & j) x_j in n log₂ n additions, unnormalized.
#pragma once

#include <stdint.h>

namespace tqb {
namespace TQB_VARIANT {
namespace {

// `radix` rows, `step` apart, through log₂ radix stages in registers.
template <int radix, typename V>
inline void butterflies(V* row, int64_t step) {
    V v[radix];
    for (int i = 0; i < radix; ++i) v[i] = row[i * step];
#pragma GCC unroll 4
    for (int half = 1; half < radix; half *= 2)
#pragma GCC unroll 16
        for (int i = 0; i < radix; ++i)
            if (!(i & half)) {
                const V a = v[i], b = v[i + half];
                v[i] = a + b;
                v[i + half] = a - b;
            }
    for (int i = 0; i < radix; ++i) row[i * step] = v[i];
}

template <int radix, typename V>
inline void stages(V* rows, int64_t n, int64_t near, int64_t width) {
    for (int64_t start = 0; start < n; start += radix * near)
        for (int64_t i = start * width; i < (start + near) * width; ++i) butterflies<radix>(rows + i, near * width);
}

#if defined(TQB_VARIANT_avx512)
constexpr int kRadix = 16;  // rows that fit the registers together with the sums
#else
constexpr int kRadix = 8;
#endif

// Transform n rows of `width` registers each, in place; n is a power of two. As many stages at a time as registers hold, so that memory is
// passed over rarely.
template <typename V>
inline void fwht(V* rows, int64_t n, int64_t width) {
    int64_t near = 1;
    for (; kRadix * near <= n; near *= kRadix) stages<kRadix>(rows, n, near, width);
    switch (n / near) {
        case 8: stages<8>(rows, n, near, width); break;
        case 4: stages<4>(rows, n, near, width); break;
        case 2: stages<2>(rows, n, near, width); break;
        default: break;
    }
}

}  // namespace
}  // namespace TQB_VARIANT
}  // namespace tqb
