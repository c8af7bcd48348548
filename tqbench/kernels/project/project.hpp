// What both directions of the projection share: the sizes of one section, and how the matrix lies.
#pragma once

#include <stdint.h>

namespace tqb {

constexpr int64_t kTile = 8;       // rows of a product that lie side by side in its left factor
constexpr int64_t kTokens = 16;    // columns of a panel of vectors, on the way in
constexpr int64_t kChannels = 32;  // columns of a panel of the matrix, on the way out

struct Section {
    int64_t tokens, dim, components;
    int64_t stride;      // between vectors of x
    const double* mean;  // on the way in
};

}  // namespace tqb
