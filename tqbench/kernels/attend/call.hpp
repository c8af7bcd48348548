// One call of attention over a cache that is partly packed; see attend/__init__.py for what it means.
#pragma once

#include "packed/format.hpp"

namespace tqb {

struct AttendSide {
    Exact sinks, tail;
    Packed packed;
    int64_t packed_end, tail_start;  // positions
    const float* basis;              // x ≈ basis · y + offset; null where y is x. Of K [head_dim, stored dim], of V turned over
    const float* offset;             // [kv_heads, head_dim], or null
    const int64_t* bounds;           // per query
};

struct AttendCall {
    int64_t batch, heads, kv_heads, queries, head_dim, start, reach;  // reach: 2^40 where a query sees all
    float scale, softcap;                                             // softcap: 0 is none
    const float* q;                                                   // [batch, heads, queries, head_dim]
    float* out;                                                       // the same
    AttendSide k, v;
    int64_t split;   // tokens per task, or 0 to choose
    int64_t ahead;   // tokens between what is computed and what is fetched from memory, or 0 for none
    int32_t fast;    // 1: levels, queries and weights of 8 bits
    float sparse;    // values whose weight is less, relative to the largest so far, are left out; 0: none
    float* dropped;  // [batch, heads, queries]: the share of weight left out; or null
};

}  // namespace tqb
