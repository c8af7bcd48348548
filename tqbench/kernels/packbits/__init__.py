"""Pack bits: uint8 codes of 1 to 8 bits into one bit stream along a dimension, least significant bit first, and back.

pack(codes, bits, dim=-1) -> bytes, and unpack(packed, bits, dim=-1) -> codes.
Mixed widths of 0 to 16 bits, one for each component of each head, codes as int32 [batch, heads, units, components, count]:
pack_mixed(codes, widths, size) -> bytes [batch, heads, units, size], and unpack_mixed(packed, widths, count) -> codes.
"""

from __future__ import annotations

from typing import Any

from tqbench.core.codec import Codec
from tqbench.core.op import Impl, Op, Place
from tqbench.kernels import native, triton


def _pack_native() -> Any:
    from tqbench.kernels.packbits._native import pack

    return pack


def _unpack_native() -> Any:
    from tqbench.kernels.packbits._native import unpack

    return unpack


def _pack_reference() -> Any:
    from tqbench.codecs.blocks.packing import pack

    return pack


def _unpack_reference() -> Any:
    from tqbench.codecs.blocks.packing import unpack

    return unpack


def _mixed_native(name: str) -> Any:
    from tqbench.kernels.packbits import _native

    return getattr(_native, name)


def _mixed_triton(name: str) -> Any:
    from tqbench.kernels.packbits import _triton

    return getattr(_triton, name)


def _mixed_torch(name: str) -> Any:
    from tqbench.codecs.blocks import packing

    return getattr(packing, name)


def _mixed_reference(name: str) -> Any:
    from tqbench.kernels.packbits import reference

    return getattr(reference, name)


def _refuses(codec: Codec, place: Place) -> str | None:  # noqa: ARG001 - the operation is the same for every codec
    return f"runs on the CPU, not on {place.device}" if place.device != "cpu" else native.missing()


def _refuses_triton(codec: Codec, place: Place) -> str | None:  # noqa: ARG001
    return triton.refuses(place)


PACK = Op("packbits", (Impl("native", _pack_native, _refuses), Impl("reference", _pack_reference)))
UNPACK = Op("unpackbits", (Impl("native", _unpack_native, _refuses), Impl("reference", _unpack_reference)))
PACK_MIXED, UNPACK_MIXED = (
    Op(
        name,
        (
            Impl("native", lambda name=name: _mixed_native(name), _refuses),  # type: ignore[misc]
            Impl("triton", lambda name=name: _mixed_triton(name), _refuses_triton),  # type: ignore[misc]
            Impl("torch", lambda name=name: _mixed_torch(name)),  # type: ignore[misc]
            Impl("reference", lambda name=name: _mixed_reference(name)),  # type: ignore[misc]
        ),
    )
    for name in ("pack_mixed", "unpack_mixed")
)
