// Reading memory as fast as wide loads can: every byte is added up once, so that no load can be left out.
#include "simd/dispatch.hpp"

#include <cstdint>

#if TQB_VARIANT_avx512 || TQB_VARIANT_avx2
#include <immintrin.h>
#endif

namespace tqb::TQB_VARIANT {
namespace {

#if TQB_VARIANT_avx512
using Lane = __m512i;
Lane load(const uint64_t* at) { return _mm512_loadu_si512(at); }
Lane add(Lane a, Lane b) { return _mm512_add_epi64(a, b); }
#elif TQB_VARIANT_avx2
using Lane = __m256i;
Lane load(const uint64_t* at) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)); }
Lane add(Lane a, Lane b) { return _mm256_add_epi64(a, b); }
#else
struct Lane {
    uint64_t words[2];
};
Lane load(const uint64_t* at) { return {{at[0], at[1]}}; }
Lane add(Lane a, Lane b) { return {{a.words[0] + b.words[0], a.words[1] + b.words[1]}}; }
#endif

constexpr int64_t kWords = sizeof(Lane) / sizeof(uint64_t);
constexpr int64_t kChains = 8;  // independent sums, so that no addition waits for the one before it

}  // namespace

uint64_t stream_sum(const uint64_t* data, int64_t words) {
    Lane sums[kChains] = {};
    int64_t i = 0;
    for (; i + kChains * kWords <= words; i += kChains * kWords)
        for (int64_t c = 0; c < kChains; ++c) sums[c] = add(sums[c], load(data + i + c * kWords));
    for (int64_t c = 1; c < kChains; ++c) sums[0] = add(sums[0], sums[c]);
    uint64_t parts[kWords], total = 0;
    __builtin_memcpy(parts, &sums[0], sizeof parts);
    for (int64_t w = 0; w < kWords; ++w) total += parts[w];
    for (; i < words; ++i) total += data[i];
    return total;
}

}  // namespace tqb::TQB_VARIANT
