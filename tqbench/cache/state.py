"""What a store hands out to be saved and takes back: the one place that knows which of its fields are its state.

What is handed out is settled: every token has been attended or taken over. What is taken back was attended by nobody here, and must fit
the scheme, the model and the policy to the last array; anything else is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tqbench.cache.arrays import Arrays
from tqbench.cache.calibration import learned_sha256
from tqbench.cache.side import SideStore
from tqbench.core.codec import Codec
from tqbench.core.errors import StorageError
from tqbench.core.state import Entry, Form, State
from tqbench.measure.stages import stage

COUNTS = ("tokens", "base", "packed_end", "units")
MEASURED = {"sampled": int, "encoded": int, "wrong": float, "size": float}


def hand_out(side: SideStore, key: str) -> Entry:
    """One side of a layer."""
    facts = {name: getattr(side, name) for name in COUNTS} | {
        "learned": learned_sha256(side.codec),
        "sampled": side.sampled,  # what is known of the codec's error, and that it ran
        "encoded": side.kernels.encode.calls,
        "wrong": side.error[0],
        "size": side.error[1],
    }
    held = {name: buffer[:, :, : side.units] for name, buffer in side.buffers.items()}
    if side.holds_exact:
        held |= {"sinks": side.exact_sinks, "window": side.tail[:, :, side.packed_end - side.tail_start :]}
    with stage("gather"):
        return Entry(key, facts, tuple((form, side.arrays.to_bytes(held[form.name])) for form in _forms(side, facts)))


def take_back(side: SideStore, entry: Entry) -> None:
    """Into a side that is empty."""
    facts = _facts(side, entry)
    forms = _forms(side, facts)
    if forms != [form for form, _ in entry.arrays]:
        raise StorageError(f"{entry.key}: its arrays are not those that scheme and model have for {facts['tokens']} tokens")
    with stage("restore"):
        found = {form.name: side.arrays.from_bytes(data, form.shape, form.dtype) for form, data in entry.arrays}
    for name in COUNTS:
        setattr(side, name, facts[name])
    side.first_query, side.tail_start = side.tokens, side.packed_end
    side.exact_sinks, side.tail = found.pop("sinks", None), found.pop("window", None)
    side.buffers, side.capacity = found, side.units
    side.error, side.sampled = (facts["wrong"], facts["size"]), facts["sampled"]
    side.kernels.encode.calls = facts["encoded"]


def exact(key: str, array: Any, start: int, arrays: Arrays, dtype: str) -> Entry:
    """Keys or values of the model's own cache, the first of them at that position."""
    shape = tuple(map(int, array.shape))
    with stage("gather"):
        return Entry(key, {"tokens": start + shape[2], "start": start}, ((Form("exact", "exact", dtype, shape), arrays.to_bytes(array)),))


def exactly(entry: Entry, heads: int, head_dim: int, arrays: Arrays, dtype: str) -> tuple[Any, int]:
    """Undo `exact`."""
    facts = entry.facts
    if facts.keys() != {"tokens", "start"} or not all(map(_count, facts.values())) or facts["start"] > facts["tokens"]:
        raise StorageError(f"{entry.key}: its facts are not those of a saved cache")
    tokens, start = int(facts["tokens"]), int(facts["start"])
    form = Form("exact", "exact", dtype, (1, heads, tokens - start, head_dim))
    if [form] != [form for form, _ in entry.arrays]:
        raise StorageError(f"{entry.key}: its arrays are not those that the model has for {tokens} tokens")
    with stage("restore"):
        return arrays.from_bytes(entry.arrays[0][1], form.shape, form.dtype), start


def by_key(state: State, keys: Iterable[str]) -> Mapping[str, Entry]:
    """The entries, which must be these."""
    found, wanted = {entry.key: entry for entry in state.entries}, list(keys)
    if len(found) != len(state.entries) or found.keys() != set(wanted):
        raise StorageError(f"it holds {', '.join(found) or 'nothing'}; this model and scheme have {', '.join(wanted)}")
    return found


def _facts(side: SideStore, entry: Entry) -> dict[str, Any]:
    """The facts, once they are what they must be: a policy is a function of the number of tokens."""
    facts = entry.facts
    if facts.keys() != {*COUNTS, *MEASURED, "learned"} or not all(_count(facts[name]) for name in (*COUNTS, "sampled", "encoded")):
        raise StorageError(f"{entry.key}: its facts are not those of a saved cache")
    if not all(isinstance(facts[name], float) and facts[name] >= 0 for name in ("wrong", "size")):
        raise StorageError(f"{entry.key}: its codec error is no number")
    if facts["learned"] != learned_sha256(side.codec):
        raise StorageError(f"{entry.key} was packed after another calibration: what its codec had learned differs from what it has here")
    tokens, base = facts["tokens"], facts["base"]
    begin = max(base, min(side.sinks, tokens)) if side.holds_exact else side.sinks
    packed_end = max(side.side.packed(tokens - 1, side.sinks) if tokens else 0, begin)
    if (facts["packed_end"], facts["units"] * side.codec.unit) != (packed_end, packed_end - begin) or (base and side.layer.reach is None):
        raise StorageError(f"{entry.key}: {facts['units']} packed units up to {facts['packed_end']} of {tokens} tokens are not its policy")
    return facts


def _forms(side: SideStore, facts: Mapping[str, Any]) -> list[Form]:
    """The arrays that a side has after so many tokens."""
    shape, codec, layout = side.shape, side.codec, side.codec.layout(side.shape.head_dim)
    sinks = min(side.sinks, facts["tokens"]) - facts["base"]
    dtype, (heads, size) = shape.dtype, (shape.kv_heads, shape.head_dim)
    found = []
    if side.holds_exact:
        found += [Form("sinks", "sinks", dtype, (1, heads, sinks, size))] if sinks > 0 else []
        found.append(Form("window", "window", dtype, (1, heads, facts["tokens"] - facts["packed_end"], size)))
    if side.holds_packed and facts["units"]:
        rows = (1, heads // codec.heads, facts["units"])
        found += [Form(p.name, p.role, p.dtype, (*rows, *p.shape), _bits(codec, p.nbytes, p.dtype, size)) for p in layout.parts]
    return found


def _bits(codec: Codec, nbytes: int, dtype: str, head_dim: int) -> int:
    """Bits of a code, where an array is a bit stream with a code for every value; else 8."""
    values = codec.unit * codec.heads * codec.stored_dim(head_dim)
    bits, rest = divmod(8 * nbytes, values)
    return bits if dtype == "uint8" and not rest and 1 <= bits <= 8 else 8


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 1 << 40
