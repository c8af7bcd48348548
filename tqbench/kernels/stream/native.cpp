// The rate at which all threads together can read memory: what no kernel that reads a cache once can beat.
#include "simd/dispatch.hpp"

#include <cstdint>

TQB_DECLARE(uint64_t, stream_sum, const uint64_t* data, int64_t words)

// Adds up 8-byte words into *total, in pieces that lie one after another, one for each thread. Returns 0, or 1 if the arguments are
// not sane.
extern "C" int tqbench_stream_sum(const uint64_t* data, int64_t words, int64_t threads, uint64_t* total) {
    if (words < 0 || threads < 1 || !total || (words > 0 && !data)) return 1;
    const auto sum = TQB_CHOSEN(stream_sum);
    uint64_t all = 0;
#pragma omp parallel for schedule(static) num_threads(int(threads)) reduction(+ : all)
    for (int64_t piece = 0; piece < threads; ++piece) {
        const int64_t first = words * piece / threads, last = words * (piece + 1) / threads;
        all += sum(data + first, last - first);
    }
    *total = all;
    return 0;
}
