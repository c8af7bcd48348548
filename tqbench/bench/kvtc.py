"""Compress and decompress the keys and values of many layers as `kvtc_lite` does: its stages in every form, and RoPE beside them.

The loops run on two layers of two heads, where all forms run once more: they would take an hour on all of them. Keys and values have
components of falling variance, as those of models do; each layer has learned its own from other vectors of the same kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from tqbench.bench.contender import PLACE, Contender, relative
from tqbench.bench.convert import CODES_OFF, DECODED_OFF, codes_off
from tqbench.bench.plan import Geometry, Plan
from tqbench.bench.result import Row
from tqbench.cache.rope import Rope
from tqbench.codecs.kvtc_lite import KvtcLite
from tqbench.core.codec import Packed, nbytes
from tqbench.core.scheme import Scheme
from tqbench.kernels import _sections, project

LAYERS, CALIBRATION = 32, 1024  # and tokens that each layer learns from
FEW_LAYERS, FEW_HEADS = 2, 2  # for the loops
DATA = "falling variance"
REFERENCE = "reference"
COMPARISONS = {"torch": "{scheme}/torch", "reference": f"{{scheme}}/{REFERENCE}"}
WORDS = {
    "native": "stages in form native",
    "torch": "stages in form torch",
    REFERENCE: "stages as loops over tokens, values and bits",
}
SPREAD = 2.0  # orders of magnitude between the largest and the smallest component
BASE = 10000.0
Direction = Literal["compress", "decompress"]


@dataclass(frozen=True)
class Half:
    """Keys or values of one layer, with the codec that stores them and what its reference makes of them."""

    codec: KvtcLite
    x: Tensor
    packed: Packed
    decoded: Tensor


def contenders(plan: Plan, tokens: int, note: Callable[[str], None]) -> list[Contender]:
    """RoPE, then every scheme with all heads and layers, and with few."""
    found = list(_rope(plan.geometry, tokens))
    for scheme in plan.schemes:
        if not all(type(side.codec) is KvtcLite for side in (scheme.k, scheme.v)):
            reason = "only schemes of codec kvtc_lite, with nothing wrapped around it, have these stages"
            found.append(Contender(Row(tokens, scheme.name, "–", "form", "no stages", "unsupported", reason), (), lambda _: 0.0))
            continue
        few = replace(plan.geometry, kv_heads=min(FEW_HEADS, plan.geometry.kv_heads))
        sizes = {"": (plan.geometry, LAYERS), f" {FEW_LAYERS}×{few.kv_heads}": (few, FEW_LAYERS)}
        for label, (geometry, layers) in sizes.items():
            note(f"learning and packing {scheme.name}{label}")
            halves = [half for layer in range(layers) for half in _layer(scheme, geometry, tokens, layer)]
            forms = _sections.FORMS if label else _sections.FORMS[:-1]
            found += [
                each
                for direction in ("compress", "decompress")
                for each in _forms(f"{scheme.name} {direction}{label}", direction, halves, forms)
            ]
    return found


def _layer(scheme: Scheme, g: Geometry, tokens: int, layer: int) -> Iterator[Half]:
    """K and V."""
    generator = torch.Generator().manual_seed(layer)
    for codec in (side.codec for side in (scheme.k, scheme.v) if isinstance(side.codec, KvtcLite)):
        turn = torch.randn(g.kv_heads, g.head_dim, g.head_dim, generator=generator)
        turn *= torch.logspace(0, -SPREAD / 2, g.head_dim)[:, None]
        whole = max(1, tokens // codec.section) * codec.section
        text, x = (
            torch.randn(batch, g.kv_heads, n, g.head_dim, generator=generator) @ turn for batch, n in ((1, CALIBRATION), (g.batch, whole))
        )
        ready = codec.calibrate(text)
        packed = ready.encode(x)
        yield Half(ready, x, packed, ready.decode(packed, g.head_dim, torch.float32))


def _forms(name: str, direction: Direction, halves: list[Half], forms: tuple[str, ...]) -> Iterator[Contender]:
    run, error = (_compress, _codes_error) if direction == "compress" else (_decompress, _values_error)
    first = halves[0]
    row = Row(
        first.x.shape[2],
        name,
        "",
        "form",
        "",
        tolerance=CODES_OFF if direction == "compress" else DECODED_OFF,
        quantization_error=max(relative(half.decoded, half.x) for half in halves),
        bytes_moved=sum(half.x.nbytes + nbytes(half.packed) for half in halves),
    )
    rivals = tuple(rival.format(scheme=name) for rival in COMPARISONS.values())
    for form in forms:
        impl = next(impl for impl in project.PROJECT.impls if impl.name == form)
        mine = replace(row, form=form, words=WORDS[form], role="baseline" if form == REFERENCE else "form")
        if reason := impl.refuses(first.codec, PLACE):
            yield Contender(replace(mine, outcome="unsupported", reason=reason), (), lambda _: 0.0)
        else:
            yield Contender(mine, [partial(run, halves, form)], partial(error, halves), rivals, staged=True)


def _compress(halves: list[Half], form: str) -> list[Packed]:
    return [_sections.encode(half.codec, half.x, form) for half in halves]


def _decompress(halves: list[Half], form: str) -> list[Tensor]:
    return [_sections.decode(half.codec, half.packed, half.x.shape[-1], form) for half in halves]


def _codes_error(halves: list[Half], packed: list[Packed]) -> float:
    return max(codes_off(mine, half.packed) for mine, half in zip(packed, halves, strict=True))


def _values_error(halves: list[Half], values: list[Tensor]) -> float:
    return max(relative(mine, half.decoded) for mine, half in zip(values, halves, strict=True))


def _rope(g: Geometry, tokens: int) -> Iterator[Contender]:
    """What `rope: pre` adds to both directions, for the keys of all layers; judged by undoing it."""
    rope = Rope(tuple(BASE ** (-2 * i / g.head_dim) for i in range(g.head_dim // 2)))
    keys = [torch.randn(g.batch, g.kv_heads, tokens, g.head_dim, generator=torch.Generator().manual_seed(i)) for i in range(LAYERS)]
    ways: tuple[tuple[str, str, Any, Any], ...] = (
        ("rope undo", "the rotary embedding taken out of the keys of all layers, in torch", rope.undo, rope.redo),
        ("rope redo", "the rotary embedding put back", rope.redo, rope.undo),
    )
    for name, words, way, back in ways:
        row = Row(tokens, None, name, "baseline", words, tolerance=DECODED_OFF, bytes_moved=2 * sum(x.nbytes for x in keys))
        yield Contender(row, [partial(_each, keys, way)], partial(_undone, keys, back))


def _each(keys: list[Tensor], way: Callable[[Tensor, int], Tensor]) -> list[Tensor]:
    return [way(x, 0) for x in keys]


def _undone(keys: list[Tensor], back: Callable[[Tensor, int], Tensor], turned: list[Tensor]) -> float:
    return max(relative(back(y, 0), x) for x, y in zip(keys, turned, strict=True))
