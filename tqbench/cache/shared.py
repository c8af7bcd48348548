"""What the layers of one sequence pack together: each layer keeps its own exact tokens, and the packed ones are held once for all.

A token can be packed once every layer has it. The window makes that come out right: the query at position t sees packed only what is
older than its window, so of a forward call of at most `most` tokens (the window) no query sees packed what the call itself brings.
All that it must see packed has been appended in all layers by earlier calls, and the first layer that asks for it packs it. Sessions
cut longer calls; a store that is asked for packed tokens that are not there raises.

In the ledger each layer has an equal share of the bytes, rounded so that the shares add up to what is there, of the packed arrays and
of what was learned alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from tqbench.cache import state
from tqbench.cache.arrays import Arrays
from tqbench.cache.build import Layer, Shape, build, rope_of
from tqbench.cache.side import Kernels, SideStore
from tqbench.codecs.blocks.wrap import Heads
from tqbench.core.errors import EvidenceError, Unsupported
from tqbench.core.evidence import SideEvidence
from tqbench.core.op import Choice
from tqbench.core.scheme import Scheme, Side
from tqbench.core.session import Terms
from tqbench.core.state import Entry
from tqbench.kernels.attend import View


class Shared:
    """The sides that the stores of a sequence have in common; none for most schemes."""

    def __init__(self, layers: int):
        self.layers, self.sides = layers, dict[str, Together]()

    def hand_out(self) -> list[Entry]:
        """What the layers hold together, to be saved beside what each holds."""
        return [state.hand_out(side, f"all.{name}") for name, side in self.sides.items()]

    def take_back(self, entries: Mapping[str, Entry]) -> None:
        """Undo `hand_out`."""
        for name, side in self.sides.items():
            state.take_back(side, entries[f"all.{name}"])

    @property
    def most(self) -> int | None:
        """The most tokens that a forward call may bring; None is any number. In protocol deploy no query sees packed what its own call
        brings, however long that is."""
        return min((side.side.window for side in self.sides.values() if side.protocol == "strict"), default=None)

    def member(self, scheme: Scheme, name: Literal["k", "v"], shape: Shape, layer: Layer, arrays: Arrays, terms: Terms) -> Member:
        """One layer's part in a side of this scheme."""
        if layer.reach is not None:
            raise Unsupported(
                f"scheme {scheme.label!r} packs all layers together, and layer {layer.index} forgets what leaves its sliding window"
            )
        side: Side = getattr(scheme, name)
        rope = rope_of(side, shape, scheme.bypass)
        run: dict[str, Any] = {"arrays": arrays, "protocol": terms.protocol, "rope": rope, "quiet": terms.quiet}
        if name not in self.sides:
            every = dataclasses.replace(shape, kv_heads=shape.kv_heads * self.layers, heads=shape.heads * self.layers)
            codec = build(scheme, name, every, Layer(), terms.calibration)
            self.sides[name] = Together(side, codec, scheme.sinks, every, Layer(), **run, packed_end=scheme.sinks, layers=self.layers)
        together = self.sides[name]
        codec = Heads(together.codec, layer.position * shape.kv_heads, shape.kv_heads)
        together.members.append(Member(side, codec, scheme.sinks, shape, layer, **run, together=together))
        return together.members[-1]


@dataclass
class Together(SideStore):
    """The packed tokens of one side of all layers, whose heads follow one another. Nothing is appended here: it takes from its members."""

    holds_exact = False
    layers: int = 1
    members: list[Member] = field(default_factory=list)

    def advance(self, asking: Member) -> None:
        """Pack what a member asks for, if every layer has it."""
        end = asking.wanted
        if end <= self.packed_end or len(self.members) < self.layers or any(member.tokens < end for member in self.members):
            return
        fresh = torch.cat([member.exact(end) for member in self.members], dim=1)
        self.encode(fresh, self.packed_end)
        self.packed_end = end
        for member in self.members:
            # Who has as many tokens as the one that asks, and is another, has attended in this call already, or never will.
            member.follow(end, attended=member is not asking and member.tokens == asking.tokens)


@dataclass
class Member(SideStore):
    """One layer: exact sinks and recent tokens of its own, and its heads of what all pack together."""

    holds_packed = False
    together: Together = field(kw_only=True)
    wanted: int = 0  # where the packed region is to end

    def use(self, kernels: Kernels) -> None:
        if len(self.together.members) == 1:
            self.together.use(kernels)
        self.kernels = Kernels(self.together.kernels.encode, kernels.decode, kernels.reference)

    def _pack(self, end: int) -> None:
        self.wanted, self.together.tokens = end, self.tokens
        self.together.advance(self)

    def catch_up(self) -> None:
        self.together.pending.settle()
        super().catch_up()

    def follow(self, end: int, *, attended: bool) -> None:
        """Take note of what has been packed up to there."""
        fresh, first = self.exact(end), self.units
        self.units += fresh.shape[2] // self.codec.unit
        self._compare(fresh, first)
        self.packed_end = end
        if attended:
            self.drop()

    @property
    def bypass(self) -> str | None:
        return self.together.bypass

    def _packed(self) -> dict[str, Any]:
        return {name: buffer[:, :, : self.units] for name, buffer in self.together.buffers.items()}

    def view(self) -> View:
        self._be_there()
        return super().view()

    def everything(self) -> Any:
        self._be_there()
        return super().everything()

    def _be_there(self) -> None:
        """Raise if a query is to see packed what is not."""
        if self.bound(self.tokens - 1) > self.packed_end:
            raise EvidenceError(
                f"layer {self.layer.index}: the query at position {self.tokens - 1} sees packed what not every layer has yet; "
                f"a forward call may bring at most {self.side.window} tokens"
            )

    def evidence(self, side: str, layer: int, attention: Choice) -> SideEvidence:
        found = super().evidence(side, layer, attention)
        packed = found.bytes_payload + found.bytes_metadata
        payload = self._share(found.bytes_payload)
        return dataclasses.replace(
            found,
            bytes_payload=payload,
            bytes_metadata=self._share(packed) - payload,
            bytes_declared=self._share(self.codec.layout(self.shape.head_dim).nbytes * self.units),
            bytes_tables=self._share(found.bytes_tables),
            bytes_slack=self._share(sum(int(buffer.nbytes) for buffer in self.together.buffers.values())) - self._share(packed),
        )

    def _share(self, total: int) -> int:
        """This layer's part of what all have in common."""
        at, layers = self.layer.position, self.together.layers
        return total * (at + 1) // layers - total * at // layers
