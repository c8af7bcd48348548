"""Pack bits: uint8 codes of 1 to 8 bits into one bit stream along a dimension, least significant bit first, and back.

pack(codes, bits, dim=-1) -> bytes, and unpack(packed, bits, dim=-1) -> codes.
"""

from __future__ import annotations

from typing import Any

from tqbench.core.codec import Codec
from tqbench.core.op import Impl, Op, Place
from tqbench.kernels import native


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


def _refuses(codec: Codec, place: Place) -> str | None:  # noqa: ARG001 - the operation is the same for every codec
    return f"runs on the CPU, not on {place.device}" if place.device != "cpu" else native.missing()


PACK = Op("packbits", (Impl("native", _pack_native, _refuses), Impl("reference", _pack_reference)))
UNPACK = Op("unpackbits", (Impl("native", _unpack_native, _refuses), Impl("reference", _unpack_reference)))
