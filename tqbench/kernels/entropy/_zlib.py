"""DEFLATE of the standard library."""

from __future__ import annotations

import zlib

from tqbench.core.errors import StorageError
from tqbench.kernels.entropy import Grain

ERRORS = (zlib.error,)


def encode(data: bytes, level: int | None, grain: Grain) -> bytes:  # noqa: ARG001 - the same for every coder
    return zlib.compress(data, -1 if level is None else level)


def decode(body: memoryview, size: int, grain: Grain) -> bytes:  # noqa: ARG001
    """Memory is taken as output appears, and no more of it than one byte too much."""
    one = zlib.decompressobj()
    found = one.decompress(body, size + 1)
    if not one.eof or one.unused_data:
        raise StorageError("a stream of coder 'zlib' does not end where it should")
    return found
