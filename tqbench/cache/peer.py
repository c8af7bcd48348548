"""What another library's cache holds and what its attention reads, counted as our own store counts itself.

The library runs untouched. A watch stands where new keys and values go in and where attention takes what comes out. It keeps the first
exact vectors, so that what is packed can be compared with them; these belong to the instrument and are in no ledger.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

from tqbench.cache.arrays import Arrays
from tqbench.cache.build import Layer, Shape
from tqbench.cache.side import SAMPLED_TOKENS
from tqbench.codecs.peer import Peer
from tqbench.core.errors import EvidenceError, Unsupported
from tqbench.core.evidence import SideEvidence
from tqbench.core.scheme import Scheme
from tqbench.core.session import Protocol, Terms
from tqbench.core.state import State


@dataclass(frozen=True)
class Held:
    """One side of a layer as the library has it: tokens and bytes of the arrays that exist, and the first packed tokens decoded."""

    tokens: int = 0
    payload: int = 0
    metadata: int = 0
    tables: int = 0
    exact: int = 0
    slack: int = 0
    decoded: Any = None


def admit(scheme: Scheme, shape: Shape, terms: Terms, backend: str) -> Peer:
    """The codec of both sides, if this library's cache can run under these terms; Unsupported with the reason if not."""
    scheme.check(shape.head_dim, shape.kv_heads)
    scheme.check_run(backend, terms.protocol)
    codec = scheme.k.codec
    if not isinstance(codec, Peer):
        raise Unsupported(f"codec {codec.name!r} runs in a library that tqbench does not know")
    if terms.kernel != "auto":
        raise Unsupported(f"scheme {scheme.name!r} runs inside {codec.library}, which has no kernel {terms.kernel!r}; only `auto`")
    return codec


class NotSaved:
    """What a cache of another library answers when it is to be saved."""

    def state(self) -> NoReturn:
        """Not here: how a library keeps its tokens is its own affair."""
        raise Unsupported("another library's cache cannot be saved here; schemes of tqbench's own and the model's own cache can")

    def take_back(self, state: State) -> NoReturn:  # noqa: ARG002
        """Not here."""
        self.state()

    def agreement(self, context: Any) -> NoReturn:  # noqa: ARG002
        """Not here."""
        self.state()


@dataclass
class Policy:
    """What the library is known to pack, and when. What it does pack is counted elsewhere, and audits compare the two."""

    codec: Peer
    protocol: Protocol
    tokens: int = 0
    packed: int = 0

    def step(self, new: int) -> int:
        """Where the packed region ends for the queries of the next forward call."""
        first, before, self.tokens = not self.tokens, self.packed, self.tokens + new
        if not self.codec.facts.residual:
            self.packed = self.tokens
            exact_prefill = first and self.protocol == "deploy"
            return 0 if exact_prefill else self.tokens
        if first or self.tokens - before >= self.codec.residual:
            self.packed = self.tokens
        return before


@dataclass
class Watch:
    """K and V of one layer inside a library."""

    codec: Peer
    layer: Layer
    shape: Shape
    arrays: Arrays
    policy: Policy
    impl: str  # the library, as the record names it
    attend: str  # whose attention reads it
    tokens: int = 0  # brought
    queries: int = 0  # attended
    seen: int = 0
    seen_packed: int = 0
    declared: int = 0
    calls: dict[str, int] = field(default_factory=lambda: {"encode": 0, "decode": 0, "attend": 0})
    samples: dict[str, Any] = field(default_factory=dict)
    quiet: bool = False  # only the first tokens are sampled: the later ones are timed

    def bring(self, keys: Any, values: Any) -> None:
        """New tokens, before the library takes them."""
        if self.queries != self.tokens:
            late = self.tokens - self.queries
            raise EvidenceError(f"layer {self.layer.index}: {late} tokens were taken by {self.impl} and never attended")
        shapes, expected = (keys.shape[1::2], values.shape[1::2]), (self.shape.kv_heads, self.shape.head_dim)
        if {tuple(map(int, shape)) for shape in shapes} != {expected}:
            found = " and ".join(f"{heads} heads of {size}" for heads, size in shapes)
            raise Unsupported(f"this model caches {found} values, and other libraries' caches are watched for head_dim alone")
        new, room = keys.shape[2], SAMPLED_TOKENS - self.tokens
        if room > 0 and not (self.quiet and self.samples):
            for side, x in (("k", keys), ("v", values)):
                known = [self.samples[side]] if side in self.samples else []
                self.samples[side] = self.arrays.concat([*known, x[:, :, :room]])
        self.tokens += new
        end = self.policy.step(new)
        self.declared += sum(min(end, t + 1) for t in range(self.tokens - new, self.tokens))

    def read(self, layer: int, queries: int, packed_end: int) -> None:
        """Attention takes everything, of it the positions before `packed_end` in packed form."""
        if layer != self.layer.index or self.queries + queries != self.tokens:
            found = f"{queries} queries in layer {layer}, {self.tokens - self.queries} new tokens in layer {self.layer.index}"
            raise EvidenceError(f"what {self.impl} gave out was read by {found}")
        for t in range(self.queries, self.tokens):
            self.seen += t + 1
            self.seen_packed += min(packed_end, t + 1)
        self.queries = self.tokens
        self.calls["decode"] += packed_end > 0
        self.calls["attend"] += 1

    def compare(self, side: Literal["k", "v"], given: Any, packed_end: int) -> None:
        """What was given out must be lossy where it counts as packed, and bit for bit what came in where it counts as exact."""
        known = self.samples[side]
        n = min(known.shape[2], packed_end)
        lost, _ = self.arrays.squares(known[:, :, :n], given[:, :, :n])
        kept, _ = self.arrays.squares(known[:, :, n:], given[:, :, n : known.shape[2]])
        if not lost or kept:
            state = "exact where it counts as packed" if not lost else "changed where it counts as exact"
            raise EvidenceError(f"layer {self.layer.index} {side}: what {self.impl} gave out is {state}")

    def unattended(self) -> None:
        """Nobody asks for the tokens brought last: they are a context that was taken over."""
        self.queries = self.tokens

    def check(self, tokens: int) -> None:
        """Raise if any query did not read what the library gave out."""
        if not self.queries == self.tokens == tokens:
            through = f"{self.tokens} of {tokens} tokens taken by {self.impl}, {self.queries} attended"
            raise EvidenceError(f"layer {self.layer.index}: {through}")

    def evidence(self, side: Literal["k", "v"], held: Held) -> SideEvidence:
        """Counts and bytes, from the arrays that exist."""
        shape = self.shape
        return SideEvidence(
            layer=self.layer.index,
            side=side,
            codec=self.codec.name,
            order="native",
            tokens=self.tokens,
            tokens_packed=held.tokens,
            tokens_declared=self.policy.packed,
            bytes_payload=held.payload,
            bytes_metadata=held.metadata,
            bytes_declared=self.codec.resident(held.tokens, shape.kv_heads, shape.head_dim, shape.dtype),
            bytes_tables=held.tables,
            bytes_exact=held.exact,
            bytes_slack=held.slack,
            lossless=False,
            attended=self.seen,
            attended_packed=self.seen_packed,
            attended_declared=self.declared,
            error=self._error(side, held),
            encode=self.impl,
            decode=self.impl,
            attend=self.attend,
            entered=dict(self.calls),
            passed_over={},
        )

    def _error(self, side: str, held: Held) -> float | None:
        if not held.tokens or side not in self.samples:
            return None
        known = self.samples[side]
        n = min(known.shape[2], held.tokens)
        wrong, size = self.arrays.squares(known[:, :, :n], held.decoded[:, :, :n])
        return wrong / size if size else None
