// One call of attention over a cache that is partly packed; see attend/__init__.py for what it means.
#pragma once

#include "packed/format.hpp"

namespace tqb {

struct AttendSide {
    Exact sinks, tail;
    Packed packed;
    int64_t packed_end, tail_start;  // positions
    const float* basis;              // [stored dim, head_dim]: x ≈ basisᵀ · y + offset; null where y is x
    const float* offset;             // [kv_heads, head_dim], or null
    const int64_t* bounds;           // per query
};

struct AttendCall {
    int64_t batch, heads, kv_heads, queries, head_dim, start, reach;  // reach: 2^62 where a query sees all
    float scale, softcap;                                             // softcap: 0 is none
    const float* q;                                                   // [batch, heads, queries, head_dim]
    float* out;                                                       // the same
    AttendSide k, v;
    int64_t split;  // tokens per task, or 0 to choose
};

}  // namespace tqb
