"""A scheme: a codec for K, a codec for V, and the policy that says which tokens are packed when. A scheme is data.

`core/presets.py` reads it from the mapping that preset files and suites share.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import log, sqrt
from typing import Any, Literal

from tqbench.core.codec import Codec, Order
from tqbench.core.errors import Unsupported

Bypass = Literal["identity", "bridge"]
Role = Literal["own", "instead", "protects"]
Phase = Literal["post", "pre"]  # keys as attention takes them, or as they were before the rotary embedding


@dataclass(frozen=True)
class Side:
    """How K (or V) is stored: the codec with what is wrapped around it, the form of the keys, and which tokens are packed when."""

    codec: Codec
    order: Order = "native"
    rope: Phase = "post"
    window: int = 0  # recent tokens kept exact
    flush: int = 1  # tokens leave the window in multiples of this

    def packed(self, t: int, sinks: int = 0) -> int:
        """Where the packed region ends for the query at position t: a function of t alone, so the text may be cut anywhere."""
        old = max(0, t + 1 - sinks - self.window)
        return min(sinks, t + 1) + old // self.flush * self.flush

    def check(self, head_dim: int, kv_heads: int | None = None) -> None:
        """Raise Unsupported if the codec cannot store vectors of this size, or of so many heads."""
        across = self.codec.tags.across_layers  # over how many layers is known once a cache is built
        (self.codec if across else self.codec.spanning(kv_heads or 1)).check(head_dim)
        if kv_heads is not None and kv_heads % self.codec.heads:
            raise Unsupported(f"{self.codec.heads} KV heads are packed together here, and the model has {kv_heads}")

    def problems(self) -> list[tuple[str, str]]:
        """(field, what is wrong) for the policy of this side."""
        unit = self.codec.unit
        found = [("window", f"window must not be negative, got {self.window}")] if self.window < 0 else []
        if self.flush < 1 or self.flush % unit:
            together = f"(the codec packs that many tokens together), got {self.flush}"
            found.append(("flush", f"flush must be a positive multiple of {unit} {together}"))
        if self.codec.tags.across_layers and not self.window:
            why = "a token of all layers is packed together, once the last layer has it"
            found.append(("window", f"window must be at least 1: {why}, and the layers before must see it exact until then"))
        return found


@dataclass(frozen=True)
class Layers:
    """Some of the layers that hold K and V, counted over these alone, and the scheme that they run instead."""

    scheme: Scheme
    first: int = 0
    last: int = 0
    at: tuple[int, ...] = ()  # negative: from the end

    def hold(self, index: int, layers: int) -> bool:
        """Whether the index-th of so many layers is one of them."""
        return index < self.first or index >= layers - self.last or index in self.at or index - layers in self.at


@dataclass(frozen=True)
class Gqa:
    """The scheme that runs instead where a KV head serves at least so many query heads."""

    at_least: int
    scheme: Scheme


@dataclass(frozen=True)
class Logits:
    """A multiplier on the attention logits that depends on the number of keys (AmesianX): no quantization, so it stands apart."""

    form: Literal["grow", "shrink"]
    value: float

    def factor(self, keys: int) -> float:
        """What a query over so many keys multiplies its logits by."""
        if self.form == "grow":
            return 1 + self.value * sqrt(log(keys))
        return self.value / (self.value + sqrt(log(keys) / log(2048)))


@dataclass(frozen=True)
class Scheme:
    """A codec for K, a codec for V, and policy. A scheme that stands in for it in some layers is a whole one, sinks and windows included;
    of the outer one the control and the logit multiplier hold everywhere."""

    name: str
    k: Side
    v: Side
    sinks: int = 0
    protect: Layers | None = None  # layers that are kept in another scheme and do not count as covered
    layers: tuple[Layers, ...] = ()  # layers that run another scheme; they count unless it loses nothing
    gqa: Gqa | None = None
    logits: Logits | None = None
    bypass: Bypass | None = None
    role: Role = field(default="own", compare=False)  # in a layer: its own scheme, or one that stands in by a rule
    family: str = field(default="suite", compare=False)
    source: str = field(default="", compare=False)
    note: str = field(default="", compare=False)

    @property
    def label(self) -> str:
        """The name with its control, as tables print it."""
        return f"{self.name}[{self.bypass}]" if self.bypass else self.name

    @property
    def calibrated(self) -> bool:
        """Whether a codec must learn from other text first."""
        return self.bypass != "identity" and any(side.codec.tags.calibrated for one in self.variants() for side in (one.k, one.v))

    @property
    def peer(self) -> bool:
        """Whether another library's own cache runs it, or is meant to run a part of it."""
        return any(side.codec.tags.peer for one in self.variants() for side in (one.k, one.v))

    def variants(self) -> Iterator[Scheme]:
        """Itself and the schemes that layers may run instead."""
        yield self
        rules = [rule for rule in (self.protect, *self.layers, self.gqa) if rule]
        for rule in rules:
            yield dataclasses.replace(rule.scheme, bypass=self.bypass)

    def bits(self, head_dim: int) -> tuple[float, float]:
        """Bits per packed value of K and of V, scales included; the most where a layout is learned."""
        return tuple(side.codec.listed_bits(head_dim) for side in (self.k, self.v))  # type: ignore[return-value]

    def for_layer(self, index: int, layers: int, sharing: int = 1) -> Scheme:
        """The scheme of the index-th of the KV-bearing layers, in a model whose KV heads serve `sharing` query heads each."""
        self._fit(layers)
        if self.protect and self.protect.hold(index, layers):
            return dataclasses.replace(self.protect.scheme, bypass=self.bypass, logits=self.logits, role="protects")
        other = next((rule.scheme for rule in self.layers if rule.hold(index, layers)), None)
        if other is None and self.gqa and sharing >= self.gqa.at_least:
            other = self.gqa.scheme
        return self if other is None else dataclasses.replace(other, bypass=self.bypass, logits=self.logits, role="instead")

    def _fit(self, layers: int) -> None:
        """Raise Unsupported if the rules for layers make no sense for so many."""
        rules = [rule for rule in (self.protect, *self.layers) if rule]
        if rules and all(any(rule.hold(i, layers) for rule in rules) for i in range(layers)):
            raise Unsupported(f"scheme {self.name!r} has other schemes for all of {layers} layers, so it would run in none")
        if strange := [i for rule in rules for i in rule.at if not -layers <= i < layers]:
            raise Unsupported(f"scheme {self.name!r} has a rule for layer {strange[0]}, there are {layers} that hold K and V")

    def check(self, head_dim: int, kv_heads: int | None = None) -> None:
        """Raise Unsupported if a codec cannot store vectors of this size, or of so many heads."""
        if self.peer and (given := list(self._additions())):
            raise Unsupported(f"scheme {self.label!r} is the cache of another library, which runs as it is: no {', '.join(given)}")
        others = [rule for rule in ("protect", "layers", "gqa") if getattr(self, rule)]
        if others and any(one.across_layers(name) for one in self.variants() for name in ("k", "v")):
            raise Unsupported(f"scheme {self.label!r} packs all layers together, so none can run another scheme: no {', '.join(others)}")
        for side in (side for one in self.variants() for side in (one.k, one.v)):
            side.check(head_dim, kv_heads)

    def across_layers(self, side: Literal["k", "v"]) -> bool:
        """Whether all layers of that side are packed together."""
        codec: Codec = getattr(self, side).codec
        return codec.tags.across_layers and self.bypass != "identity"

    def check_run(self, backend: str, protocol: str) -> None:
        """Raise Unsupported if it does not run on this backend or under this protocol."""
        for tags in (side.codec.tags for one in self.variants() for side in (one.k, one.v)):
            if tags.backend not in (None, backend):
                raise Unsupported(f"scheme {self.name!r} runs on the {tags.backend} backend only; set `backend: {tags.backend}`")
            if tags.deploy_only and protocol == "strict":
                why = "attends keys and values exact in the forward call that brings them"
                raise Unsupported(f"scheme {self.name!r} {why}, so it has no protocol strict; in the suite's task, set `protocol: deploy`")

    def _additions(self) -> Iterator[str]:
        """What no other library's cache knows, by its key."""
        yield from (rule for rule in ("sinks", "protect", "layers", "gqa", "logits", "bypass") if getattr(self, rule))
        for name, side in (("k", self.k), ("v", self.v)):
            own = {"codec", *(f.name for f in side.codec.plain.parameters())}
            yield from (f"{name}.{key}" for key in _side_data(side) if key not in own)
        if self.k.codec.plain != self.v.codec.plain:
            yield "k and v that differ"

    def lossless_in(self, dtype: str) -> bool:
        """Whether results must equal the baseline's up to the order of summation."""
        if self.bypass:
            return True
        codecs = [side.codec for one in self.variants() for side in (one.k, one.v)]
        return self.logits is None and all(dtype in codec.tags.lossless_in for codec in codecs)

    def to_data(self) -> dict[str, Any]:
        """The mapping that `presets.parse` reads back to an equal scheme."""
        data: dict[str, Any] = {"name": self.name, "k": _side_data(self.k), "v": _side_data(self.v)}
        if self.sinks:
            data["sinks"] = self.sinks
        if self.protect:
            data["protect"] = _layers_data(self.protect)
        if self.layers:
            data["layers"] = [_layers_data(rule) for rule in self.layers]
        if self.gqa:
            data["gqa"] = {"at_least": self.gqa.at_least, "scheme": self.gqa.scheme.to_data()}
        if self.logits:
            data["logits"] = dataclasses.asdict(self.logits)
        if self.bypass:
            data["bypass"] = self.bypass
        return data

    def definition(self) -> str:
        """Canonical text of what the scheme does, without its name: equal definitions must give equal results."""
        data = self.to_data()
        del data["name"]
        return json.dumps(data, sort_keys=True)


def _side_data(side: Side) -> dict[str, Any]:
    policy = {f.name: getattr(side, f.name) for f in dataclasses.fields(side)[1:] if getattr(side, f.name) != f.default}
    return {"codec": side.codec.plain.name, **side.codec.data(), **policy}


def _layers_data(rule: Layers) -> dict[str, Any]:
    data = {"first": rule.first, "last": rule.last, "at": list(rule.at), "scheme": rule.scheme.to_data()}
    return {key: value for key, value in data.items() if value}
