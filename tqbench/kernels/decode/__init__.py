"""Decode: a codec's arrays back to [batch, kv_heads, tokens, head_dim].  decode(codec, packed, head_dim, like) -> tensor like `like`."""

from __future__ import annotations

from typing import Any

from tqbench.core.codec import Codec
from tqbench.core.op import Impl, Op, Place
from tqbench.kernels import native, triton


def _load_native() -> Any:
    from tqbench.kernels.decode._native import decode

    return decode


def _load_reference() -> Any:
    from tqbench.kernels.decode.reference import decode

    return decode


def _load_host() -> Any:
    from tqbench.kernels._host import decode

    return decode


def _refuses(codec: Codec, place: Place) -> str | None:
    from tqbench.kernels.decode._native import refuses

    if place.device != "cpu" or place.dtype == "float64":
        return f"runs on the CPU in float32, not on {place.device} in {place.dtype}"
    return native.missing() or refuses(codec, place.head_dim)


def _load_triton() -> Any:
    from tqbench.kernels.decode._triton import decode

    return decode


def _refuses_triton(codec: Codec, place: Place) -> str | None:
    if reason := triton.refuses(place):
        return reason
    from tqbench.kernels.decode._triton import refuses

    return refuses(codec, place.head_dim)


OP = Op(
    "decode",
    (
        Impl("native", _load_native, _refuses),
        Impl("triton", _load_triton, _refuses_triton),
        Impl("reference", _load_reference),
        Impl("reference (host)", _load_host, platform="mlx"),
    ),
)
