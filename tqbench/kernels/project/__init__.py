"""Project: vectors onto the principal components that codec `kvtc_lite` has learned, and back.

project(codec, x) -> rows [batch, heads, units, components, section], of the components that have bits in some head;
unproject(codec, rows, head_dim) -> x [batch, heads, tokens, head_dim].
"""

from __future__ import annotations

from typing import Any

from tqbench.core.codec import Codec
from tqbench.core.op import Impl, Op, Place
from tqbench.kernels import native


def _load_native(name: str) -> Any:
    from tqbench.kernels.project import _native

    return getattr(_native, name)


def _load_torch(name: str) -> Any:
    from tqbench.kernels.project import _torch

    return getattr(_torch, name)


def _load_reference(name: str) -> Any:
    from tqbench.kernels.project import reference

    return getattr(reference, name)


def _other(codec: Codec, place: Place) -> str | None:  # noqa: ARG001 - torch runs everywhere
    from tqbench.codecs.kvtc_lite import KvtcLite

    return None if type(codec) is KvtcLite else f"codec {codec.plain.name!r}, as it is wrapped here, is not kvtc_lite itself"


def refuses(codec: Codec, place: Place) -> str | None:
    """Why this codec is not projected natively, or None."""
    if place.device != "cpu" or place.dtype == "float64":
        return f"runs on the CPU in float32, not on {place.device} in {place.dtype}"
    return native.missing() or _other(codec, place)


PROJECT, UNPROJECT = (
    Op(
        name,
        (
            Impl("native", lambda name=name: _load_native(name), refuses),  # type: ignore[misc]
            Impl("torch", lambda name=name: _load_torch(name), _other),  # type: ignore[misc]
            Impl("reference", lambda name=name: _load_reference(name), _other),  # type: ignore[misc]
        ),
    )
    for name in ("project", "unproject")
)
