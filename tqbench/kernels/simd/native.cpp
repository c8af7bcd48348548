// What this processor can run, and what was asked for.
#include "simd/dispatch.hpp"

#include <cstring>

namespace tqb {
namespace {

constexpr const char* kNames[] = {
#if defined(__aarch64__)
    "neon",
#else
    "scalar",
#endif
    "avx2", "avx512"};

bool runs(Isa isa) {
#ifdef TQB_X86
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (isa == Isa::avx2) return avx2;
    if (isa == Isa::avx512)
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi");
#endif
    return isa == Isa::base;
}

Isa best() { return runs(Isa::avx512) ? Isa::avx512 : runs(Isa::avx2) ? Isa::avx2 : Isa::base; }

Isa chosen = best();

}  // namespace

Isa isa() { return chosen; }

}  // namespace tqb

extern "C" {

// The name of the instruction set in use.
const char* tqbench_isa() { return tqb::kNames[int(tqb::isa())]; }

// Use another one; "" is the best. Returns 0, or 1 if there is no such name, or 2 if this processor cannot run it.
int tqbench_use_isa(const char* name) {
    if (!name || !*name) return tqb::chosen = tqb::best(), 0;
    for (int i = 0; i < 3; ++i)
        if (!std::strcmp(name, tqb::kNames[i])) return tqb::runs(tqb::Isa(i)) ? (tqb::chosen = tqb::Isa(i), 0) : 2;
    return 1;
}
}
