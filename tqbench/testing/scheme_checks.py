"""What every scheme owes its users: it is data, its policy depends on positions alone, and a real store holds what it declares."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
import yaml
from torch import Tensor

from tqbench.cache.arrays import TorchArrays
from tqbench.cache.build import Shape
from tqbench.cache.calibration import Calibration, Piece
from tqbench.cache.rope import Rope
from tqbench.cache.store import Store
from tqbench.core.codec import ITEMSIZE
from tqbench.core.evidence import SideEvidence, audit, coverage
from tqbench.core.presets import parse
from tqbench.core.scheme import Scheme, Side
from tqbench.core.session import Terms
from tqbench.testing.refusal import refusal
from tqbench.testing.samples import HEAD_DIMS, gaussian, relative

Check = Callable[[Scheme], None]
ARCHITECTURE = "llama"  # llama.cpp's channel order is known for it and differs from Hugging Face's
CHUNKS = (1, 7, 32)
CALIBRATION = 512  # random vectors per head for codecs that learn


def checks_for(scheme: Scheme) -> Iterator[Check]:
    """The checks that apply to a scheme. A control is held to what its bypass promises; any other scheme also to its own two controls."""
    yield from ALWAYS
    if scheme.bypass is None:
        yield from (check_identity, check_bridge)


def layers(scheme: Scheme) -> list[Scheme]:
    """The different schemes that the layers of a model run: the scheme itself and those that some layers run instead."""
    rules = [rule for rule in (scheme.protect, *scheme.layers) if rule]
    count = 1 + sum(rule.first + rule.last for rule in rules) + 2 * max((abs(i) + 1 for rule in rules for i in rule.at), default=0)
    sharing = (1, scheme.gqa.at_least) if scheme.gqa else (1,)
    return list(dict.fromkeys(scheme.for_layer(index, count, n) for n in sharing for index in range(count)))


def kv_heads(scheme: Scheme) -> int:
    """KV heads enough for two groups that are packed together."""
    return 2 * max(side.codec.heads for side in (scheme.k, scheme.v))


def head_dims(scheme: Scheme) -> list[int]:
    """The head_dims among the usual ones that the scheme takes."""
    return [head_dim for head_dim in HEAD_DIMS if refusal(scheme.check, head_dim) is None]


def span(scheme: Scheme) -> int:
    """Tokens enough for sinks, two windows and two flushes, and not a multiple of anything."""
    return scheme.sinks + max(37, *(2 * (side.window + side.flush) + 5 for side in (scheme.k, scheme.v)))


def open_store(scheme: Scheme, dtype: str = "float64", kernel: str = "auto", head_dim: int | None = None) -> Store:
    """The store of one layer under this scheme, on the CPU, calibrated on random vectors."""
    size, heads = head_dim or head_dims(scheme)[0], kv_heads(scheme)
    rope = Rope(tuple(10000 ** (-i / size) for i in range(0, size, 2)))
    seen = Piece(gaussian(1, heads, CALIBRATION, size, seed=8), gaussian(1, heads, CALIBRATION, size, seed=9), start=0)
    terms = Terms(kernel, calibration=Calibration([[seen]]) if scheme.calibrated else None)
    return Store(scheme, Shape(ARCHITECTURE, size, dtype, heads, 2 * heads, rope), TorchArrays(), terms)


def samples(store: Store, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random queries, keys and values of a sequence, as the store's model would hand them over."""
    head_dim, dtype, kv = store.shape.head_dim, getattr(torch, store.shape.dtype), store.shape.kv_heads
    return tuple(gaussian(1, heads, tokens, head_dim, seed=seed, dtype=dtype) for seed, heads in enumerate((store.shape.heads, kv, kv)))  # type: ignore[return-value]


def feed(store: Store, tokens: int, chunk: int) -> Tensor:
    """Attention of every query of the sequence, its text cut into chunks."""
    q, k, v = samples(store, tokens)
    out = []
    for first in range(0, tokens, chunk):
        new = slice(first, first + chunk)
        store.append(k[:, :, new], v[:, :, new])
        out.append(store.attend(q[:, :, new], q.shape[-1] ** -0.5))
    return torch.cat(out, dim=2)


def shown(store: Store, tokens: int, chunk: int) -> tuple[Tensor, Tensor]:
    """The keys and values that the engine's own attention would read in the end."""
    _, k, v = samples(store, tokens)
    visible = k, v
    for first in range(0, tokens, chunk):
        store.append(k[:, :, first : first + chunk], v[:, :, first : first + chunk])
        visible = store.visible()
    return visible


def _parsed(data: Any, scheme: Scheme) -> Scheme | None:
    problems: list[str] = []
    parsed = parse(data, lambda at, text: problems.append(f"{at}: {text}"))
    assert not problems, f"{scheme.label}: its own data is refused: {'; '.join(problems)}"
    return parsed


def check_data_round_trip(scheme: Scheme) -> None:
    """`parse(to_data())` is an equal scheme."""
    parsed = _parsed(scheme.to_data(), scheme)
    assert parsed == scheme, f"{scheme.label} comes back from its data as {parsed}"


def check_yaml_round_trip(scheme: Scheme) -> None:
    """Its data survives YAML."""
    try:
        text = yaml.safe_dump(scheme.to_data())
    except yaml.YAMLError as error:
        raise AssertionError(f"{scheme.label} holds something that YAML cannot: {error}") from error
    parsed = _parsed(yaml.safe_load(text), scheme)
    assert parsed == scheme, f"{scheme.label} comes back from YAML as {parsed}"


def check_head_dims(scheme: Scheme) -> None:
    """A store opens for every head_dim that the scheme takes; any other is refused with a sentence that names it."""
    for head_dim in HEAD_DIMS:
        reason = refusal(scheme.check, head_dim)
        if reason is not None:
            assert str(head_dim) in reason, f"{scheme.label} refuses head_dim {head_dim} without naming it: {reason!r}"
            continue
        for layer in layers(scheme):
            late = refusal(open_store, layer, head_dim=head_dim)
            assert late is None, f"{scheme.label} takes head_dim {head_dim}, but its store does not: {late}"
    assert head_dims(scheme), f"{scheme.label} takes none of the head_dims {HEAD_DIMS}"


def check_boundary(scheme: Scheme) -> None:
    """Where the packed region ends is a function of the position alone, never shrinks, keeps the window exact and cuts no unit."""
    for layer in layers(scheme):
        for name, side in (("k", layer.k), ("v", layer.v)):
            positions = range(span(layer))
            ends = [side.packed(t, layer.sinks) for t in positions]
            backwards = [side.packed(t, layer.sinks) for t in reversed(positions)]
            where = f"{layer.label} {name}"
            assert ends == backwards[::-1], f"{where}: the boundary depends on what was asked before"
            assert ends == sorted(ends), f"{where}: the packed region shrinks"
            for t, end in enumerate(ends):
                sinks = min(layer.sinks, t + 1)
                newest = max(sinks, t + 1 - side.window)
                assert sinks <= end <= newest, f"{where}: at position {t} the packed region ends at {end}, allowed is {sinks} to {newest}"
                packed, unit = end - sinks, side.codec.unit
                assert packed % unit == 0, f"{where}: at position {t} {packed} tokens are packed, the unit is {unit}"


def check_chunks(scheme: Scheme) -> None:
    """How the text is cut into forward calls changes nothing: attention in float64 agrees to rounding."""
    for layer in layers(scheme):
        tokens = span(layer)
        whole = feed(open_store(layer, kernel="attend=torch"), tokens, tokens)
        for chunk in CHUNKS:
            off = (feed(open_store(layer, kernel="attend=torch"), tokens, chunk) - whole).abs().amax()
            assert off <= 1e-12, f"{layer.label}: chunks of {chunk} differ from one of {tokens} by {off:.2g}"


def check_bits(scheme: Scheme) -> None:
    """`bits` is what a store holds: resident bytes over packed values, at every head_dim. It is the most where the layout is learned."""
    for layer in layers(scheme):
        for head_dim in head_dims(scheme):
            store = open_store(layer, "float32", head_dim=head_dim)
            feed(store, span(layer), span(layer))
            for side, half, listed in zip(store.evidence(), (layer.k, layer.v), layer.bits(head_dim), strict=True):
                where = f"{layer.label} {side.side} at head_dim {head_dim}"
                assert side.tokens_packed, f"{where}: nothing is packed after {side.tokens} tokens"
                if layer.bypass is None:
                    measured = 8 * (side.bytes_payload + side.bytes_metadata) / (side.tokens_packed * store.shape.kv_heads * head_dim)
                    fits = measured <= listed if half.codec.tags.learned_layout else measured == listed
                    assert fits, f"{where}: {measured} bits are resident, {listed} declared"


def check_ledger(scheme: Scheme) -> None:
    """The ledger is the policy written out, to the byte: packed units by the layout, everything else in the model's dtype."""
    for layer in layers(scheme):
        for dtype in ("float32", "float64"):
            tokens = span(layer)
            store = open_store(layer, dtype)
            feed(store, tokens, CHUNKS[1])
            for counted, side, held in zip(store.evidence(), (layer.k, layer.v), (store.k, store.v), strict=True):
                packed = _packed_tokens(side, layer.sinks, tokens)
                unit = held.codec.layout(held.shape.head_dim).nbytes
                expected = {
                    "tokens_packed": packed,
                    "packed bytes": packed // side.codec.unit * unit * store.shape.kv_heads // held.codec.heads,
                    "bytes_exact": (tokens - packed) * held.shape.head_dim * ITEMSIZE[dtype] * store.shape.kv_heads,
                }
                found = {
                    "tokens_packed": counted.tokens_packed,
                    "packed bytes": counted.bytes_payload + counted.bytes_metadata,
                    "bytes_exact": counted.bytes_exact,
                }
                assert found == expected, f"{layer.label} {counted.side} in {dtype}: the ledger says {found}, the policy {expected}"
                slack, most = counted.bytes_slack, found["packed bytes"]
                assert 0 <= slack <= most, f"{layer.label} {counted.side}: {slack} bytes of slack, doubling leaves at most {most}"


def _packed_tokens(side: Side, sinks: int, tokens: int) -> int:
    """The policy of a side in one line, apart from its own code."""
    return max(0, tokens - sinks - side.window) // side.flush * side.flush


def check_evidence(scheme: Scheme) -> None:
    """A run of the store leaves evidence that the audit accepts, with coverage above zero."""
    found: list[SideEvidence] = []
    for index, layer in enumerate(layers(scheme)):
        store = open_store(layer, "float32")
        feed(store, span(layer), CHUNKS[2])
        found += [dataclasses.replace(side, layer=index) for side in store.evidence()]
    objections = audit(found, len(found) // 2, lossless=scheme.lossless_in("float32"), identical=False)
    assert not objections, f"{scheme.label}: {'; '.join(objections)}"
    assert coverage(found) > 0, f"{scheme.label}: nothing that was attended was packed"


def check_identity(scheme: Scheme) -> None:
    """With `bypass: identity` what the engine reads is bit for bit what was put in, in every dtype."""
    for layer in layers(dataclasses.replace(scheme, bypass="identity")):
        for dtype in ("float16", "bfloat16", "float32", "float64"):
            store = open_store(layer, dtype)
            for name, out, x in zip("kv", shown(store, span(layer), CHUNKS[1]), samples(store, span(layer))[1:], strict=True):
                assert out.dtype == x.dtype, f"{layer.label} {name}: {x.dtype} comes back as {out.dtype}"
                assert torch.equal(out, x), f"{layer.label} {name}: {dtype} values change"


def check_bridge(scheme: Scheme) -> None:
    """With `bypass: bridge` the rotation, padding and channel order run and cost rounding only."""
    for layer in layers(dataclasses.replace(scheme, bypass="bridge")):
        for dtype, bound in (("float32", 1e-12), ("float64", 1e-29)):  # relative squared: (ten roundings)²
            store = open_store(layer, dtype)
            for name, out, x in zip("kv", shown(store, span(layer), CHUNKS[1]), samples(store, span(layer))[1:], strict=True):
                lost = relative(x, out)
                assert lost <= bound, f"{layer.label} {name}: the relative squared error without a quantizer is {lost:.2g} in {dtype}"


ALWAYS: tuple[Check, ...] = (
    check_data_round_trip,
    check_yaml_round_trip,
    check_head_dims,
    check_boundary,
    check_chunks,
    check_bits,
    check_ledger,
    check_evidence,
)
