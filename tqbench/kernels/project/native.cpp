// C ABI of the projection onto principal components and back, section by section.
#include "project/project.hpp"

#include <cstdint>

#include "simd/dispatch.hpp"
#include "simd/memory.hpp"

TQB_DECLARE(bool, project_section, const tqb::Section&, const float*, const double*, float*, double*)
TQB_DECLARE(void, unproject_section, const tqb::Section&, const float*, const float*, const float*, float*, float*)

namespace {

using namespace tqb;

constexpr int64_t kMost = 1 << 15;  // channels, and tokens of a section

struct Shape {
    int64_t batch, heads, units, tokens, dim, components;
    int64_t sections() const { return batch * heads * units; }
};

bool sane(const Shape& s) {
    if (s.batch < 0 || s.heads < 0 || s.units < 0 || s.tokens < 1 || s.tokens > kMost || s.tokens % kTile) return false;
    return s.dim >= 1 && s.dim <= kMost && s.components >= 0 && s.components <= s.dim;
}

int64_t rounded(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

}  // namespace

extern "C" {

// x [batch, heads, units · tokens, dim], strides in elements and channels side by side; mean [heads, dim];
// tiles [heads, ⌈components / 8⌉, dim, 8]; y [batch, heads, units, components, tokens]. Returns 0; 1 if the arguments are not sane; 2 if x is
// not finite; 3 if there is no memory.
int tqbench_project(const float* x, const int64_t* strides, const int64_t* sizes, const double* mean, const double* tiles, float* y) {
    const Shape s = {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5]};
    if (!sane(s)) return 1;
    if (!s.sections()) return 0;
    if (!x || !strides || !mean || (s.components && (!tiles || !y))) return 1;
    int wrong = 0;
#pragma omp parallel
    {
        const Memory<double> panel(s.dim * kTokens);
#pragma omp for schedule(dynamic) reduction(max : wrong)
        for (int64_t i = 0; i < s.sections(); ++i) {
            const int64_t unit = i % s.units, head = i / s.units % s.heads, row = i / s.units / s.heads;
            const Section section = {s.tokens, s.dim, s.components, strides[2], mean + head * s.dim};
            const float* from = x + row * strides[0] + head * strides[1] + unit * s.tokens * strides[2];
            const double* matrix = tiles + head * rounded(s.components, kTile) * s.dim;
            if (!panel.at) wrong = 3;
            else if (!TQB_CHOSEN(project_section)(section, from, matrix, y + i * s.components * s.tokens, panel.at)) wrong = wrong > 2 ? wrong : 2;
        }
    }
    return wrong;
}

// Back: mean [heads, dim], panels [heads, ⌈dim / 32⌉, components, 32]; x [batch, heads, units · tokens, dim], contiguous.
int tqbench_unproject(const float* y, const int64_t* sizes, const float* mean, const float* panels, float* x) {
    const Shape s = {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5]};
    if (!sane(s)) return 1;
    if (!s.sections()) return 0;
    if (!x || !mean || (s.components && (!y || !panels))) return 1;
    int wrong = 0;
#pragma omp parallel
    {
        const Memory<float> tile(s.components * kTile + 1);
#pragma omp for schedule(dynamic) reduction(max : wrong)
        for (int64_t i = 0; i < s.sections(); ++i) {
            const int64_t head = i / s.units % s.heads;
            const Section section = {s.tokens, s.dim, s.components, s.dim, nullptr};
            const float* matrix = panels + head * rounded(s.dim, kChannels) * s.components;
            if (tile.at)
                TQB_CHOSEN(unproject_section)
                (section, y + i * s.components * s.tokens, matrix, mean + head * s.dim, x + i * s.tokens * s.dim, tile.at);
            else wrong = 3;
        }
    }
    return wrong;
}
}
