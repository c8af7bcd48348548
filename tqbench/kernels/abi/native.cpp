// What tells the caller whether both sides mean the same structures.
#include "attend/call.hpp"
#include "encode/plan.hpp"

#include <cstddef>

// The sizes of all structures that cross the C interface, folded into one number; kernels/native.py folds those of its own in this order.
extern "C" uint64_t tqbench_abi() {
    using namespace tqb;
    const std::size_t sizes[] = {sizeof(Plane), sizeof(Plan),  sizeof(Input), sizeof(Output),     sizeof(Format),
                                 sizeof(Array), sizeof(Packed), sizeof(Exact), sizeof(AttendSide), sizeof(AttendCall)};
    uint64_t folded = 0;
    for (const std::size_t size : sizes) folded = folded * 1000003 + size;
    return folded;
}
