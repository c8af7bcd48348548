// Which instruction set the library runs. Every `native_each.cpp` is compiled once per variant, into namespaces of these names; what
// lies in `native.cpp` is compiled once and calls the variant that is chosen.
//
// Variants must not share inline functions: the linker keeps one copy of each, perhaps the one that this processor cannot run. So variant
// sources take nothing from the standard library but C functions, and put everything of their own into anonymous namespaces.
#pragma once

#if defined(__x86_64__) || defined(_M_X64)
#define TQB_X86 1
#endif

namespace tqb {

enum class Isa : int { base = 0, avx2 = 1, avx512 = 2 };  // base: NEON on ARM, SSE2 or plain C++ elsewhere

Isa isa();

}  // namespace tqb

#ifdef TQB_X86
#define TQB_DECLARE(result, name, ...)                  \
    namespace tqb::base { result name(__VA_ARGS__); }   \
    namespace tqb::avx2 { result name(__VA_ARGS__); }   \
    namespace tqb::avx512 { result name(__VA_ARGS__); }
#define TQB_CHOSEN(name) \
    (tqb::isa() == tqb::Isa::avx512 ? tqb::avx512::name : tqb::isa() == tqb::Isa::avx2 ? tqb::avx2::name : tqb::base::name)
#else
#define TQB_DECLARE(result, name, ...) \
    namespace tqb::base { result name(__VA_ARGS__); }
#define TQB_CHOSEN(name) (tqb::base::name)
#endif
