"""One layer's K and V under a scheme: append, pack by policy, answer queries, count every byte.

Strict by construction: the query at position t sees the packed region that `Side.packed(t)` names, whatever chunk it arrived in. Tokens
are encoded once, when the policy says so, and never again.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from tqbench.cache.arrays import Arrays
from tqbench.cache.wanted import Wanted
from tqbench.codecs.blocks.wrap import Bridge, Identity, Interleaved, resolve_order
from tqbench.core.codec import ITEMSIZE, Codec
from tqbench.core.errors import EvidenceError
from tqbench.core.evidence import SideEvidence
from tqbench.core.op import Choice, Place
from tqbench.core.scheme import Scheme, Side
from tqbench.kernels import attend, decode, encode
from tqbench.kernels.attend import View

# Of the attention's output against the reference on the same packed data, relative: a kernel computes in float32 at least, and its
# result is rounded to the model's dtype.
ATTEND_ERROR = {"float64": 1e-9, "float32": 1e-4, "float16": 5e-3, "bfloat16": 3e-2}
SAMPLED_TOKENS = 2048  # per layer and side: the codec error is measured on this many


@dataclass(frozen=True)
class Shape:
    """What a store must know of the model."""

    architecture: str
    head_dim: int
    dtype: str  # of the model


@dataclass(frozen=True)
class Kernels:
    """The resolved forms of the operations that one side uses."""

    encode: Choice
    decode: Choice


class Store:
    """The KV cache of one layer."""

    def __init__(self, scheme: Scheme, shape: Shape, arrays: Arrays, kernel: str = "auto", index: int = 0):
        self.scheme, self.index = scheme, index
        self.k, self.v = (_SideStore(side, build(side, shape, scheme), scheme.sinks, shape, arrays) for side in (scheme.k, scheme.v))
        wanted = Wanted(kernel)
        place = Place(arrays.platform, arrays.device, shape.dtype)
        for side in (self.k, self.v):
            side.kernels = Kernels(wanted.pick(encode.OP, side.codec, place), wanted.pick(decode.OP, side.codec, place))
        self.attention = wanted.pick(attend.OP, self.k.codec, place)
        self.shown = Choice("attend", "engine", _everything)
        self.reference = attend.OP.resolve(self.k.codec, attend.REFERENCE[arrays.platform], place)
        self.attend_error: float | None = None
        wanted.check()
        self.queries = 0

    @property
    def tokens(self) -> int:
        """Tokens held."""
        return self.k.tokens

    @property
    def through_engine(self) -> bool:
        """Whether the engine's own attention reads the store: only in the identity control, so that its zero is exact."""
        return self.scheme.bypass == "identity"

    def append(self, keys: Any, values: Any) -> None:
        """Take the K and V of the next tokens and pack what the policy says."""
        if self.queries != self.tokens:
            raise EvidenceError(
                f"layer {self.index}: {self.tokens - self.queries} tokens were appended and never attended through the store"
            )
        self.k.append(keys)
        self.v.append(values)

    def attend(self, q: Any, scale: float) -> Any:
        """Attention of the queries that belong to the tokens appended last."""
        out = self.attention(q, self.k.view(), self.v.view(), self.queries, scale)
        if self.attend_error is None and self.k.units and self.v.units:
            self._compare(q, out, scale)
        self._settle(q.shape[2])
        return out

    def _compare(self, q: Any, out: Any, scale: float) -> None:
        """Recompute the last query by the reference: what the kernel put out must follow from what is packed."""
        views = (dataclasses.replace(v, packed=side.decoded, bounds=v.bounds[-1:]) for side in (self.k, self.v) for v in [side.view()])
        expected = self.reference.fn(q[:, :, -1:], *views, self.tokens - 1, scale)
        wrong, size = self.k.arrays.squares(expected, out[:, :, -1:])
        self.attend_error = (wrong / size) ** 0.5 if size else 0.0

    def visible(self) -> tuple[Any, Any]:
        """All keys and values for the engine's own attention."""
        keys, values = self.shown(self.k, self.v)
        self._settle(self.tokens - self.queries)
        return keys, values

    def _settle(self, queries: int) -> None:
        if self.queries + queries != self.tokens:
            raise EvidenceError(f"layer {self.index}: {queries} queries for {self.tokens - self.queries} new tokens")
        self.queries = self.tokens
        self.k.settle()
        self.v.settle()

    def evidence(self) -> tuple[SideEvidence, SideEvidence]:
        """What happened to K and to V."""
        attention = self.shown if self.shown.calls else self.attention
        k, v = (side.evidence(name, self.index, attention) for name, side in (("k", self.k), ("v", self.v)))
        limit = ATTEND_ERROR[self.k.shape.dtype]
        error, protecting = self.attend_error, self.scheme.protecting
        return (
            dataclasses.replace(k, attend_error=error, attend_limit=limit, protecting=protecting),
            dataclasses.replace(v, attend_error=error, attend_limit=limit, protecting=protecting),
        )


def _everything(k: _SideStore, v: _SideStore) -> tuple[Any, Any]:
    return k.everything(), v.everything()


def build(side: Side, shape: Shape, scheme: Scheme) -> Codec:
    """The codec that a side runs on this model: channel order resolved, control applied."""
    codec = side.codec
    codec.check(shape.head_dim)
    order = resolve_order(side.order, shape.architecture)
    if scheme.bypass == "identity":
        return Identity(codec, shape.dtype)
    if order == "interleaved":
        codec = Interleaved(codec)
    return Bridge(codec, shape.dtype) if scheme.bypass == "bridge" else codec


@dataclass
class _SideStore:
    """K or V of one layer: exact sinks, packed units, exact tail."""

    side: Side
    codec: Codec
    sinks: int
    shape: Shape
    arrays: Arrays
    kernels: Kernels = field(init=False)
    tokens: int = 0
    packed_end: int = 0  # position where the packed region ends
    first_query: int = 0  # position of the first query that has not been settled
    units: int = 0
    exact_sinks: Any = None
    tail: Any = None  # exact, from tail_start on
    tail_start: int = 0
    buffers: dict[str, Any] = field(default_factory=dict)
    capacity: int = 0
    seen: int = 0
    seen_packed: int = 0
    declared: int = 0  # what seen_packed must come to
    read: bool = False  # whether the packed form was handed out for the current queries
    error: tuple[float, float] = (0.0, 0.0)
    sampled: int = 0

    def append(self, x: Any) -> None:
        """Append and pack; what the queries of this chunk need exact stays until `settle`."""
        self.first_query = self.tokens
        self.tokens += x.shape[2]
        take = min(max(0, self.sinks - self.first_query), x.shape[2])
        if take:
            self.exact_sinks = self.arrays.concat([s for s in (self.exact_sinks, x[:, :, :take]) if s is not None])
            self.packed_end = self.tail_start = min(self.sinks, self.tokens)
            x = x[:, :, take:]
        self.tail = x if self.tail is None else self.arrays.concat([self.tail, x])
        self._pack(self.side.packed(self.tokens - 1, self.sinks))

    def _pack(self, end: int) -> None:
        new = end - self.packed_end
        if new > 0:
            start = self.packed_end - self.tail_start
            fresh = self.tail[:, :, start : start + new]
            rows = self.kernels.encode(self.codec, fresh)
            first = self.units
            self._write(rows, new // self.codec.unit)
            if self.sampled < SAMPLED_TOKENS:
                self._sample(fresh, first)
            self.packed_end = end

    def _sample(self, fresh: Any, first: int) -> None:
        """The error of what is resident now, not of what the codec returned. Calls that measure are not counted as use."""
        resident = {name: array[:, :, first:] for name, array in self._packed().items()}
        decoded = self.kernels.decode.fn(self.codec, resident, self.shape.head_dim, fresh)
        wrong, size = self.arrays.squares(fresh, decoded)
        self.error = (self.error[0] + wrong, self.error[1] + size)
        self.sampled += fresh.shape[2]

    def _write(self, rows: dict[str, Any], units: int) -> None:
        for part in self.codec.layout(self.shape.head_dim).parts:
            row = rows.get(part.name)
            shape = (*self.tail.shape[:2], units, *part.shape)
            if row is None or tuple(row.shape) != shape or str(row.dtype).rpartition(".")[2] != part.dtype:
                got = "nothing" if row is None else f"{row.dtype} {tuple(row.shape)}"
                raise EvidenceError(f"codec {_plain(self.codec).name!r} declares {part.name} as {part.dtype} {shape} and packs {got}")
        if extra := rows.keys() - {part.name for part in self.codec.layout(self.shape.head_dim).parts}:
            raise EvidenceError(f"codec {_plain(self.codec).name!r} packs {', '.join(sorted(extra))}, which its layout does not declare")
        if self.units + units > self.capacity:
            self.capacity = max(self.units + units, 2 * self.capacity)
            for part in self.codec.layout(self.shape.head_dim).parts:
                like = rows[part.name]
                grown = self.arrays.empty((*like.shape[:2], self.capacity, *part.shape), part.dtype)
                self.buffers[part.name] = self.arrays.write(grown, 0, self._packed()[part.name]) if self.units else grown
        for name, array in rows.items():
            self.buffers[name] = self.arrays.write(self.buffers[name], self.units, array)
        self.units += units

    def _packed(self) -> dict[str, Any]:
        return {name: buffer[:, :, : self.units] for name, buffer in self.buffers.items()}

    def decoded(self) -> Any:
        """The packed positions, for those who only compare."""
        if not self.units:
            return self.tail[:, :, :0]
        return self.kernels.decode.fn(self.codec, self._packed(), self.shape.head_dim, self.tail)

    def _hand_out(self) -> Any:
        """The packed positions, to be attended: coverage counts them only then."""
        self.read = True
        self.kernels.decode.calls += bool(self.units)
        return self.decoded()

    def view(self) -> View:
        """What the queries of the last chunk see."""
        sinks = min(self.sinks, self.tokens)  # a query among them sees them in the one form that there is
        bounds = [max(sinks, self.side.packed(t, self.sinks)) for t in range(self.first_query, self.tokens)]
        return View(self.exact_sinks, self._hand_out, self.packed_end, self.tail, self.tail_start, bounds)

    def everything(self) -> Any:
        """All positions in one array, for the engine."""
        parts = [self.exact_sinks, self._hand_out(), self.tail[:, :, self.packed_end - self.tail_start :]]
        return self.arrays.concat([part for part in parts if part is not None])

    def settle(self) -> None:
        """After the queries: count what they saw and drop exact tokens that are packed now."""
        for t in range(self.first_query, self.tokens):
            self.seen += t + 1
            packed = self.side.packed(t, self.sinks) - min(self.sinks, t + 1)
            self.declared += packed
            self.seen_packed += packed if self.read else 0
        self.read = False
        kept = self.tail[:, :, self.packed_end - self.tail_start :]
        self.tail, self.tail_start = self.arrays.concat([kept]), self.packed_end
        if self.units * self.codec.unit + min(self.sinks, self.tokens) != self.packed_end:
            raise EvidenceError(f"{self.units} units of {self.codec.unit} tokens are packed, but the policy says {self.packed_end}")

    def evidence(self, side: str, layer: int, attention: Choice) -> SideEvidence:
        """Counts and bytes, from the arrays that exist."""
        layout = self.codec.layout(self.shape.head_dim)
        exact = [array for array in (self.exact_sinks, self.tail) if array is not None]  # none before the first token
        heads = exact[0].shape[0] * exact[0].shape[1] if exact else 0
        packed = self._packed()
        sizes = {
            role: sum(int(packed[p.name].nbytes) for p in layout.parts if p.name in packed and p.role == role)
            for role in ("payload", "metadata")
        }
        return SideEvidence(
            layer=layer,
            side=side,
            codec=_plain(self.codec).name,
            order=resolve_order(self.side.order, self.shape.architecture),
            tokens=self.tokens,
            tokens_packed=self.units * self.codec.unit,
            tokens_declared=self.side.packed(self.tokens - 1, self.sinks) - min(self.sinks, self.tokens) if self.tokens else 0,
            bytes_payload=sizes["payload"],
            bytes_metadata=sizes["metadata"],
            bytes_declared=layout.nbytes * self.units * heads,
            bytes_exact=sum(int(array.nbytes) for array in exact),
            bytes_slack=sum(int(buffer.nbytes) for buffer in self.buffers.values()) - sum(sizes.values()),
            lossless=self.shape.dtype in self.codec.tags.lossless_in or _keeps_all(layout.bits(self.shape.head_dim), self.shape.dtype),
            attended=self.seen,
            attended_packed=self.seen_packed,
            attended_declared=self.declared,
            error=self.error[0] / self.error[1] if self.error[1] else None,
            encode=self.kernels.encode.impl,
            decode=self.kernels.decode.impl,
            attend=attention.impl,
            entered={choice.op: choice.calls for choice in (self.kernels.encode, self.kernels.decode, attention)},
            passed_over={
                f"{choice.op} {name}": why
                for choice in (self.kernels.encode, self.kernels.decode, attention)
                for name, why in choice.refused.items()
            },
        )


def _keeps_all(bits: float, dtype: str) -> bool:
    """Whether a 16-bit model may happen to lose nothing: most of its values fit the other 16-bit type."""
    return ITEMSIZE[dtype] == 2 and bits >= 16


def _plain(codec: Codec) -> Codec:
    return _plain(codec.inner) if isinstance(codec, Bridge | Interleaved) else codec
