"""A scheme: a codec for K, a codec for V, and the policy that says which tokens are packed when. A scheme is data.

The same mapping serves a preset file and a suite:

    {name: mine, k: {codec: codebook, bits: 3, window: 64}, v: q8_0, sinks: 4, protect: {first: 1, last: 1, scheme: q8_0}}
"""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tqbench.core import registry
from tqbench.core.codec import Codec, Order
from tqbench.core.errors import ConfigError, Unsupported, unknown

Bypass = Literal["identity", "bridge"]
Problem = Callable[[tuple[str | int, ...], str], None]


@dataclass(frozen=True)
class Side:
    """How K (or V) is stored: the codec, the order of its channels, and which tokens are packed when."""

    codec: Codec
    order: Order = "native"
    window: int = 0  # recent tokens kept exact
    flush: int = 1  # tokens leave the window in multiples of this

    def packed(self, t: int, sinks: int = 0) -> int:
        """Where the packed region ends for the query at position t: a function of t alone, so the text may be cut anywhere."""
        old = max(0, t + 1 - sinks - self.window)
        return min(sinks, t + 1) + old // self.flush * self.flush

    def problems(self) -> list[tuple[str, str]]:
        """(field, what is wrong) for the policy of this side."""
        found = [(name, f"{name} must not be negative, got {value}") for name, value in (("window", self.window),) if value < 0]
        if self.flush < 1 or self.flush % self.codec.unit:
            found.append(
                (
                    "flush",
                    f"flush must be a positive multiple of {self.codec.unit} (the codec packs that many tokens together), got {self.flush}",
                )
            )
        return found


@dataclass(frozen=True)
class Protect:
    """First and last KV-bearing layers that are kept in another scheme."""

    first: int
    last: int
    scheme: Scheme


@dataclass(frozen=True)
class Scheme:
    """A codec for K, a codec for V, and policy."""

    name: str
    k: Side
    v: Side
    sinks: int = 0
    protect: Protect | None = None
    bypass: Bypass | None = None
    protecting: bool = field(default=False, compare=False)  # stands in for another scheme in a layer
    family: str = field(default="suite", compare=False)
    source: str = field(default="", compare=False)
    note: str = field(default="", compare=False)

    @property
    def label(self) -> str:
        """The name with its control, as tables print it."""
        return f"{self.name}[{self.bypass}]" if self.bypass else self.name

    def bits(self, head_dim: int) -> tuple[float, float]:
        """Bits per packed value of K and of V, scales included."""
        return tuple(side.codec.layout(head_dim).bits(head_dim) for side in (self.k, self.v))  # type: ignore[return-value]

    def for_layer(self, index: int, layers: int) -> Scheme:
        """The scheme of the index-th of the KV-bearing layers."""
        if self.protect is None:
            return self
        if self.protect.first + self.protect.last >= layers:
            raise Unsupported(
                f"scheme {self.name!r} protects {self.protect.first} + {self.protect.last} of {layers} layers, so it would run in none"
            )
        if self.protect.first <= index < layers - self.protect.last:
            return self
        return dataclasses.replace(self.protect.scheme, bypass=self.bypass, protecting=True)

    def check(self, head_dim: int) -> None:
        """Raise Unsupported if a codec cannot store vectors of this size."""
        for side in (self.k, self.v):
            side.codec.check(head_dim)
        if self.protect:
            self.protect.scheme.check(head_dim)

    def lossless_in(self, dtype: str) -> bool:
        """Whether results must equal the baseline's up to the order of summation."""
        if self.bypass:
            return True
        own = all(dtype in side.codec.tags.lossless_in for side in (self.k, self.v))
        return own and (self.protect is None or self.protect.scheme.lossless_in(dtype))

    def to_data(self) -> dict[str, Any]:
        """The mapping that `parse` reads back to an equal scheme."""
        data: dict[str, Any] = {"name": self.name, "k": _side_data(self.k), "v": _side_data(self.v)}
        if self.sinks:
            data["sinks"] = self.sinks
        if self.protect:
            data["protect"] = {
                "first": self.protect.first,
                "last": self.protect.last,
                "scheme": self.protect.scheme.to_data(),
            }
        if self.bypass:
            data["bypass"] = self.bypass
        return data

    def definition(self) -> str:
        """Canonical text of what the scheme does, without its name: equal definitions must give equal results."""
        data = self.to_data()
        del data["name"]
        return json.dumps(data, sort_keys=True)


def _side_data(side: Side) -> dict[str, Any]:
    defaults = {f.name: f.default for f in dataclasses.fields(side)}
    policy = {name: getattr(side, name) for name in ("order", "window", "flush") if getattr(side, name) != defaults[name]}
    params = {f.name: getattr(side.codec, f.name) for f in dataclasses.fields(side.codec) if getattr(side.codec, f.name) != f.default}
    return {"codec": side.codec.name, **params, **policy}


@cache
def preset(name: str) -> Scheme:
    """The preset of that name; `A/B` takes K from A and V from B."""
    return read(name)


def presets() -> list[str]:
    """All preset names, in the order of their files."""
    return list(registry.preset_data())


def read(data: Any) -> Scheme:
    """A scheme from a preset's name or a mapping; ConfigError with every mistake."""
    problems: list[str] = []
    scheme = parse(data, lambda at, text: problems.append(": ".join([*(".".join(map(str, at)),) * bool(at), text])))
    if scheme is None:
        raise ConfigError(problems)
    return scheme


def parse(data: Any, problem: Problem, at: tuple[str | int, ...] = ()) -> Scheme | None:
    """A scheme from a preset's name or a mapping. Every mistake goes to `problem` with its path; None if there was one."""
    if isinstance(data, str):
        return _named(data, problem, at)
    if not isinstance(data, Mapping):
        problem(at, f"a scheme is a name or a mapping with k and v, got {type(data).__name__}")
        return None
    allowed = {"name", "scheme", "k", "v", "window", "sinks", "protect", "bypass", "family", "source", "note"}
    count = _Counter(problem)
    for key in data.keys() - allowed:
        count((*at, str(key)), unknown("scheme key", str(key), allowed - {"family", "source"}))
    if "scheme" in data:
        base = _named(data["scheme"], count, (*at, "scheme"))
        for key in data.keys() & {"k", "v", "window", "sinks", "protect"}:
            count((*at, key), f"{key!r} cannot be combined with 'scheme'; write out k and v, or use the preset as it is")
        if base is None or count.found:
            return None
        return dataclasses.replace(base, name=str(data.get("name", base.name)), bypass=_bypass(data, count, at))
    window = _count(data.get("window", 0), "window", count, at)
    sides = [_side(data.get(key), window, count, (*at, key)) for key in ("k", "v")]
    sinks = _count(data.get("sinks", 0), "sinks", count, at)
    protect = _protect(data["protect"], count, (*at, "protect")) if data.get("protect") is not None else None
    bypass = _bypass(data, count, at)
    name = data.get("name")
    if not isinstance(name, str) or not name or len(name) > 80 or any(ord(c) < 32 for c in name):
        count((*at, "name"), "a composed scheme needs a name: 1 to 80 printable characters")
    if count.found:
        return None
    k, v = (side for side in sides if side is not None)  # `count` has seen any failure
    texts = {key: str(data.get(key, default)) for key, default in (("family", "suite"), ("source", ""), ("note", ""))}
    return Scheme(str(name), k, v, sinks, protect, bypass, family=texts["family"], source=texts["source"], note=texts["note"])


@dataclass
class _Counter:
    """Passes problems on and remembers that there were some."""

    problem: Problem
    found: int = 0

    def __call__(self, at: tuple[str | int, ...], text: str) -> None:
        self.found += 1
        self.problem(at, text)


def _named(name: Any, problem: Problem, at: tuple[str | int, ...]) -> Scheme | None:
    known = registry.preset_data()
    if isinstance(name, str) and name in known:
        return parse({"name": name, **known[name]}, problem, at)
    if isinstance(name, str) and name.count("/") == 1:
        k, v = (_named(part, problem, at) for part in name.split("/"))
        if k is None or v is None:
            return None
        if k.sinks != v.sinks or k.protect != v.protect:
            problem(at, f"{name!r}: the two schemes differ in sinks or protected layers; write out a mapping with k and v")
            return None
        return Scheme(
            name,
            k.k,
            v.v,
            k.sinks,
            k.protect,
            family=f"{k.family}/{v.family}",
            source="K as in the first, V as in the second",
        )
    problem(at, unknown("scheme", str(name), known))
    return None


def _side(data: Any, window: int, problem: Problem, at: tuple[str | int, ...]) -> Side | None:
    if isinstance(data, str):
        named = _named(data, problem, at)
        if named is None:
            return None
        if named.sinks or named.protect:
            problem(
                at,
                f"scheme {data!r} has sinks or protected layers, which no side can have; write them beside k and v",
            )
            return None
        own = named.k if at[-1] == "k" else named.v
        return dataclasses.replace(own, window=own.window or window)
    if not isinstance(data, Mapping):
        problem(at, "k and v are a scheme's name or a mapping with 'codec'")
        return None
    count = _Counter(problem)
    if data.get("order", "native") not in get_args(Order):
        count((*at, "order"), f"order must be {_spell(Order)}, got {data['order']!r}")
    own_window = _count(data.get("window", window), "window", count, at)
    flush = _count(data.get("flush", 0), "flush", count, at)
    codec = _codec({key: value for key, value in data.items() if key not in ("order", "window", "flush")}, count, at)
    if codec is None or count.found:
        return None
    side = Side(codec, data.get("order", "native"), own_window, flush or codec.unit)
    for key, text in side.problems():
        count((*at, key), text)
    return None if count.found else side


def _codec(data: Mapping[str, Any], problem: Problem, at: tuple[str | int, ...]) -> Codec | None:
    known = registry.codecs()
    if not isinstance(data.get("codec"), str) or data["codec"] not in known:
        problem((*at, "codec"), unknown("codec", str(data.get("codec")), known))
        return None
    cls = known[data["codec"]]
    hints = get_type_hints(cls)
    allowed = {f.name for f in dataclasses.fields(cls)}
    params = {key: value for key, value in data.items() if key != "codec"}
    count = _Counter(problem)
    for key, value in params.items():
        if key not in allowed:
            count((*at, str(key)), unknown(f"parameter of codec {cls.name!r}", str(key), allowed | {"order", "window", "flush"}))
        elif not _fits(value, hints[key]):
            count((*at, key), f"{key} must be {_spell(hints[key])}, got {value!r}")
    if count.found:
        return None
    try:
        return cls(**params)
    except ConfigError as error:
        for text in error.problems:
            problem((*at, text.split()[0]), text)
        return None


def _protect(data: Any, problem: Problem, at: tuple[str | int, ...]) -> Protect | None:
    if not isinstance(data, Mapping) or data.keys() - {"first", "last", "scheme"} or "scheme" not in data:
        problem(at, "protect is a mapping {first: n, last: n, scheme: name}")
        return None
    first, last = (_count(data.get(key, 0), key, problem, at) for key in ("first", "last"))
    scheme = parse(data["scheme"], problem, (*at, "scheme"))
    if scheme is not None and scheme.protect:
        problem((*at, "scheme"), "a protecting scheme cannot protect layers itself")
        return None
    return None if scheme is None else Protect(first, last, scheme)


def _bypass(data: Mapping[str, Any], problem: Problem, at: tuple[str | int, ...]) -> Any:
    bypass = data.get("bypass")
    if bypass is not None and bypass not in get_args(Bypass):
        problem((*at, "bypass"), f"bypass must be {_spell(Bypass)}, got {bypass!r}")
    return bypass


def _count(value: Any, name: str, problem: Problem, at: tuple[str | int, ...]) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 1 << 24:
        problem((*at, name), f"{name} must be a whole number of tokens or layers, 0 or more, got {value!r}")
        return 0
    return value


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return any(value == allowed and type(value) is type(allowed) for allowed in get_args(hint))
    if get_origin(hint) in (types.UnionType,):
        return any(_fits(value, part) for part in get_args(hint))
    if hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool))


def _spell(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(str(value) for value in get_args(hint))
    return getattr(hint, "__name__", str(hint))
