// C ABI of uniform codes with a range per row: rows [outer, heads, units, components, count], widths [heads, components].
#include <cstdint>

#include "simd/dispatch.hpp"

TQB_DECLARE(bool, quantize_row, const float*, int64_t, int, int32_t*, uint16_t*, uint16_t*)
TQB_DECLARE(void, dequantize_row, const int32_t*, int64_t, uint16_t, uint16_t, float*)

namespace {

constexpr int64_t kThreaded = 1 << 15;  // values from which threads are worth waking
constexpr int64_t kMost = int64_t(1) << 40;

bool sane(int64_t sections, int64_t components, int64_t count) {
    if (sections < 0 || components < 0 || count < 1 || count > kMost || components > kMost / count) return false;
    return !components || sections <= kMost / count / components;
}

}  // namespace

extern "C" {

// Sections go head by head, `units` of each. minima and steps are fp16, [sections, components]. Returns 0; 1 if the arguments are not sane;
// 3 if a minimum or a step does not fit fp16.
int tqbench_quantize_sections(const float* rows, const uint8_t* widths, int64_t sections, int64_t heads, int64_t units, int64_t components,
                              int64_t count, int32_t* codes, uint16_t* minima, uint16_t* steps) {
    if (!sane(sections, components, count)) return 1;
    if (!sections || !components) return 0;
    if (heads < 1 || units < 1 || !rows || !widths || !codes || !minima || !steps) return 1;
    for (int64_t i = 0; i < heads * components; ++i)
        if (widths[i] > 16) return 1;
    int wrong = 0;
#pragma omp parallel for schedule(static) reduction(max : wrong) if (sections * components * count >= kThreaded)
    for (int64_t s = 0; s < sections; ++s)
        for (int64_t c = 0, i = s * components; c < components; ++c, ++i)
            if (!TQB_CHOSEN(quantize_row)(rows + i * count, count, widths[s / units % heads * components + c], codes + i * count, minima + i, steps + i))
                wrong = 3;
    return wrong;
}

int tqbench_dequantize_sections(const int32_t* codes, const uint16_t* minima, const uint16_t* steps, int64_t sections, int64_t components,
                                int64_t count, float* rows) {
    if (!sane(sections, components, count)) return 1;
    if (!sections || !components) return 0;
    if (!codes || !minima || !steps || !rows) return 1;
#pragma omp parallel for schedule(static) if (sections * components * count >= kThreaded)
    for (int64_t s = 0; s < sections; ++s)
        for (int64_t c = 0, i = s * components; c < components; ++c, ++i)
            TQB_CHOSEN(dequantize_row)(codes + i * count, count, minima[i], steps[i], rows + i * count);
    return 0;
}
}
