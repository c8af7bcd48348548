// C ABI of the Walsh–Hadamard transform of rows: y = H x / √n.
#include <cstdint>

#include "simd/dispatch.hpp"

TQB_DECLARE(void, hadamard_floats, const float*, float*, int64_t, int64_t, int64_t)
TQB_DECLARE(void, hadamard_doubles, const double*, double*, int64_t, int64_t, int64_t)

namespace {

constexpr int64_t kMost = 4096;
constexpr int64_t kPiece = 64;          // rows: a multiple of every variant's lanes
constexpr int64_t kThreaded = 1 << 16;  // values from which threads are worth waking

template <typename T, typename Run>
int transform(const T* x, T* y, int64_t rows, int64_t n, Run run) {
    if (rows < 0 || n < 1 || n > kMost || (n & (n - 1)) || (rows > 0 && (!x || !y))) return 1;
#pragma omp parallel for schedule(dynamic) if (rows * n >= kThreaded)
    for (int64_t first = 0; first < rows; first += kPiece) run(x, y, first, first + kPiece < rows ? first + kPiece : rows, n);
    return 0;
}

}  // namespace

// Both return 0, or 1 if the arguments are not sane. x and y are [rows, n] and contiguous.
extern "C" int tqbench_hadamard_float32(const float* x, float* y, int64_t rows, int64_t n) {
    return transform(x, y, rows, n, [](auto... given) { TQB_CHOSEN(hadamard_floats)(given...); });
}

extern "C" int tqbench_hadamard_float64(const double* x, double* y, int64_t rows, int64_t n) {
    return transform(x, y, rows, n, [](auto... given) { TQB_CHOSEN(hadamard_doubles)(given...); });
}
