"""Zstandard."""

from __future__ import annotations

import zstandard

from tqbench.core.errors import StorageError
from tqbench.kernels.entropy import Grain

ERRORS = (zstandard.ZstdError,)


def encode(data: bytes, level: int | None, grain: Grain) -> bytes:  # noqa: ARG001 - the same for every coder
    return zstandard.ZstdCompressor(level=3 if level is None else level).compress(data)


def decode(body: memoryview, size: int, grain: Grain) -> bytes:  # noqa: ARG001
    """The frame says how much it takes, and that is asked first."""
    if (says := zstandard.frame_content_size(body)) != size:
        raise StorageError(f"a stream of coder 'zstd' says that it stands for {says} bytes, {size} were expected")
    return zstandard.ZstdDecompressor().decompress(body, allow_extra_data=False)
