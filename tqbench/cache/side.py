"""K or V of one layer under a scheme: exact sinks, packed units, exact tail. Tokens are encoded once, when the policy says so.

Positions count from the first token of the text. In a sliding window the oldest are forgotten: then `begin` moves.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from math import gcd, isfinite, prod
from typing import Any, ClassVar

from tqbench.cache.arrays import Arrays
from tqbench.cache.build import Layer, Shape
from tqbench.cache.calibration import tables
from tqbench.cache.rope import Rope
from tqbench.codecs.blocks.wrap import Bridge, resolve_order
from tqbench.core.codec import ITEMSIZE, Codec, compute_dtype
from tqbench.core.errors import EvidenceError, Unsupported
from tqbench.core.evidence import SideEvidence
from tqbench.core.op import Choice
from tqbench.core.scheme import Side
from tqbench.core.session import Protocol
from tqbench.core.sound import Pending, put_off
from tqbench.kernels.attend import View
from tqbench.measure.stages import stage

LARGEST = sys.float_info.max  # what was no number: any comparison would forget NaN, and no record holds infinity
LATEST_TOKENS = 64  # of what was packed last, those that are packed once more by the reference
STEP = 16  # values of a head: Triton compiles for strides that are multiples of it and for others, and must not in a timed step
SAMPLED_TOKENS = 2048  # per layer and side: the codec error is measured on this many


@dataclass(frozen=True)
class Kernels:
    """The resolved forms of the operations that one side uses."""

    encode: Choice
    decode: Choice
    reference: Choice  # of encode


@dataclass
class SideStore:
    """K or V of one layer."""

    holds_exact: ClassVar[bool] = True  # whether the exact tokens lie here
    holds_packed: ClassVar[bool] = True  # and the packed ones
    side: Side
    codec: Codec
    sinks: int
    shape: Shape
    layer: Layer
    arrays: Arrays
    protocol: Protocol
    rope: Rope | None  # taken out of what is packed
    quiet: bool = False  # what is packed is not sampled before `catch_up`
    kernels: Kernels = field(init=False)
    tokens: int = 0
    packed_end: int = 0  # position where the packed region ends
    first_query: int = 0  # position of the first query that has not been settled
    units: int = 0
    base: int = 0  # position of the oldest token that is still held
    exact_sinks: Any = None
    tail: Any = None  # exact, from tail_start on
    tail_start: int = 0
    buffers: dict[str, Any] = field(default_factory=dict)
    capacity: int = 0
    seen: int = 0
    seen_packed: int = 0
    declared: int = 0  # what seen_packed must come to
    read: bool = False  # whether the packed form was handed out for the current queries
    direct: bool = False  # whether attention took codes: then nothing is decoded for it
    error: tuple[float, float] = (0.0, 0.0)
    sampled: int = 0
    unsampled: tuple[Any, int] | None = None  # the most tokens that were packed at once in quiet, and their first unit
    latest: tuple[Any, int] | None = None  # the same of those that were packed last
    latest_error: tuple[float, float] | None = None  # of these, as they lie and as the reference packs them
    pending: Pending = field(default_factory=Pending)  # checks of what was packed in quiet

    def use(self, kernels: Kernels) -> None:
        """Take these forms of the operations."""
        self.kernels = kernels

    @property
    def begin(self) -> int:
        """Position of the oldest packed token."""
        return max(self.base, min(self.sinks, self.tokens))

    def bound(self, t: int) -> int:
        """Where the packed region ends for the query at position t. Strict: as in decoding. Deploy: what came in the same forward call
        is exact, as engines have it."""
        end = self.side.packed(t if self.protocol == "strict" else self.first_query - 1, self.sinks)
        return max(end, min(self.sinks, self.tokens))  # a query among the sinks sees them in the one form that there is

    def append(self, x: Any) -> None:
        """Append and pack; what the queries of this chunk need exact stays until `settle`."""
        self.first_query = self.tokens
        self.tokens += x.shape[2]
        take = min(max(0, self.sinks - self.first_query), x.shape[2])
        if take:
            self.exact_sinks = self.arrays.concat([s for s in (self.exact_sinks, x[:, :, :take]) if s is not None])
            self.packed_end = self.tail_start = min(self.sinks, self.tokens)
            x = x[:, :, take:]
        held = self.tail is not None and self.tail.shape[2]
        self.tail = self.arrays.concat([self.tail, x]) if held else x
        self._pack(self.side.packed(self.tokens - 1, self.sinks))

    def _pack(self, end: int) -> None:
        if end > self.packed_end:
            fresh, first = self.exact(end), self.units
            self.encode(fresh, self.packed_end)
            self._compare(fresh, first)
            self.packed_end = end

    def exact(self, end: int) -> Any:
        """The exact tokens from where the packed region ends."""
        return self.tail[:, :, self.packed_end - self.tail_start : end - self.tail_start]

    def encode(self, fresh: Any, position: int) -> None:
        """Encode whole units whose first token is at that position, and keep them."""
        plain, units = self._plain(fresh, position), fresh.shape[2] // self.codec.unit
        self._make_room(units, fresh.shape[0])
        room = {name: buffer[:, :, self.units : self.units + units] for name, buffer in self.buffers.items()}
        given = (room,) if self.kernels.encode.fills else ()
        with stage("encode"), put_off(self.pending if self.quiet else None):
            rows = self.arrays.ready(self.kernels.encode(self.codec, plain, *given))
        self._check(rows, fresh)
        if rows is not room:
            for name, array in rows.items():
                self.buffers[name] = self.arrays.write(self.buffers[name], self.units, array)
        self.units += units

    def _plain(self, fresh: Any, position: int) -> Any:
        return fresh if self.rope is None else self.rope.undo(fresh.to(compute_dtype(fresh.dtype)), position)

    def _compare(self, fresh: Any, first: int) -> None:
        """Measure what was lost, or note it for later."""
        if self.quiet:
            self._note(fresh, first)
        elif self.sampled < SAMPLED_TOKENS:
            self._sample(fresh, first)

    def _sample(self, fresh: Any, first: int) -> None:
        """The error of what is resident now, not of what the codec returned. Calls that measure are not counted as use."""
        wrong, size = self._off(self._resident(first, fresh.shape[2]), fresh, self.begin + first * self.codec.unit)
        self.error = (self.error[0] + wrong, self.error[1] + size)
        self.sampled += fresh.shape[2]

    def _resident(self, first: int, tokens: int) -> dict[str, Any]:
        last = first + tokens // self.codec.unit
        return {name: array[:, :, first:last] for name, array in self._packed().items()}

    def _off(self, packed: dict[str, Any], exact: Any, position: int) -> tuple[float, float]:
        return self.arrays.squares(exact, self._decode(packed, exact, position))

    def _note(self, fresh: Any, first: int) -> None:
        """Keep for `catch_up` what is to be compared with what is resident."""
        self.latest = fresh, first
        if self.unsampled is None or fresh.shape[2] > self.unsampled[0].shape[2]:
            self.unsampled = fresh, first

    def catch_up(self) -> None:
        """The checks and the error of what was packed in quiet."""
        self.pending.settle()
        if self.unsampled:
            fresh, first = self.unsampled
            self._sample(fresh[:, :, : SAMPLED_TOKENS // self.codec.unit * self.codec.unit], first)
            self.unsampled = None
        if self.latest and self.holds_packed:
            self._repeat(*self.latest)
        self.latest = None

    def _repeat(self, fresh: Any, first: int) -> None:
        """Pack once more, by the reference, what was packed last: a context is packed at once, tokens that are decoded one by one, into
        buffers with room, and what is wrong with that alone must show."""
        tokens, position = max(1, LATEST_TOKENS // self.codec.unit) * self.codec.unit, self.begin + first * self.codec.unit
        few = fresh[:, :, :tokens]
        again = self.kernels.reference.fn(self.codec, self._plain(few, position))
        found = (self._off(packed, few, position) for packed in (self._resident(first, few.shape[2]), again))
        here, there = (wrong / size if size else wrong for wrong, size in found)
        self.latest_error = (here, there) if isfinite(here + there) else (LARGEST, 0.0)

    def _check(self, rows: dict[str, Any], x: Any) -> None:
        """Whether what was packed is what the codec declares."""
        units = x.shape[2] // self.codec.unit
        for part in self.codec.layout(self.shape.head_dim).parts:
            row = rows.get(part.name)
            shape = (x.shape[0], x.shape[1] // self.codec.heads, units, *part.shape)
            if row is None or tuple(row.shape) != shape or str(row.dtype).rpartition(".")[2] != part.dtype:
                got = "nothing" if row is None else f"{row.dtype} {tuple(row.shape)}"
                raise EvidenceError(f"codec {self.codec.plain.name!r} declares {part.name} as {part.dtype} {shape} and packs {got}")
        if extra := rows.keys() - {part.name for part in self.codec.layout(self.shape.head_dim).parts}:
            raise EvidenceError(f"codec {self.codec.plain.name!r} packs {', '.join(sorted(extra))}, which its layout does not declare")

    def _make_room(self, units: int, batch: int) -> None:
        if self.units + units > self.capacity:
            step = max(STEP // gcd(STEP, prod(part.shape)) for part in self.codec.layout(self.shape.head_dim).parts)
            wanted = max(self.units + units, 2 * self.capacity)
            self._grow(-(-wanted // step) * step if self.units else wanted, batch)

    def _grow(self, capacity: int, batch: int) -> None:
        held, self.capacity = self._packed(), capacity
        for part in self.codec.layout(self.shape.head_dim).parts:
            grown = self.arrays.empty((batch, self.shape.kv_heads // self.codec.heads, capacity, *part.shape), part.dtype)
            self.buffers[part.name] = self.arrays.write(grown, 0, held[part.name]) if self.units else grown

    def reserve(self, tokens: int) -> None:
        """Room for what will have been packed after so many more tokens: until then buffers stay where they are."""
        end = self.tokens + tokens
        units = (self.side.packed(end - 1, self.sinks) - max(self.base, min(self.sinks, end))) // self.codec.unit
        if units > self.capacity:
            self._grow(units, self.tail.shape[0])

    def _packed(self) -> dict[str, Any]:
        return {name: buffer[:, :, : self.units] for name, buffer in self.buffers.items()}

    def _decode(self, packed: dict[str, Any], like: Any, start: int) -> Any:
        with stage("decode"):
            decoded = self.arrays.ready(self.kernels.decode.fn(self.codec, packed, self.shape.head_dim, like))
        return decoded if self.rope is None else self.rope.redo(decoded, start)

    def decoded(self) -> Any:
        """The packed positions, for those who only compare."""
        return self._decode(self._packed(), self.tail, self.begin) if self.units else self.tail[:, :, :0]

    def _hand_over(self) -> Any:
        """The packed arrays themselves, to be attended."""
        self.read = self.direct = True
        return self._packed()

    def _hand_out(self) -> Any:
        """The packed positions, to be attended: coverage counts them only then."""
        self.read = True
        self.kernels.decode.calls += bool(self.units)
        return self.decoded()

    def view(self) -> View:
        """What the queries of the last chunk see, in positions that count from the oldest token held."""
        bounds = [self.bound(t) - self.base for t in range(self.first_query, self.tokens)]
        packed_end, tail_start = self.packed_end - self.base, self.tail_start - self.base
        return View(
            self.exact_sinks, self._hand_out, packed_end, self.tail, tail_start, bounds, self.layer.reach, self.codec, self._hand_over
        )

    def everything(self) -> Any:
        """All positions that the queries of the last chunk see, in one array, for the engine."""
        parts = [self.exact_sinks, self._hand_out(), self.tail[:, :, self.packed_end - self.tail_start :]]
        whole = self.arrays.concat([part for part in parts if part is not None])
        return whole[:, :, max(0, self.oldest(self.first_query) - self.base) :]

    def oldest(self, t: int) -> int:
        """The first position that the query at position t sees."""
        return 0 if self.layer.reach is None else max(0, t + 1 - self.layer.reach)

    def begin_at(self, position: int) -> None:
        """Start with the token at that position, because a sliding window has forgotten the older ones."""
        if position and (self.codec.unit > 1 or self.side.packed(position - 1, self.sinks) != position):
            raise Unsupported(
                "a context that has left a sliding window is not taken over by schemes that pack tokens together or keep recent ones exact"
            )
        self.tokens = self.first_query = self.base = self.packed_end = self.tail_start = position

    def unattended(self) -> None:
        """Nobody asks for the tokens appended last."""
        self.first_query = self.tokens

    def settle(self) -> None:
        """After the queries: count what they saw and drop exact tokens that are packed now."""
        for t in range(self.first_query, self.tokens):
            oldest = self.oldest(t)
            packed = max(0, self.bound(t) - max(oldest, min(self.sinks, self.tokens)))
            self.seen += t + 1 - oldest
            self.declared += packed
            self.seen_packed += packed if self.read else 0
        self.read = False
        self.drop()
        if self.units * self.codec.unit + self.begin != self.packed_end:
            raise EvidenceError(f"{self.units} units of {self.codec.unit} tokens are packed, but the policy says {self.packed_end}")

    def drop(self) -> None:
        """Let go of the exact tokens that are packed."""
        if self.packed_end == self.tail_start:
            return
        kept = self.tail[:, :, self.packed_end - self.tail_start :]
        self.tail, self.tail_start = self.arrays.concat([kept]), self.packed_end

    def forgettable(self) -> int:
        """How many of the oldest tokens no later query sees and are not in the exact tail."""
        return max(0, min(self.oldest(self.tokens), self.packed_end) - self.base)

    def forget(self, position: int) -> None:
        """Drop everything before a position: sinks, and whole units."""
        units = (position - self.begin) // self.codec.unit
        self.buffers = {name: self.arrays.concat([array[:, :, units:]]) for name, array in self._packed().items()}
        self.units -= units
        self.capacity, self.base, self.exact_sinks, self.unsampled, self.latest = self.units, position, None, None, None

    @property
    def bypass(self) -> str | None:
        """The control that stands around the codec."""
        return self.codec.name if isinstance(self.codec, Bridge) else None

    def evidence(self, side: str, layer: int, attention: Choice) -> SideEvidence:
        """Counts and bytes, from the arrays that exist."""
        layout = self.codec.layout(self.shape.head_dim)
        exact = [array for array in (self.exact_sinks, self.tail) if array is not None]  # none before the first token
        heads = exact[0].shape[0] * exact[0].shape[1] // self.codec.heads if exact else 0
        packed, fused = self._packed(), self.direct and not self.kernels.decode.calls
        used = [self.kernels.encode, *([] if fused else [self.kernels.decode]), attention]
        sizes = {
            role: sum(int(packed[p.name].nbytes) for p in layout.parts if p.name in packed and p.role == role)
            for role in ("payload", "metadata")
        }
        return SideEvidence(
            layer=layer,
            side=side,
            codec=self.codec.plain.name,
            runs={"codec": self.codec.plain.name, **self.codec.data(), **({"bypass": self.bypass} if self.bypass else {})},
            order=resolve_order(self.side.order, self.shape.architecture),
            tokens=self.tokens - self.base,
            tokens_forgotten=self.base,
            tokens_packed=self.units * self.codec.unit,
            tokens_declared=self.side.packed(self.tokens - 1, self.sinks) - self.begin if self.tokens else 0,
            bytes_payload=sizes["payload"],
            bytes_metadata=sizes["metadata"],
            bytes_declared=layout.nbytes * self.units * heads,
            bytes_tables=tables(self.codec),
            bytes_exact=sum(int(array.nbytes) for array in exact),
            bytes_sinks=0 if self.exact_sinks is None else int(self.exact_sinks.nbytes),
            bytes_slack=sum(int(buffer.nbytes) for buffer in self.buffers.values()) - sum(sizes.values()),
            lossless=self.shape.dtype in self.codec.tags.lossless_in or _keeps_all(layout.bits(self.shape.head_dim), self.shape.dtype),
            attended=self.seen,
            attended_packed=self.seen_packed,
            attended_declared=self.declared,
            error=self.error[0] / self.error[1] if self.error[1] else None,
            latest_error=self.latest_error,
            encode=self.kernels.encode.impl,
            decode="in attend" if fused else self.kernels.decode.impl,
            attend=attention.impl,
            entered={choice.op: choice.calls for choice in used},
            passed_over={f"{choice.op} {name}": why for choice in used for name, why in choice.refused.items()},
        )


def _keeps_all(bits: float, dtype: str) -> bool:
    """Whether a 16-bit model may happen to lose nothing: most of its values fit the other 16-bit type."""
    return ITEMSIZE[dtype] == 2 and bits >= 16
