// Sections of vectors times a small matrix: eight rows of the result by two registers of its columns stay in registers while the sum runs.
// There the sums are in double, so that codes come out as in the reference; back they are in float.
#include "project/project.hpp"
#include "simd/lanes.hpp"

namespace tqb {
namespace TQB_VARIANT {
namespace {

#if defined(TQB_VARIANT_avx512)
constexpr int kRows = 8;
#else
constexpr int kRows = 4;  // sixteen registers
#endif
constexpr int kColumns = 2;  // registers

// sums[r][c] = Σ left[k][r] · right[k][c], k from 0 to count; rows of `right` are `stride` apart, those of `left` kTile.
template <typename V, typename T>
__attribute__((noinline)) void product(const T* left, const T* right, int64_t count, int64_t stride, V (*out)[kColumns]) {
    V sums[kRows][kColumns] = {};
    for (int64_t k = 0; k < count; ++k, left += kTile, right += stride) {
        const V first = load<V>(right), second = load<V>(right + sizeof(V) / sizeof(T));
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
            sums[r][0] += first * left[r];
            sums[r][1] += second * left[r];
        }
    }
    for (int r = 0; r < kRows; ++r)
        for (int c = 0; c < kColumns; ++c) out[r][c] = sums[r][c];
}

inline Floats part_of(const float* from, int64_t count) {
    Floats x = {};
    memcpy(&x, from, size_t(count < kLanes ? count : kLanes) * sizeof(float));
    return x;
}

// panel[channel][token] = x − mean of up to kTokens tokens, zeros beyond. Returns whether all of x is finite.
inline bool read_panel(const Section& s, const float* x, int64_t tokens, double* panel) {
    Ints most = {};
    for (int64_t t = 0; t < kTokens; t += kLanes)
        for (int64_t c = 0; c < s.dim; c += kLanes) {
            Floats tile[kLanes];
            for (int64_t l = 0; l < kLanes; ++l) tile[l] = t + l < tokens ? part_of(x + (t + l) * s.stride + c, s.dim - c) : Floats{};
            transpose(tile);
            for (int64_t j = 0; j < kLanes && c + j < s.dim; ++j) {
                const Ints size = bits(tile[j]) & 0x7fffffff;
                most = size > most ? size : most;
                double* row = panel + (c + j) * kTokens + t;
                for (int half = 0; half < 2; ++half) {
                    const auto wide = __builtin_convertvector(load<HalfFloats>((const float*)&tile[j] + half * (kLanes / 2)), Doubles);
                    store(row + half * (kLanes / 2), wide - s.mean[c + j]);
                }
            }
        }
    return !any(most >= 0x7f800000);
}

}  // namespace

// y[component][token] of one section.
bool project_section(const Section& s, const float* x, const double* tiles, float* y, double* panel) {
    constexpr int64_t kWidth = kLanes / 2;  // doubles in a register
    bool finite = true;
    for (int64_t t = 0; t < s.tokens; t += kTokens) {
        finite &= read_panel(s, x + t * s.stride, s.tokens - t, panel);
        for (int64_t row = 0; row < s.components; row += kRows)
            for (int64_t column = 0; column < kTokens && t + column < s.tokens; column += kColumns * kWidth) {
                Doubles sums[kRows][kColumns];
                product<Doubles>(tiles + row / kTile * kTile * s.dim + row % kTile, panel + column, s.dim, kTokens, sums);
                for (int64_t r = 0; r < kRows && row + r < s.components; ++r)
                    for (int64_t c = 0; c < kColumns && t + column + c * kWidth < s.tokens; ++c)
                        store(y + (row + r) * s.tokens + t + column + c * kWidth, __builtin_convertvector(sums[r][c], HalfFloats));
            }
    }
    return finite;
}

// x[token][channel] of one section.
void unproject_section(const Section& s, const float* y, const float* panels, const float* mean, float* x, float* tile) {
    for (int64_t t = 0; t < s.tokens; t += kTile) {
        for (int64_t k = 0; k < s.components; ++k) memcpy(tile + k * kTile, y + k * s.tokens + t, kTile * sizeof(float));
        for (int64_t first = 0; first < s.dim; first += kChannels)
            for (int64_t row = 0; row < kTile; row += kRows)
                for (int64_t c = first; c < first + kChannels && c < s.dim; c += kColumns * kLanes) {
                    Floats sums[kRows][kColumns];
                    product<Floats>(tile + row, panels + first * s.components + (c - first), s.components, kChannels, sums);
                    for (int64_t r = 0; r < kRows; ++r)
                        for (int64_t n = 0; n < kColumns && c + n * kLanes < s.dim; ++n) {
                            const int64_t at = c + n * kLanes, left = s.dim - at;
                            const Floats value = sums[r][n] + part_of(mean + at, left);
                            memcpy(x + (t + row + r) * s.stride + at, &value, size_t(left < kLanes ? left : kLanes) * sizeof(float));
                        }
                }
    }
}

}  // namespace TQB_VARIANT
}  // namespace tqb
