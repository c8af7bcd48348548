// Working memory of one thread. Only for native.cpp files: variants take nothing from the standard library.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

namespace tqb {

// `size` elements, aligned to the widest register; `at` is null where there is no memory, for an exception must not leave a parallel region.
template <typename T>
struct Memory {
    T* at;
    explicit Memory(int64_t size) : at(static_cast<T*>(::operator new(std::size_t(size) * sizeof(T), std::align_val_t(64), std::nothrow))) {}
    ~Memory() { ::operator delete(at, std::align_val_t(64)); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
};

}  // namespace tqb
