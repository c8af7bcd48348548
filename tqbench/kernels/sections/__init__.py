"""Sections: rows of values as uniform codes, each row with its own number of bits, minimum and step, and back.

quantize(rows, widths) -> (codes, minima, steps), rows [batch, heads, units, components, tokens], widths the bits of each head's components;
dequantize(codes, minima, steps, dtype) -> rows.
"""

from __future__ import annotations

from typing import Any

from tqbench.core.codec import Codec
from tqbench.core.op import Impl, Op, Place
from tqbench.kernels import native, triton


def _load_native(name: str) -> Any:
    from tqbench.kernels.sections import _native

    return getattr(_native, name)


def _load_triton(name: str) -> Any:
    from tqbench.kernels.sections import _triton

    return getattr(_triton, name)


def _load_torch(name: str) -> Any:
    from tqbench.codecs.blocks import sections

    return getattr(sections, name)


def _load_reference(name: str) -> Any:
    from tqbench.kernels.sections import reference

    return getattr(reference, name)


def _refuses(codec: Codec, place: Place) -> str | None:  # noqa: ARG001 - the operation is the same for every codec
    if place.device != "cpu" or place.dtype == "float64":
        return f"runs on the CPU in float32, not on {place.device} in {place.dtype}"
    return native.missing()


def _refuses_triton(codec: Codec, place: Place) -> str | None:  # noqa: ARG001
    return triton.refuses(place)


QUANTIZE, DEQUANTIZE = (
    Op(
        f"{name}_sections",
        (
            Impl("native", lambda name=name: _load_native(name), _refuses),  # type: ignore[misc]
            Impl("triton", lambda name=name: _load_triton(name), _refuses_triton),  # type: ignore[misc]
            Impl("torch", lambda name=name: _load_torch(name)),  # type: ignore[misc]
            Impl("reference", lambda name=name: _load_reference(name)),  # type: ignore[misc]
        ),
    )
    for name in ("quantize", "dequantize")
)
