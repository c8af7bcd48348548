// The transform of each row where it lies: the first stages within a register's worth of neighbours, the others between whole registers.
#include "simd/fwht.hpp"
#include "simd/lanes.hpp"

namespace tqb {
namespace TQB_VARIANT {
namespace {

// Stages of distance 1, 2, .. below the `width` values of a register.
template <typename T>
void near_stages(T* y, int64_t n, int64_t width) {
    for (int64_t half = 1; half < n && half < width; half *= 2)
        for (int64_t start = 0; start < n; start += 2 * half)
            for (int64_t i = start; i < start + half; ++i) {
                const T a = y[i], b = y[i + half];
                y[i] = a + b;
                y[i + half] = a - b;
            }
}

template <typename T, typename V>
void rows(const T* x, T* y, int64_t first, int64_t last, int64_t n) {
    constexpr int64_t width = sizeof(V) / sizeof(T);
    const T factor = T(1 / sqrt(double(n)));
    alignas(64) T row[4096];
    for (int64_t r = first; r < last; ++r) {
        memcpy(row, x + r * n, size_t(n) * sizeof(T));
        near_stages(row, n, width);
        if (n > width) fwht((V*)row, n / width, 1);
        for (int64_t i = 0; i < n; ++i) y[r * n + i] = row[i] * factor;
    }
}

}  // namespace

void hadamard_floats(const float* x, float* y, int64_t first, int64_t last, int64_t n) { rows<float, Floats>(x, y, first, last, n); }

void hadamard_doubles(const double* x, double* y, int64_t first, int64_t last, int64_t n) { rows<double, Doubles>(x, y, first, last, n); }

}  // namespace TQB_VARIANT
}  // namespace tqb
