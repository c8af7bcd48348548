"""Encode and decode of many vectors: every form, on the codecs of every scheme, beside the codec's own mathematics in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tqbench.bench import ceiling
from tqbench.bench.contender import Contender, forms, relative, twin
from tqbench.bench.data import vectors
from tqbench.bench.device import repeated
from tqbench.bench.plan import Plan
from tqbench.bench.result import Row
from tqbench.cache.build import Layer, Shape, build
from tqbench.core.codec import Codec, Packed, nbytes
from tqbench.core.errors import Unsupported
from tqbench.core.op import Op, Place
from tqbench.core.scheme import Scheme
from tqbench.kernels import decode, encode
from tqbench.kernels.encode import baselines

REFERENCE = "reference"
COMPARISONS = {"reference": f"{{scheme}}/{REFERENCE}", baselines.EAGER: f"{{scheme}}/{baselines.EAGER}"}
WORDS = "the codec's own mathematics in plain torch"
CODES_OFF = 1e-3  # share of stored values: one on a boundary may fall either way, and its scale with it
DECODED_OFF = 1e-5  # a rotation sums a hundred products in float32
HALF_ULP = 2.0**-10  # a float16 scale may be rounded the other way


def contenders(plan: Plan, tokens: int, note: Callable[[str], None]) -> list[Contender]:
    """Each codec once, though a scheme may use it for K and V."""
    found: list[Contender] = []
    for scheme in plan.schemes:
        note(scheme.name)
        try:
            codecs = _codecs(scheme, plan)
        except Unsupported as reason:
            words = "no codec of this scheme runs here"
            found.append(Contender(Row(tokens, scheme.name, "–", "form", words, "unsupported", str(reason)), (), lambda _: 0.0))
            continue
        for name, codec in codecs.items():
            x = vectors(plan.data, plan.geometry, max(1, tokens // codec.unit) * codec.unit).at(plan.place).k
            found += (_encode if plan.op == "encode" else _decode)(name, codec, x, plan.place)
    return found


def _codecs(scheme: Scheme, plan: Plan) -> dict[str, Codec]:
    g = plan.geometry
    shape = Shape(g.architecture, g.head_dim, plan.place.dtype, g.kv_heads, g.heads)
    k, v = build(scheme, "k", shape, Layer()), build(scheme, "v", shape, Layer())
    return {scheme.name: k} if k == v else {f"{scheme.name} K": k, f"{scheme.name} V": v}


def _encode(name: str, codec: Codec, x: Tensor, place: Place) -> Iterator[Contender]:
    expected = codec.encode(x)
    moved = x.nbytes + nbytes(expected)
    held = [x, *(twin(x) for _ in range(ceiling.copies(moved, place.device) - 1))]
    loss = relative(codec.decode(expected, x.shape[-1], torch.float32), x)

    def calls(form: Callable[..., Any]) -> list[Callable[[], Any]]:
        return [_ready(partial(form, codec, each), form, place) for each in held]

    payload = {part.name for part in codec.layout(x.shape[-1]).parts if part.role == "payload"}
    row = Row(x.shape[2], name, "", "form", "", tolerance=CODES_OFF, quantization_error=loss, bytes_moved=moved)
    error = partial(codes_off, expected=expected, exact=payload)
    if place.device == "cpu" and (eager := baselines.eager(codec, x.shape[-1])):
        about = replace(row, form=baselines.EAGER, role="baseline", words=baselines.EAGER_WORDS)
        yield Contender(about, [partial(eager, each) for each in held], error, _rivals(name))
    yield from _forms(encode.OP, place, codec, row, calls, error)


def _decode(name: str, codec: Codec, x: Tensor, place: Place) -> Iterator[Contender]:
    packed = codec.encode(x)
    moved = nbytes(packed) + x.nbytes
    held = [packed, *({part: twin(array) for part, array in packed.items()} for _ in range(ceiling.copies(moved, place.device) - 1))]
    truth = codec.decode(packed, x.shape[-1], torch.float64)

    def calls(form: Callable[..., Any]) -> list[Callable[[], Any]]:
        return [_ready(partial(form, codec, each, x.shape[-1], x[:, :, :0]), form, place) for each in held]

    loss = relative(truth, x)
    row = Row(x.shape[2], name, "", "form", "", tolerance=DECODED_OFF, quantization_error=loss, bytes_moved=moved)
    return _forms(decode.OP, place, codec, row, calls, partial(relative, truth=truth))


def _ready(call: Callable[[], Any], form: Callable[..., Any], place: Place) -> Callable[[], Any]:
    """Our kernels as a captured graph; the reference looks at its input before it encodes, which no graph can."""
    return repeated(call, place.device) if form.__module__.endswith("_triton") else call


def _forms(
    op: Op,
    place: Place,
    codec: Codec,
    like: Row,
    calls: Callable[[Callable[..., Any]], list[Callable[[], Any]]],
    error: Callable[[Any], float],
) -> Iterator[Contender]:
    for impl, reason in forms(op, place, codec):
        about: dict[str, Any] = {"form": impl.name, "words": f"{op.name} in form {impl.name}"}
        if impl.name == REFERENCE:
            about |= {"role": "baseline", "words": WORDS}
        if reason is None:
            yield Contender(replace(like, **about), calls(impl.load()), error, _rivals(like.scheme))
        else:
            yield Contender(Row(like.tokens, like.scheme, impl.name, "form", about["words"], "unsupported", reason), (), error)


def _rivals(scheme: str | None) -> tuple[str, ...]:
    return tuple(rival.format(scheme=scheme) for rival in COMPARISONS.values())


def codes_off(packed: Packed, expected: Packed, exact: Collection[str] = ()) -> float:
    """The share of an array's values that are not the reference's, of the worst array; all, if the arrays are others. Integers and the
    arrays named in `exact` must be equal, other floats within a step of half precision."""
    if {name: (x.shape, x.dtype) for name, x in packed.items()} != {name: (x.shape, x.dtype) for name, x in expected.items()}:
        return 1.0
    return max((_off(packed[name], x, HALF_ULP if x.is_floating_point() and name not in exact else 0.0) for name, x in expected.items()))


def _off(x: Tensor, y: Tensor, within: float) -> float:
    alike = torch.isclose(x.double(), y.double(), rtol=within, atol=0.0) if within else x == y
    return int((~alike).sum()) / max(1, y.numel())
