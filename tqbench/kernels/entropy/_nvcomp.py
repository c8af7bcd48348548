"""DEFLATE on a CUDA device by nvCOMP, in its own framing: the input is cut into pieces that are coded at the same time.

Written after nvCOMP's documentation and never run: no machine of this project has had a CUDA device and the package together.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tqbench.kernels.entropy import Grain

ERRORS = ()  # nvCOMP raises RuntimeError


def _codec() -> tuple[Any, Any]:
    from nvidia import nvcomp

    return nvcomp, nvcomp.Codec(algorithm="Deflate")


def encode(data: bytes, level: int | None, grain: Grain) -> bytes:  # noqa: ARG001 - the same for every coder
    if not data:
        return b""
    nvcomp, codec = _codec()
    return bytes(codec.encode(nvcomp.as_array(np.frombuffer(data, dtype=np.uint8)).cuda()).cpu())


def decode(body: memoryview, size: int, grain: Grain) -> bytes:  # noqa: ARG001
    if not size:
        return b""
    nvcomp, codec = _codec()
    return bytes(codec.decode(nvcomp.as_array(np.frombuffer(body, dtype=np.uint8)).cuda()).cpu())
