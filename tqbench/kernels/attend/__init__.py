"""Attention over a cache that is partly packed: exact sinks, packed middle, exact recent tokens, with a boundary per query.

    attend(q, k, v, start, scale, softcap=None) -> [batch, heads, queries, head_dim]

q is [batch, heads, queries, head_dim] for the positions start, start + 1, …; k and v are `View`s of everything up to the last query.
The query at position t sees each key j ≤ t: packed where sinks ≤ j < k.bounds[t − start], exact elsewhere; likewise for values. In a
sliding window it sees only j > t − reach. A softcap turns each score s into softcap · tanh(s / softcap).

What a query does not see has no weight, which is a factor of zero in some forms: a NaN or an infinity among values at a later position may
reach earlier queries of the same call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tqbench.core.codec import Codec, Packed
from tqbench.core.op import Impl, Op, Place
from tqbench.kernels import native, triton


@dataclass(frozen=True)
class View:
    """What one side of a store shows to a block of queries."""

    sinks: Any  # exact [batch, kv_heads, s, head_dim], or None
    packed: Callable[[], Any]  # decodes the positions [s, packed_end): [batch, kv_heads, packed_end - s, head_dim]
    packed_end: int
    tail: Any  # exact, from tail_start to the last query
    tail_start: int
    bounds: Sequence[int]  # per query: where its packed region ends; never below the sinks
    reach: int | None = None  # of a sliding window; None is all
    codec: Codec | None = None  # of what is packed
    stored: Callable[[], Packed] | None = None  # its arrays as they lie in the store, for forms that read codes


def _load_native() -> Any:
    from tqbench.kernels.attend._native import attend

    return attend


def _load_fast() -> Any:
    from tqbench.kernels.attend._native import attend_fast

    return attend_fast


def _refuses(codec: Codec, place: Place) -> str | None:
    from tqbench.kernels.packed import refuses

    return _out_of_place(place) or refuses(codec, place.head_dim)


def _refuses_fast(codec: Codec, place: Place) -> str | None:
    from tqbench.kernels.packed import refuses_fast

    return _out_of_place(place) or refuses_fast(codec, place.head_dim)


def _load_triton() -> Any:
    from tqbench.kernels.attend._triton import attend

    return attend


def _refuses_triton(codec: Codec, place: Place) -> str | None:
    from tqbench.kernels.packed import refuses

    return _before_rope(place) or triton.refuses(place) or refuses(codec, place.head_dim)


def _before_rope(place: Place) -> str | None:
    return "keys are packed before RoPE, and turned by their positions when they are decoded" if place.pre_rope else None


def _out_of_place(place: Place) -> str | None:
    if place.device != "cpu" or place.dtype == "float64":
        return f"runs on the CPU in float32, not on {place.device} in {place.dtype}"
    return _before_rope(place) or native.missing()


def _load_torch() -> Any:
    from tqbench.kernels.attend._torch import attend

    return attend


def _load_mlx() -> Any:
    from tqbench.kernels.attend._mlx import attend

    return attend


def _load_reference() -> Any:
    from tqbench.kernels.attend.reference import attend

    return attend


def _load_host() -> Any:
    from tqbench.kernels.attend._host import attend

    return attend


# Of the native form, for scores of a few units: queries, weights and levels are integers of at most 16 bits. Where few channels of a query
# stand out, more than 16 times what the others are on average (and keys are as small there), what rounding left over is multiplied too.
PRECISE = 2e-4
FAST = 4e-2  # of its fast form, where all three are of 8 bits (7 without byte products); only who asks for it gets it
# Of the Triton form in 16 bits: queries, levels that are multiplied with their scales, and weights are rounded to halves.
HALVES = 1e-3
REFERENCE = {"torch": "reference", "mlx": "reference (host)"}
OP = Op(
    "attend",
    (
        Impl("native", _load_native, _refuses, error=PRECISE),
        Impl("native_fast", _load_fast, _refuses_fast, error=FAST),
        Impl("triton", _load_triton, _refuses_triton, error=HALVES, exact_in=("float32",)),
        Impl("torch", _load_torch),
        Impl("reference", _load_reference),
        Impl("mlx", _load_mlx, platform="mlx"),
        Impl("reference (host)", _load_host, platform="mlx"),
    ),
)
