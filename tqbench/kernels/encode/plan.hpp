// What the encoder is told: the format, and everything that depends on the codec and head_dim alone, as data. _native.py has the same
// structures in the same order.
#pragma once

#include <stdint.h>

namespace tqb {

enum Method : int32_t { codebook, block_symmetric, block_affine, block_nonlinear, affine, symmetric, mlx_affine, fp8, cast };
enum Scale : int32_t { norm, norm_corrected, least_squares, unbiased, max_abs };  // of `codebook`
enum Type : int32_t { float32, float16, bfloat16 };
enum Turn : int32_t { none, hadamard, dense };
enum Status : int32_t { fine = 0, bad_arguments = 1, not_finite = 2, overflow = 3, no_memory = 4 };

constexpr int kPlanes = 2, kKept = 2;

struct Plane {  // bits `shift` to `shift + bits` of every code, as one stream per vector, least significant bit first
    int32_t bits, shift;
    const int32_t* order;  // of the codes in the stream
};

struct Plan {
    Method format;
    int32_t head_dim, dim;  // as given, and after padding
    int32_t bits, group;    // values that share a scale
    int32_t unit;           // tokens that share a scale per channel, or 1: then channels share it
    Scale scale;
    Type kept;           // of the scales
    int32_t kept_count;  // arrays of them
    int32_t exact;       // codes are taken against the exact scale, not against the one that is kept
    int32_t half_up;     // else halves to even
    int32_t mantissa, lowest;  // of an 8-bit float: its bits, and the exponent of the smallest normal value
    float largest, smallest;   // the largest code, the smallest scale
    float outermost;           // level
    const float *edges, *levels;  // 2^bits − 1 boundaries and 2^bits levels, with 16 more readable behind
    const int32_t* channel;       // where each channel goes before it is rotated; null is where it is
    const float* mean;            // [kv_heads, head_dim] to subtract, or null
    const float* head_scale;      // [kv_heads], or null
    int32_t heads;                // that mean and head_scale have
    Turn turn;
    int32_t turned;               // channels that are rotated together
    const double *before, *after;  // hadamard: y = after · H (before · x), [dim] each
    const double* matrices;        // dense: [matrix_count, turned, turned]
    int32_t matrix_count;          // block i takes matrix i mod matrix_count
    const int32_t* natural;        // 0, 1, 2 ..: the order of the scales
    int32_t planes;
    Plane plane[kPlanes];
};

struct Input {
    const void* x;
    Type type;
    int64_t batch, heads, tokens;
    int64_t stride[4];  // in elements
};

struct Output {
    uint8_t* planes[kPlanes];
    uint8_t* kept[kKept];
};

}  // namespace tqb
