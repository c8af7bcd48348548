"""Schemes by name or from a mapping; every mistake with its path. The same mapping serves a preset file and a suite:

{name: mine, k: {codec: codebook, bits: 3, rotation: haar, window: 64}, v: q8_0, sinks: 4, protect: {first: 1, last: 1, scheme: q8_0}}
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tqbench.core import registry
from tqbench.core.codec import Codec, Order
from tqbench.core.errors import ConfigError, unknown
from tqbench.core.scheme import Bypass, Gqa, Layers, Logits, Phase, Scheme, Side

Problem = Callable[[tuple[str | int, ...], str], None]
POLICY = ("order", "rope", "window", "flush")  # of a side, beside its codec
RULES = ("sinks", "protect", "layers", "gqa", "logits")  # of a scheme as a whole; a side cannot have them


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
    allowed = {"name", "scheme", "k", "v", "window", *RULES, "bypass", "family", "source", "note"}
    count = _Counter(problem)
    for key in data.keys() - allowed:
        count((*at, str(key)), unknown("scheme key", str(key), allowed - {"family", "source"}))
    if "scheme" in data:
        return _variant(data, count, at)
    window = _count(data.get("window", 0), "window", count, at)
    sides = [_side(data.get(key), window, count, (*at, key)) for key in ("k", "v")]
    if sides[1] and sides[1].rope == "pre":
        count((*at, "v", "rope"), "rope: pre is for keys; values are never rotated")
    rules = _rules(data, count, at)
    bypass = _bypass(data, count, at)
    name = _name(data.get("name"), count, at)
    if count.found:
        return None
    k, v = (side for side in sides if side is not None)  # `count` has seen any failure
    texts: dict[str, Any] = {key: str(data.get(key, default)) for key, default in (("family", "suite"), ("source", ""), ("note", ""))}
    return Scheme(name, k, v, **rules, bypass=bypass, **texts)


def _variant(data: Mapping[str, Any], count: _Counter, at: tuple[str | int, ...]) -> Scheme | None:
    """A named scheme under another name or with a control."""
    base = _named(data["scheme"], count, (*at, "scheme"))
    for key in data.keys() & {"k", "v", "window", *RULES}:
        count((*at, key), f"{key!r} cannot be combined with 'scheme'; write out k and v, or use the preset as it is")
    if base is None or count.found:
        return None
    found = dataclasses.replace(base, name=_name(data.get("name", base.name), count, at), bypass=_bypass(data, count, at))
    return None if count.found else found


def _name(name: Any, problem: Problem, at: tuple[str | int, ...]) -> str:
    if isinstance(name, str) and name and len(name) <= 80 and not any(ord(c) < 32 for c in name):
        return name
    problem((*at, "name"), "a composed scheme needs a name: 1 to 80 printable characters")
    return ""


def _rules(data: Mapping[str, Any], problem: Problem, at: tuple[str | int, ...]) -> dict[str, Any]:
    """The policy of a scheme as a whole."""
    found: dict[str, Any] = {"sinks": _count(data.get("sinks", 0), "sinks", problem, at)}
    if data.get("protect") is not None:
        found["protect"] = _layers(data["protect"], problem, (*at, "protect"))
    if data.get("layers") is not None:
        items = data["layers"] if isinstance(data["layers"], list) else [data["layers"]]
        found["layers"] = tuple(_layers(item, problem, (*at, "layers", i)) for i, item in enumerate(items))
    if data.get("gqa") is not None:
        found["gqa"] = _gqa(data["gqa"], problem, (*at, "gqa"))
    if data.get("logits") is not None:
        found["logits"] = _logits(data["logits"], problem, (*at, "logits"))
    return found


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
        if different := [rule for rule in RULES if getattr(k, rule) != getattr(v, rule)]:
            problem(at, f"{name!r}: the two schemes differ in {', '.join(different)}; write out a mapping with k and v")
            return None
        about: dict[str, Any] = {"family": f"{k.family}/{v.family}", "source": "K as in the first, V as in the second", "note": ""}
        return dataclasses.replace(k, name=name, v=v.v, **about)
    if isinstance(name, str) and name in registry.refused():
        problem(at, f"{name!r} is no scheme for a KV cache: {registry.refused()[name]}")
        return None
    problem(at, unknown("scheme", str(name), known))
    return None


def _side(data: Any, window: int, problem: Problem, at: tuple[str | int, ...]) -> Side | None:
    if isinstance(data, str):
        named = _named(data, problem, at)
        if named is None:
            return None
        if own_rules := [rule for rule in RULES if getattr(named, rule)]:
            problem(at, f"scheme {data!r} has {', '.join(own_rules)}, which no side can have; write them beside k and v")
            return None
        own = named.k if at[-1] == "k" else named.v
        return dataclasses.replace(own, window=own.window or window)
    if not isinstance(data, Mapping):
        problem(at, "k and v are a scheme's name or a mapping with 'codec'")
        return None
    count = _Counter(problem)
    for key, hint in (("order", Order), ("rope", Phase)):
        if key in data and data[key] not in get_args(hint):
            count((*at, key), f"{key} must be {_spell(hint)}, got {data[key]!r}")
    own_window = _count(data.get("window", window), "window", count, at)
    flush = _count(data.get("flush", 0), "flush", count, at)
    codec = _codec({key: value for key, value in data.items() if key not in POLICY}, count, at)
    if codec is None or count.found:
        return None
    side = Side(codec, data.get("order", "native"), data.get("rope", "post"), own_window, flush or codec.unit)
    for key, text in side.problems():
        count((*at, key), text)
    return None if count.found else side


def _codec(data: Mapping[str, Any], problem: Problem, at: tuple[str | int, ...]) -> Codec | None:
    """The codec with what its side wraps around it."""
    known = registry.codecs()
    if not isinstance(data.get("codec"), str) or data["codec"] not in known:
        problem((*at, "codec"), unknown("codec", str(data.get("codec")), known))
        return None
    cls = known[data["codec"]]
    wrappers = registry.wrappers()
    owners = {f.name: owner for owner in (cls, *wrappers) for f in owner.parameters()}
    params = {key: value for key, value in data.items() if key != "codec"}
    count = _Counter(problem)
    for key, value in params.items():
        if key not in owners:
            count((*at, str(key)), unknown(f"parameter of codec {cls.name!r}", str(key), {*owners, *POLICY}))
        elif not _fits(value, hint := get_type_hints(owners[key])[key]):
            count((*at, key), f"{key} must be {_spell(hint)}, got {value!r}")
    if count.found:
        return None
    try:
        codec: Codec = cls(**{key: value for key, value in params.items() if owners[key] is cls})
        for wrapper in wrappers:
            own = {f.name: params[f.name] for f in wrapper.parameters() if f.name in params and params[f.name] != f.default}
            codec = wrapper(codec, **own) if own else codec  # type: ignore[call-arg, arg-type]
    except ConfigError as error:
        for text in error.problems:
            problem((*at, text.split()[0]), text)
        return None
    return codec


def _layers(data: Any, problem: Problem, at: tuple[str | int, ...]) -> Layers | None:
    if not isinstance(data, Mapping) or data.keys() - {"first", "last", "at", "scheme"} or "scheme" not in data:
        problem(at, "a rule for layers is a mapping {first: n, last: n, at: [n, …], scheme: name}")
        return None
    first, last = (_count(data.get(key, 0), key, problem, at) for key in ("first", "last"))
    named = data.get("at", [])
    if not isinstance(named, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in named):
        problem((*at, "at"), f"at must be a list of layers, the last being -1, got {named!r}")
        return None
    scheme = _inner(data["scheme"], problem, (*at, "scheme"))
    if not any(data.get(key) for key in ("first", "last", "at")):
        problem(at, "a rule for layers names some: first, last or at")
        return None
    return None if scheme is None else Layers(scheme, first, last, tuple(named))


def _inner(data: Any, problem: Problem, at: tuple[str | int, ...]) -> Scheme | None:
    """A scheme that stands in for another: it has no rules for layers and no control of its own."""
    scheme = parse(data, problem, at)
    if scheme is not None and (nested := [rule for rule in ("protect", "layers", "gqa", "logits", "bypass") if getattr(scheme, rule)]):
        problem(at, f"a scheme that stands in for another cannot have {', '.join(nested)} itself")
        return None
    return scheme


def _gqa(data: Any, problem: Problem, at: tuple[str | int, ...]) -> Gqa | None:
    if not isinstance(data, Mapping) or data.keys() != {"at_least", "scheme"}:
        problem(at, "gqa is a mapping {at_least: query heads per KV head, scheme: name}")
        return None
    at_least = _count(data["at_least"], "at_least", problem, at)
    scheme = _inner(data["scheme"], problem, (*at, "scheme"))
    return None if scheme is None else Gqa(at_least, scheme)


def _logits(data: Any, problem: Problem, at: tuple[str | int, ...]) -> Logits | None:
    fits = (
        isinstance(data, Mapping)
        and data.keys() == {"form", "value"}
        and data["form"] in ("grow", "shrink")
        and _fits(data["value"], float)
    )
    if not fits or not 0 < data["value"] < 100:
        problem(at, "logits is a mapping {form: grow or shrink, value: a number above 0}")
        return None
    return Logits(data["form"], float(data["value"]))


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
