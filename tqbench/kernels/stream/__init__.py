"""Stream: all of a buffer read once by all threads, as fast as wide loads can. What it reaches is the ceiling of every kernel that reads
a cache."""

from __future__ import annotations

import ctypes

from torch import Tensor

from tqbench.core.errors import EvidenceError
from tqbench.kernels import native

WORD = 8  # bytes


def total(buffer: Tensor, threads: int) -> int:
    """The sum of a buffer's 8-byte words, modulo 2⁶⁴."""
    found, words = ctypes.c_uint64(), buffer.numel() * buffer.element_size() // WORD
    library = native.library()
    library.tqbench_stream_sum.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    status = library.tqbench_stream_sum(buffer.data_ptr(), words, threads, ctypes.byref(found))
    if status:
        raise EvidenceError(f"stream/native refused its arguments (status {status})")
    return found.value
