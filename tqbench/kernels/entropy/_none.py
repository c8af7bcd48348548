"""The bytes as they are."""

from __future__ import annotations

from tqbench.kernels.entropy import Grain

ERRORS = ()


def encode(data: bytes, level: int | None, grain: Grain) -> bytes:  # noqa: ARG001 - the same for every coder
    return data


def decode(body: memoryview, size: int, grain: Grain) -> bytes:  # noqa: ARG001
    return bytes(body)
