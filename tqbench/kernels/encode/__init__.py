"""Encode: [batch, kv_heads, tokens, head_dim] into a codec's arrays.  encode(codec, x) -> Packed."""

from __future__ import annotations

from typing import Any

from tqbench.core.codec import Codec
from tqbench.core.op import Impl, Op, Place
from tqbench.kernels import native, triton


def _load_native() -> Any:
    from tqbench.kernels.encode._native import encode

    return encode


def _load_projected() -> Any:
    from tqbench.kernels.encode._projected import encode

    return encode


def _load_reference() -> Any:
    from tqbench.kernels.encode.reference import encode

    return encode


def _load_host() -> Any:
    from tqbench.kernels._host import encode

    return encode


def _refuses(codec: Codec, place: Place) -> str | None:
    from tqbench.kernels.encode._native import supports

    if place.device != "cpu" or place.dtype == "float64":
        return f"runs on the CPU in float32, not on {place.device} in {place.dtype}"
    return native.missing() or supports(codec)


def _refuses_projected(codec: Codec, place: Place) -> str | None:
    from tqbench.kernels.encode._projected import refuses

    return f"sums in float32, not in {place.dtype}" if place.dtype == "float64" else refuses(codec)


def _load_triton() -> Any:
    from tqbench.kernels.encode._triton import encode

    return encode


def _refuses_triton(codec: Codec, place: Place) -> str | None:
    if reason := triton.refuses(place):
        return reason
    from tqbench.kernels.encode._triton import refuses

    return refuses(codec)


OP = Op(
    "encode",
    (
        Impl("native", _load_native, _refuses),
        Impl("triton", _load_triton, _refuses_triton, fills=True),
        Impl("projected", _load_projected, _refuses_projected),
        Impl("reference", _load_reference),
        Impl("reference (host)", _load_host, platform="mlx"),
    ),
)
