"""What a run through captured steps comes out as, and whether that is what the same steps came out as uncaptured.

Not to the bit: a library may pick another algorithm while a stream is captured, and rounds elsewhere then. So there are limits, each far
below what comes of a step that was not run, or of a cache that was not written or not read. Logits alone would not do: those of a random
model hardly depend on a long context, while attention's output and what was written are relative to themselves. Run again, a graph repeats
its launches with the same arguments, and that comes out the same to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from backends.transformers.cache import StoreCache
from backends.transformers.in_place import InPlaceCache, InPlaceLayer
from tqbench.cache.side import SideStore
from tqbench.core.errors import EvidenceError

Cache = StoreCache | InPlaceCache
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}  # through all layers, relative
CODES = 0.25  # of a packed token, unpacked: rounding moves some of its codes by a step; nothing, or another token, is 1 and more off


@dataclass(frozen=True)
class Outcome:
    """What every step chose, and by its name whatever else is compared: in the model's dtype, and unpacked from codes."""

    chosen: Tensor
    parts: dict[str, Tensor]
    codes: dict[str, Tensor] = field(default_factory=dict)

    def clone(self) -> Outcome:
        """A copy, which the next run through does not write over."""
        parts, codes = ({name: part.clone() for name, part in one.items()} for one in (self.parts, self.codes))
        return Outcome(self.chosen.clone(), parts, codes)

    def off(self, expected: Outcome) -> float:
        """By how much at most it differs, codes aside; EvidenceError where that is no rounding."""
        found, wanted = self.chosen.tolist(), expected.chosen.tolist()
        if wrong := [i for i, (x, y) in enumerate(zip(found, wanted, strict=True)) if x != y]:
            raise EvidenceError(
                f"captured steps do not choose what they choose uncaptured: {len(wrong)} of {len(found)}, the first is step {wrong[0]}"
            )
        for name, part in self.codes.items():
            _off(name, part, expected.codes[name], CODES)
        return max(_off(name, part, expected.parts[name], ROUNDING[part.dtype]) for name, part in self.parts.items())

    def equals(self, other: Outcome) -> None:
        """EvidenceError unless it is the same to the bit."""
        known = other.parts | other.codes
        if changed := [name for name, part in (self.parts | self.codes).items() if not torch.equal(part, known[name])]:
            raise EvidenceError(f"captured steps do not come out the same every time: {changed[0]} changed")


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative, of the position that is furthest off; positions are the last dimension but one."""
    rest = tuple(i for i in range(found.ndim) if i != found.ndim - 2)
    wrong, size = ((x.double() ** 2).sum(rest).sqrt() for x in (found.double() - expected.double(), expected))
    return float((wrong / size.clamp_min(torch.finfo(torch.float64).tiny)).max())


def _off(name: str, found: Tensor, expected: Tensor, limit: float) -> float:
    if not (off := distance(found, expected)) <= limit:  # also true of NaN
        raise EvidenceError(f"captured steps do not come out as uncaptured: {name} is {off:.1e} off, at most {limit:.0e} is rounding")
    return off


class Behind:
    """What steps write into the buffers of a cache behind all that it holds now."""

    def __init__(self, cache: Cache):
        self.held = [(where, owner, _count(owner)) for where, owner in _owners(cache)]

    def wipe(self) -> None:
        """As if nothing had been written."""
        for _, owner, first in self.held:
            for rows in _rows(owner, first).values():
                rows.zero_()

    def add_to(self, outcome: Outcome) -> Outcome:
        """With what was written, by layer and side."""
        parts, codes = dict(outcome.parts), dict(outcome.codes)
        for where, owner, first in self.held:
            rows = _rows(owner, first)
            if isinstance(owner, InPlaceLayer):
                parts |= {f"what was written of the {name} of layer {where}": array for name, array in rows.items()}
            elif owner.units > first:
                codes[f"what was packed of {where}"] = owner.kernels.decode.fn(owner.codec, rows, owner.shape.head_dim, owner.tail)
        return Outcome(outcome.chosen, parts, codes)

    def packed(self) -> dict[str, list[int]]:
        """How many tokens were packed, by side, in each layer."""
        found: dict[str, list[int]] = {}
        for where, owner, first in self.held:
            if isinstance(owner, SideStore):
                found.setdefault(where[0].lower(), []).append((owner.units - first) * owner.codec.unit)
        return found


def _owners(cache: Cache) -> Iterator[tuple[str, InPlaceLayer | SideStore]]:
    if isinstance(cache, InPlaceCache):
        yield from ((str(index), layer) for index, layer in enumerate(cache.layers))
        return
    for store in cache.stores:
        yield from ((f"{name} of layer {store.layer.index}", side) for name, side in (("K", store.k), ("V", store.v)))


def _count(owner: InPlaceLayer | SideStore) -> int:
    return owner.tokens if isinstance(owner, InPlaceLayer) else owner.units


def _rows(owner: InPlaceLayer | SideStore, first: int) -> dict[str, Tensor]:
    buffers = {"keys": owner.keys, "values": owner.values} if isinstance(owner, InPlaceLayer) else owner.buffers
    return {name: buffer[:, :, first : _count(owner)] for name, buffer in buffers.items()}
