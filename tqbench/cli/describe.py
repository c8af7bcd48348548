"""A scheme in words: what is done to a key or value, what is stored, and which tokens and layers are exempt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from tqbench.core.codec import Codec, Layout
from tqbench.core.errors import Unsupported
from tqbench.core.presets import presets
from tqbench.core.scheme import Layers, Logits, Scheme, Side

WIDTH = 76  # of the drawing, in characters

# What happens before the codec, outermost first: the key of the side, and the words for it.
STEPS = {
    "rope": "keys as they were before the rotary embedding, which is applied when they are read",
    "order": "channels in {order} order",
    "center": "the calibrated mean of each channel subtracted",
    "pad": "zero-padded to a multiple of {pad} channels",
    "rotation": "{channels} rotated by {rotation}",
}


NO_RULES = "no exceptions: every token of every layer goes to the codec"


def show(scheme: Scheme, head_dim: int) -> str:
    """Everything about a scheme, as text."""
    sides = {"keys": scheme.k, "values": scheme.v} if scheme.k != scheme.v else {"keys and values": scheme.k}
    parts = [
        [f"{scheme.name} · {scheme.family}", *([scheme.note] if scheme.note else [])],
        *([name, *(f"  {line}" for line in composition(side))] for name, side in sides.items()),
        ["policy", *(f"  {line}" for line in rules(scheme) or [NO_RULES if not scheme.peer else "its library's own"])],
        *(_bytes(name, codec, head_dim) for name, codec in _layouts(scheme, head_dim).items()),
        ["tags", f"  {', '.join(tags(scheme)) or 'none'}"],
        ["in a suite", *(f"  {line}" for line in yaml_of([scheme.to_data()]).splitlines())],
        ["source", f"  {scheme.source or 'not given'}"],
    ]
    return "\n\n".join("\n".join(part) for part in parts)


def composition(side: Side) -> list[str]:
    """What is done to a vector, step by step, down to the codec and its parameters."""
    data, codec = side_data(side), side.codec.plain
    channels = f"groups of up to {data['rotation_group']} channels" if "rotation_group" in data else "the whole vector"
    steps = [words.format(**data | {"channels": channels}) for key, words in STEPS.items() if key in data]
    params = " · ".join(f"{f.name} {_plain(getattr(codec, f.name))}" for f in codec.parameters())
    about = (type(codec).__doc__ or "").strip().splitlines()[0]
    return [*steps, f"codec {codec.name}: {about}", *([f"  {params}"] if params else [])]


def rules(scheme: Scheme) -> list[str]:
    """Which tokens and layers are exempt, and what else the scheme does."""
    exempt = "protected, so they do not count as covered"
    return [
        *([f"the first {_count(scheme.sinks, 'token')} exact"] if scheme.sinks else []),
        *_windows(scheme),
        *([f"{_layers(scheme.protect)}: {_named(scheme.protect.scheme)} ({exempt})"] if scheme.protect else []),
        *(f"{_layers(rule)}: {_named(rule.scheme)}" for rule in scheme.layers),
        *([f"{scheme.gqa.at_least} or more query heads per KV head: {_named(scheme.gqa.scheme)} instead"] if scheme.gqa else []),
        *([_logits(scheme.logits)] if scheme.logits else []),
    ]


def tags(scheme: Scheme) -> list[str]:
    """What checks, plans and audits choose by."""
    codecs = {"K": scheme.k.codec, "V": scheme.v.codec}
    every = [side.codec.tags for one in scheme.variants() for side in (one.k, one.v)]
    lossless = [dtype for dtype in ("float16", "bfloat16", "float32", "float64") if scheme.lossless_in(dtype)]
    return [
        *(["needs calibration"] if scheme.calibrated else []),
        *(f"{side} packs {codec.unit} tokens together" for side, codec in codecs.items() if codec.unit > 1),
        *(f"{side} packs {codec.heads} KV heads together" for side, codec in codecs.items() if codec.heads > 1),
        *(f"{side} packs all layers together" for side, codec in codecs.items() if codec.tags.across_layers),
        *(["pre-RoPE keys"] if scheme.k.rope == "pre" else []),
        *([f"lossless in {', '.join(lossless)}"] if lossless else []),
        *(["destructive"] if any(tag.destructive for tag in every) else []),
        *(["runs inside its own library"] if any(tag.peer for tag in every) else []),
        *([f"backend {tag} only"] if (tag := next((tag.backend for tag in every if tag.backend), None)) else []),
        *(["protocol deploy only"] if any(tag.deploy_only for tag in every) else []),
    ]


def bits(scheme: Scheme, head_dim: int) -> tuple[tuple[str, str] | None, str]:
    """Bits per packed value of K and V; None if the scheme does not take this head_dim, with the reason."""
    try:
        scheme.check(head_dim)
    except Unsupported as reason:
        return None, str(reason)
    k, v = (f"{value:.4g}" for value in scheme.bits(head_dim))
    return (k, v), ""


def draw(layout: Layout, head_dim: int) -> list[str]:
    """One unit's bytes: a bar with a field per array, a line per array, and the sum."""
    fields = [f" {part.name} ".ljust(WIDTH * part.nbytes // max(1, layout.nbytes)) for part in layout.parts]
    wide = [max(len(text) for text in column) for column in zip(*_cells(layout), strict=True)]
    lines = [
        f"{name.ljust(wide[0])}  {dtype.ljust(wide[1])}  {shape.ljust(wide[2])}  {count.rjust(wide[3])}  {role}"
        for name, dtype, shape, count, role in _cells(layout)
    ]
    values = layout.unit * layout.heads * head_dim
    return [f"│{'│'.join(fields)}│", *lines, f"{layout.nbytes} bytes for {values:,} values: {layout.bits(head_dim):.4g} bits per value"]


def side_data(side: Side) -> dict[str, Any]:
    """The side as a suite writes it."""
    data: dict[str, Any] = Scheme("one", side, side).to_data()["k"]
    return data


def yaml_of(data: Any, *, flow: bool = False) -> str:
    """Plain data as a suite may hold it."""
    text: str = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, default_flow_style=flow or None, width=10_000 if flow else 120)
    return text


def _layouts(scheme: Scheme, head_dim: int) -> dict[str, Codec]:
    """The codecs to draw: one for both sides if these store the same."""
    k, v = scheme.k.codec, scheme.v.codec
    alike = k == v or (_refusal(k, head_dim) is None is _refusal(v, head_dim) and k.layout(head_dim) == v.layout(head_dim))
    return {"keys and values": k} if alike else {"keys": k, "values": v}


def _bytes(name: str, codec: Codec, head_dim: int) -> list[str]:
    title = f"bytes of {name} at head_dim {head_dim}"
    if reason := _refusal(codec, head_dim):
        return [title, f"  unsupported: {reason}"]
    layout = codec.layout(head_dim)
    unit = f"{layout.unit} tokens" if layout.unit > 1 else "one token"
    heads = f"{layout.heads} KV heads" if layout.heads > 1 else "one KV head"
    return [f"{title}: {unit} of {heads}", *(f"  {line}" for line in draw(layout, head_dim))]


def _refusal(codec: Codec, head_dim: int) -> str | None:
    try:
        codec.check(head_dim)
    except Unsupported as reason:
        return str(reason)
    return None


def _cells(layout: Layout) -> list[tuple[str, ...]]:
    return [(part.name, part.dtype, f"[{', '.join(map(str, part.shape))}]", f"{part.nbytes:,}", part.role) for part in layout.parts]


def _windows(scheme: Scheme) -> Iterator[str]:
    sides = {"keys": scheme.k, "values": scheme.v}
    if (scheme.k.window, scheme.k.flush) == (scheme.v.window, scheme.v.flush):
        sides = {"keys and values": scheme.k}
    for name, side in sides.items():
        if side.window:
            yield f"{name} of the last {_count(side.window, 'token')} exact"
        if side.flush > 1:
            yield f"{name} packed {side.flush} tokens at a time, exact until then"


def _layers(rule: Layers) -> str:
    """Which layers, in words."""
    ends = [f"the {end} {_count(count, 'layer')}" for end, count in (("first", rule.first), ("last", rule.last)) if count]
    named = [f"layer {', '.join(map(str, rule.at))}"] if rule.at else []
    return " and ".join([*ends, *named])


def _named(scheme: Scheme) -> str:
    """A scheme that stands in for another: its name if it is a preset's, else what it is."""
    if scheme.name in presets():
        return scheme.name
    k, v = (yaml_of(side_data(side), flow=True).strip() for side in (scheme.k, scheme.v))
    return f"K {k}, V {v}"


def _logits(logits: Logits) -> str:
    form = "1 + {0}·√ln N" if logits.form == "grow" else "{0} / ({0} + √(ln N / ln 2048))"
    return f"attention logits times {form.format(f'{logits.value:g}')} over N keys"


def _count(number: int, what: str) -> str:
    return what if number == 1 else f"{number} {what}s"


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
