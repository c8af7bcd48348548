"""Decoding steps that are captured round by round and run again as often as wanted.

The host's bookkeeping (positions, lengths, evidence) happens once, while a step is captured; run again, a step does its device work alone,
with the positions that it was captured with. That comes out the same every time if whatever was there before the first step stays as it
was, which stores and the baseline's buffers keep by appending. Nothing here believes it: the same tokens run uncaptured first, what that
wrote is wiped, and afterwards every step must have chosen what it chose then, to the last bit of its logits the first time and the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from backends.transformers.cache import StoreCache
from backends.transformers.in_place import InPlaceCache
from tqbench.cache.snapshot import Snapshot, parts
from tqbench.core.errors import EvidenceError, Unsupported
from tqbench.core.evidence import SideEvidence
from tqbench.core.session import Ids
from tqbench.measure import trace
from tqbench.measure.graphs import Recorder

Cache = StoreCache | InPlaceCache
Step = Callable[[int], tuple[Tensor, Tensor]]  # runs a token; what it chooses, and its logits


class Stretch:
    """The next tokens of a text through a cache, in rounds of so many."""

    def __init__(self, step: Step, cache: Cache, tokens: Ids, together: int, recorder: Recorder):
        self.step, self.cache, self.tokens, self.recorder = step, cache, tokens, recorder
        self.pieces = [tokens[i : i + together] for i in range(0, len(tokens), together)]
        self.name = f"{cache.layers[0].keys.dtype} in place".removeprefix("torch.") if isinstance(cache, InPlaceCache) else "store"
        self.chosen: list[Tensor] = []
        self.before = Snapshot(_parts(cache))  # kept: what the first steps read must stay alive
        self.attention = self._rehearse(lambda: trace.attention(lambda: self._steps(tokens[:1])))
        self._rehearse(lambda: self._steps(tokens))  # what is made once is made here
        self.expected = self._rehearse(self._chosen, strictly=True)
        behind = _behind(cache)
        self.replays = [recorder.capture(lambda piece=piece: self._keep(piece)) for piece in self.pieces]  # type: ignore[misc]
        for rows in behind:
            rows.zero_()
        self.first: Tensor | None = None  # the last step's logits, after the first run through

    def _rehearse(self, work: Callable[[], Any], *, strictly: bool = False) -> Any:
        try:
            return self.recorder.rehearse(work, strictly=strictly)
        finally:
            self.before.restore()

    def _steps(self, tokens: Ids) -> list[tuple[Tensor, Tensor]]:
        return [self.step(int(token)) for token in tokens]

    def _chosen(self) -> Tensor:
        return torch.stack([choice for choice, _ in self._steps(self.tokens)])

    def _keep(self, piece: Ids) -> None:
        found = self._steps(piece)
        self.chosen += [choice for choice, _ in found]
        self.logits = found[-1][1]

    @property
    def rounds(self) -> int:
        """How many."""
        return len(self.pieces)

    def replay(self, number: int) -> None:
        """Run a round again; all of them, in their order."""
        self.replays[number]()

    @torch.inference_mode()
    def check(self) -> None:
        """After a run through all rounds: every step chose what it chose uncaptured, and the last logits are those of the first run."""
        found, expected = torch.stack(self.chosen).tolist(), self.expected.tolist()
        if wrong := [i for i, (x, y) in enumerate(zip(found, expected, strict=True)) if x != y]:
            raise EvidenceError(
                f"captured steps do not choose what they choose uncaptured: {len(wrong)} of {len(found)}, the first is step {wrong[0]}"
            )
        if self.first is None:
            self.first = self.logits.clone()
        elif not torch.equal(self.first, self.logits):
            raise EvidenceError("captured steps do not come out the same every time: the logits of the last one have changed")

    @torch.inference_mode()
    def evidence(self) -> list[SideEvidence]:
        """The last step's attention by the reference, from the memory that was written last; and what the host counted while capturing."""
        self.cache.verify()
        return self.cache.evidence()


def _parts(cache: Cache) -> Iterator[Any]:
    if isinstance(cache, InPlaceCache):
        yield from cache.layers
    else:
        yield from parts(cache.stores)


def _behind(cache: Cache) -> list[Tensor]:
    """What lies in the buffers of a cache behind all that it holds: rehearsals have written there."""
    if isinstance(cache, InPlaceCache):
        return [buffer[:, :, layer.tokens :] for layer in cache.layers for buffer in (layer.keys, layer.values)]
    sides = [side for store in cache.stores for side in (store.k, store.v)]
    return [buffer[:, :, side.units :] for side in sides for buffer in side.buffers.values()]


def ready(cache: Any, tokens: int) -> StoreCache:
    """A scheme's cache with room for so many tokens more."""
    if not isinstance(cache, StoreCache):
        raise Unsupported("another library's cache is not captured: what it keeps on the host is not known here")
    if cache.shared.sides:
        raise Unsupported("layers that pack together are not captured yet: their codec computes on the host")
    if other := sorted({type(layer).__name__ for layer in cache.layers if not hasattr(layer, "store")}):
        raise Unsupported(f"this model keeps {', '.join(other)} beside keys and values, which is changed in place and cannot be run again")
    if any(store.layer.reach is not None for store in cache.stores):
        raise Unsupported("sliding windows are not captured yet: what leaves them is moved, and their masks are read back")
    for store in cache.stores:
        store.reserve(tokens)
    return cache
