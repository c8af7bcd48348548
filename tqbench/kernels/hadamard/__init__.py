"""Hadamard: H x / √n along the last dimension, n a power of two, Sylvester's order.  hadamard(x) -> tensor like x."""

from __future__ import annotations

from typing import Any

from tqbench.core.codec import Codec
from tqbench.core.op import Impl, Op, Place
from tqbench.kernels import native


def _load_native() -> Any:
    from tqbench.kernels.hadamard._native import hadamard

    return hadamard


def _load_torch() -> Any:
    from tqbench.kernels.hadamard._torch import hadamard

    return hadamard


def _load_reference() -> Any:
    from tqbench.kernels.hadamard.reference import hadamard

    return hadamard


def _refuses(codec: Codec, place: Place) -> str | None:  # noqa: ARG001 - the operation is the same for every codec
    if place.device != "cpu" or place.dtype not in ("float32", "float64"):
        return f"runs on the CPU in float32 or float64, not on {place.device} in {place.dtype}"
    return native.missing()


OP = Op("hadamard", (Impl("native", _load_native, _refuses), Impl("torch", _load_torch), Impl("reference", _load_reference)))
