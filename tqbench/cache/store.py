"""One layer's K and V under a scheme: append, pack by policy, answer queries, count every byte.

Strict by construction: the query at position t sees the packed region that `Side.packed(t)` names, whatever chunk it arrived in. Tokens
are encoded once, when the policy says so, and never again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, lcm
from typing import Any, Literal

from tqbench.cache import state
from tqbench.cache.agreement import agreement
from tqbench.cache.arrays import Arrays
from tqbench.cache.build import Layer, Shape, build, rope_of
from tqbench.cache.shared import Shared
from tqbench.cache.side import LARGEST, Kernels, SideStore
from tqbench.cache.wanted import Wanted
from tqbench.core.errors import EvidenceError, StorageError
from tqbench.core.evidence import SideEvidence
from tqbench.core.op import Choice, Place
from tqbench.core.scheme import Scheme, Side
from tqbench.core.session import Terms
from tqbench.core.state import SIDES, Agreement, Entry
from tqbench.kernels import attend, decode, encode
from tqbench.kernels.attend import View
from tqbench.measure.stages import stage

# Of the attention's output against the reference on the same packed data, relative: a kernel computes in float32 at least, and its
# result is rounded to the model's dtype.
LARGE_SCORES = 2  # what a kernel says of itself holds for scores of a few units; those of real models are larger
ATTEND_ERROR = {"float64": 1e-9, "float32": 1e-4, "float16": 5e-3, "bfloat16": 3e-2}


@dataclass(frozen=True)
class _Call:
    """A call of attention: its queries, what came out, scale and softcap, and what it saw of K and V."""

    q: Any
    out: Any
    how: tuple[float, ...]
    views: tuple[View, View]


class Store:
    """The KV cache of one layer."""

    def __init__(
        self,
        scheme: Scheme,
        shape: Shape,
        arrays: Arrays,
        terms: Terms = Terms(),
        layer: Layer = Layer(),
        shared: Shared | None = None,  # of the stores of one sequence; alone, this is the only layer
    ):
        self.scheme, self.layer, self.shape, self.arrays = scheme, layer, shape, arrays
        self.shared = shared or Shared(1)
        self.k, self.v = self._side("k", terms), self._side("v", terms)
        wanted = Wanted(terms.kernel)
        place = Place(arrays.platform, arrays.device, shape.dtype, shape.head_dim)
        for half in (self.k, self.v):
            plain = encode.OP.resolve(half.codec, attend.REFERENCE[arrays.platform], place)
            half.use(Kernels(wanted.pick(encode.OP, half.codec, place), wanted.pick(decode.OP, half.codec, place), plain))
        codecs, place = (self.k.codec, self.v.codec), dataclasses.replace(place, pre_rope=bool(self.k.rope or self.v.rope))
        self.attention = wanted.pick(attend.OP, codecs, place)
        self.shown = Choice("attend", "engine", _everything)
        self.reference = attend.OP.resolve(codecs, attend.REFERENCE[arrays.platform], place)
        self.attend_error: float | None = None
        self.unchecked = True  # compared with the reference at the first packed call, and again once tokens have been forgotten
        self.quiet = terms.quiet  # then the last call is kept instead, for `verify`
        self.last: _Call | None = None
        wanted.check()
        self.queries = 0

    def _side(self, name: Literal["k", "v"], terms: Terms) -> SideStore:
        if self.scheme.across_layers(name):
            return self.shared.member(self.scheme, name, self.shape, self.layer, self.arrays, terms)
        side: Side = getattr(self.scheme, name)
        return SideStore(
            side,
            build(self.scheme, name, self.shape, self.layer, terms.calibration),
            self.scheme.sinks,
            self.shape,
            self.layer,
            self.arrays,
            terms.protocol,
            rope_of(side, self.shape, self.scheme.bypass),
            terms.quiet,
        )

    @property
    def tokens(self) -> int:
        """Tokens appended."""
        return self.k.tokens

    @property
    def through_engine(self) -> bool:
        """Whether the engine's own attention reads the store: only in the identity control, so that its zero is exact."""
        return self.scheme.bypass == "identity"

    def append(self, keys: Any, values: Any) -> None:
        """Take the K and V of the next tokens and pack what the policy says."""
        if self.queries != self.tokens:
            late = self.tokens - self.queries
            raise EvidenceError(f"layer {self.layer.index}: {late} tokens were appended and never attended through the store")
        with stage("append"):
            if self.quiet:  # not before: `verify` wants what the last queries saw
                self._forget()
            self.k.append(keys)
            self.v.append(values)

    def take(self, keys: Any, values: Any, start: int = 0) -> None:
        """Take over a context whose first token is at that position: packed by policy, and attended by nobody here."""
        for side in (self.k, self.v):
            side.begin_at(start)
        self.queries = start
        self.append(keys, values)
        for side in (self.k, self.v):
            side.unattended()
        self._settle(keys.shape[2])

    def reserve(self, tokens: int) -> None:
        """Buffers that hold so many more tokens without growing."""
        self.k.reserve(tokens)
        self.v.reserve(tokens)

    def hand_out(self) -> list[Entry]:
        """What it holds, to be saved: settled, so every token has been attended or taken over."""
        if self.queries != self.tokens:
            raise EvidenceError(
                f"layer {self.layer.index}: {self.tokens - self.queries} tokens wait to be attended before anything is saved"
            )
        return [state.hand_out(getattr(self, name), f"{self.layer.index}.{name}") for name in SIDES]

    def take_back(self, entries: Mapping[str, Entry]) -> None:
        """What was saved, into an empty store: attended by nobody here."""
        for name in SIDES:
            state.take_back(getattr(self, name), entries[f"{self.layer.index}.{name}"])
        if self.k.tokens != self.v.tokens:
            raise StorageError(f"layer {self.layer.index} has {self.k.tokens} keys and {self.v.tokens} values")
        self.queries = self.k.tokens

    def agreement(self, keys: Any, values: Any, start: int = 0) -> list[Agreement]:
        """What it holds beside exact keys and values, of which the first are at position `start`."""
        return [agreement(side, name, x, start) for side, name, x in zip((self.k, self.v), SIDES, (keys, values), strict=True)]

    def attend(self, q: Any, scale: float, softcap: float | None = None) -> Any:
        """Attention of the queries that belong to the tokens appended last."""
        self._expect(q.shape[2])
        if self.scheme.logits and not self.scheme.bypass:
            keys = range(self.queries + 1, self.queries + q.shape[2] + 1)
            q = self.arrays.scaled(q, [self.scheme.logits.factor(min(n, self.layer.reach or n)) for n in keys])
        how = (scale,) if softcap is None else (scale, softcap)
        views = self.k.view(), self.v.view()
        with stage("attend"):
            out = self.arrays.ready(self.attention(q, *views, self.queries - self.k.base, *how))
        if (self.quiet or self.unchecked) and self.k.units and self.v.units:
            self.last = _Call(q, out, how, views)
        if not self.quiet:
            self._compare()
        self._settle(q.shape[2])
        return out

    def verify(self) -> None:
        """Make up for what quiet left out: the last call against the reference, and the error of what was packed."""
        self._compare()
        for side in (self.k, self.v):
            side.catch_up()

    def _compare(self) -> None:
        """Recompute the last query by the reference: what the kernel put out must follow from what is packed."""
        if self.last is None:
            return
        call, sides = self.last, (self.k, self.v)
        views = [dataclasses.replace(v, packed=side.decoded, bounds=v.bounds[-1:]) for side, v in zip(sides, call.views, strict=True)]
        expected = self.reference.fn(call.q[:, :, -1:], *views, self.tokens - 1 - self.k.base, *call.how)
        wrong, size = self.arrays.squares(expected, call.out[:, :, -1:])
        error = (wrong / size) ** 0.5 if size else wrong
        error = error if isfinite(error) else LARGEST
        self.attend_error, self.unchecked, self.last = max(error, self.attend_error or 0.0), False, None

    def visible(self) -> tuple[Any, Any]:
        """All keys and values that the last queries see, for the engine's own attention."""
        keys, values = self.shown(self.k, self.v)
        self._settle(self.tokens - self.queries)
        return keys, values

    def _expect(self, queries: int) -> None:
        if self.queries + queries != self.tokens:
            raise EvidenceError(f"layer {self.layer.index}: {queries} queries for {self.tokens - self.queries} new tokens")

    def _settle(self, queries: int) -> None:
        self._expect(queries)
        self.queries = self.tokens
        with stage("settle"):
            self.k.settle()
            self.v.settle()
            if not self.quiet:
                self._forget()

    def _forget(self) -> None:
        """In a sliding window, drop what no later query sees: whole units of both sides, and not before it is as much as is kept."""
        free, unit = min(self.k.forgettable(), self.v.forgettable()), lcm(self.k.codec.unit, self.v.codec.unit)
        whole = (self.k.base + free - self.k.begin) // unit * unit
        if self.layer.reach is not None and whole >= self.layer.reach:
            self.unchecked |= not self.k.base
            self.last = None  # what it saw is gone
            position = self.k.begin + whole
            self.k.forget(position)
            self.v.forget(position)

    def evidence(self) -> tuple[SideEvidence, SideEvidence]:
        """What happened to K and to V."""
        attention = self.shown if self.shown.calls else self.attention
        scheme, dtype = self.scheme, self.shape.dtype
        counts = scheme.role == "own" or (scheme.role == "instead" and not scheme.lossless_in(dtype))
        about: dict[str, Any] = {
            "scheme": scheme.name,
            "counts": counts,
            "attend_error": self.attend_error,
            "attend_limit": max(ATTEND_ERROR[dtype], LARGE_SCORES * attention.error),
        }
        k, v = (side.evidence(name, self.layer.index, attention) for name, side in (("k", self.k), ("v", self.v)))
        return dataclasses.replace(k, **about), dataclasses.replace(v, **about)


def _everything(k: SideStore, v: SideStore) -> tuple[Any, Any]:
    return k.everything(), v.everything()
