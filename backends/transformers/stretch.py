"""Decoding steps that are captured round by round and run again as often as wanted.

The host's bookkeeping (positions, lengths, evidence) happens once, while a step is captured; run again, a step does its device work alone,
with the positions that it was captured with. That comes out the same every time if whatever was there before the first step stays as it
was, which stores and the baseline's buffers keep by appending. Nothing here believes it: the same tokens run uncaptured first, and before
every run through all that they left is wiped: choices, logits, attention's output, what was written. It must all be there again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from backends.transformers.cache import StoreCache
from backends.transformers.in_place import InPlaceCache
from backends.transformers.outcome import ROUNDING, Behind, Cache, Outcome, distance
from tqbench.cache.snapshot import Snapshot, parts
from tqbench.core.errors import EvidenceError, Unsupported
from tqbench.core.evidence import SideEvidence
from tqbench.core.session import Ids
from tqbench.measure import trace
from tqbench.measure.graphs import Recorder

Step = Callable[[int], tuple[Tensor, Tensor]]  # runs a token; what it chooses, and its logits


class Stretch:
    """The next tokens of a text through a cache, in rounds of so many."""

    def __init__(self, step: Step, cache: Cache, tokens: Ids, together: int, recorder: Recorder, own: Step | None = None):
        self.step, self.cache, self.tokens, self.recorder = step, cache, tokens, recorder
        self.pieces = [tokens[i : i + together] for i in range(0, len(tokens), together)]
        self.name = f"{cache.layers[0].keys.dtype} in place".removeprefix("torch.") if isinstance(cache, InPlaceCache) else "store"
        self.before, self.behind = Snapshot(_parts(cache)), Behind(cache)  # kept: what the first steps read must stay alive
        self.attention, logits = self._rehearse(lambda: _seen(step, int(tokens[0])))
        if own is not None:
            self._compare(logits, *recorder.rehearse(lambda: _seen(own, int(tokens[0]))))
        self._rehearse(lambda: self._steps(tokens))  # what is made once is made here
        expected = self._rehearse(lambda: self._outcome([self._steps(piece) for piece in self.pieces]).clone(), strictly=True)
        self.found: list[list[tuple[Tensor, Tensor]]] = []  # by round: what each step chooses, and its logits
        self.replays = [recorder.capture(lambda piece=piece: self.found.append(self._steps(piece))) for piece in self.pieces]  # type: ignore[misc]
        self.expected = self.behind.add_to(expected).clone()  # a capture runs nothing: what is written there, the rehearsal wrote
        self.first: Outcome | None = None  # what the first run through came out as
        self.off = 0.0

    def _rehearse(self, work: Callable[[], Any], *, strictly: bool = False) -> Any:
        try:
            return self.recorder.rehearse(work, strictly=strictly)
        finally:
            self.before.restore()

    def _steps(self, tokens: Ids) -> list[tuple[Tensor, Tensor]]:
        return [self.step(int(token)) for token in tokens]

    def _compare(self, logits: Tensor, forms: dict[str, int], own: Tensor) -> None:
        """The first step here with that of the cache which this one stands for: a rival must be the same, read by the same attention."""
        if not (off := distance(logits, own)) <= ROUNDING[own.dtype]:
            raise EvidenceError(f"the model's own cache kept in place is not that cache: its logits are {off:.1e} off")
        if forms != self.attention:
            here, there = (" + ".join(names) or "none of torch's forms" for names in (self.attention, forms))
            raise Unsupported(f"the model's own cache is no fair rival in place: attention reads it by {here} there, and else by {there}")

    def _outcome(self, found: list[list[tuple[Tensor, Tensor]]]) -> Outcome:
        """Of the host's state after the last step."""
        parts = {f"the last logits of round {number}": steps[-1][1] for number, steps in enumerate(found)}
        stores = () if isinstance(self.cache, InPlaceCache) else self.cache.stores
        parts |= {f"the last attention of layer {store.layer.index}": store.last.out for store in stores if store.last is not None}
        return Outcome(torch.stack([choice for steps in found for choice, _ in steps]), parts)

    @property
    def rounds(self) -> int:
        """How many."""
        return len(self.pieces)

    @property
    def packed(self) -> dict[str, list[int]]:
        """How many tokens the steps pack, by side, in each layer."""
        return self.behind.packed()

    @torch.inference_mode()
    def begin(self) -> None:
        """Before a run through all rounds: nothing is left of the one before."""
        self.behind.wipe()
        for choice in (choice for steps in self.found for choice, _ in steps):
            choice.fill_(-1)
        for part in self._outcome(self.found).parts.values():
            part.fill_(torch.nan)

    def replay(self, number: int) -> None:
        """Run a round again; all of them, in their order."""
        self.replays[number]()

    @torch.inference_mode()
    def check(self) -> None:
        """After a run through all rounds: it came out as uncaptured, and as the first run through to the bit."""
        found = self.behind.add_to(self._outcome(self.found))
        self.off = max(self.off, found.off(self.expected))
        if self.first is None:
            self.first = found.clone()
        found.equals(self.first)

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


def _seen(step: Step, token: int) -> tuple[dict[str, int], Tensor]:
    """The forms of torch's attention in a step, and its logits."""
    found: list[tuple[Tensor, Tensor]] = []
    return trace.attention(lambda: found.append(step(token))), found[0][1]


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
