"""Compress and decompress the keys and values of many layers as KVTC does, entropy coding included, and RoPE beside it.

`kvtc_lite` runs in every form of its stages. The loops run on two layers of two heads, where all forms run once more: they would take an
hour on all of them. Keys and values have components of falling variance, as those of models do; each layer has learned its own from other
vectors of the same kind.

`kvtc_paper` has one vector of all layers and heads, and its rows differ in how many components it keeps, r, at about four bits each: time
follows r, not the ratio. Its components are not searched for here, which takes minutes; they are any r orthonormal directions, and vectors
vary along them.

On a GPU keys and values lie there, and so do codes until they are gathered for the entropy coder, which is the host's, as its time is in
`gather`, `entropy` and `restore`; `encode` and `decode` are the same work without these. The loops stay on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from tqbench.bench.contender import Contender, forms, relative
from tqbench.bench.convert import CODES_OFF, DECODED_OFF
from tqbench.bench.kvtc_work import THERE, WORK, Direction, Half, Way
from tqbench.bench.plan import Geometry, Plan
from tqbench.bench.result import Row
from tqbench.cache.rope import Rope
from tqbench.codecs.blocks import runs
from tqbench.codecs.kvtc_lite import KvtcLite
from tqbench.codecs.kvtc_paper import MOST_RATIO, KvtcPaper, Seen
from tqbench.core.codec import Learned, nbytes
from tqbench.core.op import Impl, Place
from tqbench.core.scheme import Scheme
from tqbench.kernels import _sections, allocate, decode, encode, sections

LAYERS, CALIBRATION = 32, 1024  # and tokens that each layer learns from
FEW_LAYERS, FEW_HEADS = 2, 2  # for the loops
RANKS, BITS = (128, 256, 512, 1024), 4  # components of the paper's rows, and bits of each
DATA = "falling variance"
REFERENCE = "reference"
COMPARISONS = {"torch": "{scheme}/torch", "reference": f"{{scheme}}/{REFERENCE}"}
WORDS = {
    "native": "stages in form native",
    "triton": "stages in form triton, projections in torch",
    "torch": "stages in form torch",
    REFERENCE: "stages as loops over tokens, values and bits",
}
SPREAD = 2.0  # orders of magnitude between the largest and the smallest component
BASE, TURNED_OFF = 10000.0, 1e-4  # angles of late positions are rounded in float32, as models have them


def contenders(plan: Plan, tokens: int, note: Callable[[str], None]) -> list[Contender]:
    """RoPE, then every scheme; those of the paper share their rows, which are at no scheme's ratio."""
    found, spanning = list(_rope(plan, tokens)), list[Scheme]()
    for scheme in plan.schemes:
        codecs = [side.codec for side in (scheme.k, scheme.v)]
        if all(type(codec) is KvtcLite for codec in codecs):
            found += _lite(scheme, plan, tokens, note)
            found += _allocation(scheme, plan.geometry, tokens) if plan.device == "cpu" else []
        elif all(type(codec) is KvtcPaper and codec.across == "model" for codec in codecs):
            spanning.append(scheme)
        else:
            reason = "only kvtc_lite, and kvtc_paper over all layers, have these stages, with nothing wrapped around them"
            found.append(Contender(Row(tokens, scheme.name, "–", "form", "no stages", "unsupported", reason), (), lambda _: 0.0))
    for scheme in spanning[:1]:
        found += _paper(scheme, plan, tokens, note)
    return found


def _directions(device: str) -> tuple[Direction, ...]:
    """Without the entropy coder too, where that is another processor's."""
    return ("compress", "decompress") if device == "cpu" else ("compress", "encode", "decompress", "decode")


# --- kvtc_lite: each layer and head by itself ---


def _lite(scheme: Scheme, plan: Plan, tokens: int, note: Callable[[str], None]) -> Iterator[Contender]:
    """With all heads and layers, and with few."""
    few = replace(plan.geometry, kv_heads=min(FEW_HEADS, plan.geometry.kv_heads))
    sizes = {"": (plan.geometry, LAYERS)} | ({f" {FEW_LAYERS}×{few.kv_heads}": (few, FEW_LAYERS)} if plan.device == "cpu" else {})
    for label, (geometry, layers) in sizes.items():
        note(f"learning and packing {scheme.name}{label}")
        halves = [half for layer in range(layers) for half in _layer(scheme, geometry, tokens, layer, plan.place)]
        ways = {form: _staged(form) for form in _sections.FORMS if label or form != REFERENCE}
        for direction in _directions(plan.device):
            for form, way in ways.items():
                impl = next(impl for impl in sections.QUANTIZE.impls if impl.name == form)
                row = _row(f"{scheme.name} {direction}{label}", direction, halves)
                row = replace(row, form=form, words=WORDS[form], role="baseline" if form == REFERENCE else "form")
                yield _contender(row, direction, halves, way, impl.refuses(halves[0].codec, plan.place))


def _staged(form: str) -> Way:
    return Way(
        lambda half: _sections.encode(half.codec, half.x, form),  # type: ignore[arg-type]
        lambda half, packed: _sections.decode(half.codec, packed, half.x.shape[-1], form),  # type: ignore[arg-type]
    )


def _layer(scheme: Scheme, g: Geometry, tokens: int, layer: int, place: Place) -> Iterator[Half]:
    """K and V."""
    generator = torch.Generator().manual_seed(layer)
    for codec in (side.codec for side in (scheme.k, scheme.v) if isinstance(side.codec, KvtcLite)):
        turn = torch.randn(g.kv_heads, g.head_dim, g.head_dim, generator=generator)
        turn *= torch.logspace(0, -SPREAD / 2, g.head_dim)[:, None]
        whole = max(1, tokens // codec.section) * codec.section
        text, x = (
            torch.randn(batch, g.kv_heads, n, g.head_dim, generator=generator) @ turn for batch, n in ((1, CALIBRATION), (g.batch, whole))
        )
        yield Half.of(codec.calibrate(text), _moved(x, place))


def _allocation(scheme: Scheme, g: Geometry, tokens: int) -> Iterator[Contender]:
    """The bits of components: decided once, when a codec learns, so it is no stage of compressing."""
    codec: Any = scheme.k.codec
    few = FEW_LAYERS * min(FEW_HEADS, g.kv_heads)
    draw = torch.Generator().manual_seed(0)
    spectra = [(torch.logspace(0, -SPREAD, g.head_dim) * torch.rand(g.head_dim, generator=draw)).tolist() for _ in range(few)]
    truth = _allocated(next(impl for impl in allocate.OP.impls if impl.name == REFERENCE).load(), spectra, codec, g.head_dim)
    for impl in allocate.OP.impls:
        reference = impl.name == REFERENCE
        words = "dynamic programming in whole numbers" if reference else "the greedy rule, which comes to the same"
        row = Row(tokens, f"{scheme.name} allocate {few} heads", impl.name, "baseline" if reference else "form", words, tolerance=0.0)
        yield Contender(
            row,
            [partial(_allocated, impl.load(), spectra, codec, g.head_dim)],
            lambda found: float(found != truth),
            (COMPARISONS[REFERENCE].format(scheme=row.scheme),),
        )


def _allocated(form: Callable[..., list[int]], spectra: list[list[float]], codec: KvtcLite, head_dim: int) -> list[list[int]]:
    return [form(spectrum, codec.budget(head_dim), codec.max_bits) for spectrum in spectra]


# --- kvtc_paper: all layers together ---


def _paper(scheme: Scheme, plan: Plan, tokens: int, note: Callable[[str], None]) -> Iterator[Contender]:
    """With more and more components; of the scheme's codecs everything but rank and ratio."""
    g, place = plan.geometry, plan.place
    features = LAYERS * g.kv_heads * g.head_dim
    for rank in (rank for rank in RANKS if rank <= features <= MOST_RATIO * BITS * rank / 16):
        note(f"packing {scheme.name} with {rank} components")
        halves = [_spanning(side.codec, plan, tokens, rank, seed) for seed, side in enumerate((scheme.k, scheme.v))]
        about = f"{KvtcPaper.name} with r = {rank} of {features:,} components, at {BITS} bits each"
        for direction in _directions(plan.device):
            op = encode.OP if direction in THERE else decode.OP
            row = _row(f"{KvtcPaper.name} r={rank} {direction}", direction, halves)
            for impl, reason in forms(op, place, halves[0].codec):
                mine = replace(row, form=impl.name, words=f"{about}: {op.name} in form {impl.name}", components=rank)
                mine = replace(mine, role="baseline" if impl.name == REFERENCE else "form")
                if reason is None:
                    yield _contender(mine, direction, halves, _called(impl), None)


def _called(impl: Impl) -> Way:
    form = impl.load()
    return Way(
        lambda half: form(half.codec, half.x),
        lambda half, packed: form(half.codec, packed, half.x.shape[-1], half.x[:, :, :0]),
    )


def _spanning(codec: Any, plan: Plan, tokens: int, rank: int, seed: int) -> Half:
    """One side of all layers."""
    g = plan.geometry
    span, features = LAYERS * g.kv_heads, LAYERS * g.kv_heads * g.head_dim
    directions = _orthonormal(features, min(features, max(RANKS)), seed).to(plan.device)[:, :rank]
    generator = torch.Generator().manual_seed(seed)
    scaled = torch.randn(g.batch, tokens, rank, generator=generator) * torch.logspace(0, -SPREAD / 2, rank)
    y = scaled.to(plan.device) @ directions.T
    codec = replace(codec, rank=rank, ratio=16 * features / (BITS * rank), span=span)
    seen = Seen.of(y[:1], torch.zeros(1, 1, features, device=plan.device), directions[None])
    ready = replace(codec, learned=Learned(codec.arrange(seen)))
    return Half.of(ready, _moved(y.unflatten(-1, (span, g.head_dim)).transpose(1, 2).contiguous(), plan.place))


@cache
def _orthonormal(features: int, rank: int, seed: int) -> Tensor:
    """So many directions."""
    found: Tensor = torch.linalg.qr(torch.randn(features, rank, generator=torch.Generator().manual_seed(seed))).Q
    return found


# --- both ---


def _moved(x: Tensor, place: Place) -> Tensor:
    """Vectors as a model there has them."""
    return x.to(place.device, getattr(torch, place.dtype))


def _row(name: str, direction: Direction, halves: list[Half]) -> Row:
    return Row(
        halves[0].x.shape[2],
        name,
        "",
        "form",
        "",
        tolerance=CODES_OFF if direction in THERE else DECODED_OFF,
        quantization_error=max(relative(half.decoded, half.x) for half in halves),
        bytes_moved=sum(half.x.nbytes + nbytes(half.packed) for half in halves),
    )


def _contender(row: Row, direction: Direction, halves: list[Half], way: Way, reason: str | None) -> Contender:
    run, error = WORK[direction]
    if reason:
        return Contender(replace(row, outcome="unsupported", reason=reason), (), lambda _: 0.0)
    rivals = tuple(rival.format(scheme=row.scheme) for rival in COMPARISONS.values())
    return Contender(row, [partial(run, halves, way)], partial(error, halves), rivals, staged=True)


def _rope(plan: Plan, tokens: int) -> Iterator[Contender]:
    """What `rope: pre` adds to both directions, for the keys of all layers."""
    g = plan.geometry
    rope = Rope(tuple(BASE ** (-2 * i / g.head_dim) for i in range(g.head_dim // 2)))
    before = [torch.randn(g.batch, g.kv_heads, tokens, g.head_dim, generator=torch.Generator().manual_seed(i)) for i in range(LAYERS)]
    before = [x.to(plan.device) for x in before]
    after = [_turned(x, rope) for x in before]
    ways = (
        ("rope undo", "the rotary embedding taken out of the keys of all layers, in torch", rope.undo, after, before),
        ("rope redo", "the rotary embedding put back", rope.redo, before, after),
    )
    for name, words, way, given, truth in ways:
        row = Row(tokens, None, name, "baseline", words, tolerance=TURNED_OFF, bytes_moved=2 * sum(x.nbytes for x in given))
        yield Contender(row, [partial(_each, given, way)], partial(_farthest, truth))


def _turned(x: Tensor, rope: Rope) -> Tensor:
    """The formula: pairs of channels as complex numbers in float64, turned by position times frequency."""
    pairs = torch.complex(*x.double().chunk(2, -1))
    each, frequencies = torch.arange(x.shape[2]), torch.tensor(rope.frequencies, dtype=torch.float64)
    angles = (each[:, None] * frequencies).to(x.device)
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], -1).to(x.dtype)


def _each(keys: list[Tensor], way: Callable[[Tensor, int], Tensor]) -> list[Tensor]:
    return [way(x, 0) for x in keys]


def _farthest(truth: list[Tensor], found: list[Tensor]) -> float:
    return max(relative(x, y) for x, y in zip(found, truth, strict=True))


# --- for compilers ---


def launches(head_dim: int, tokens: int = 256) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """(scheme, what, call) for every Triton kernel of these codecs: sections of one width after another, and runs of every kind."""
    from tqbench.kernels.decode import _triton as unpacking
    from tqbench.kernels.encode import _triton as packing

    x = torch.randn(1, 2, tokens, head_dim, generator=torch.Generator().manual_seed(0))
    kinds = torch.tensor([(*kind, 1) for kind in sorted(runs.kinds(), key=lambda kind: (kind.bits, kind.size))], dtype=torch.int32)
    basis = torch.zeros(1, 2 * head_dim, int(kinds[:, 0].sum()), dtype=torch.float16)
    paper = KvtcPaper(span=2, learned=Learned(mean=torch.zeros(1, 1, 2 * head_dim), basis=basis, plan=kinds))
    for codec in (KvtcLite().calibrate(x), paper):
        packed = codec.encode(x)
        yield codec.name, "encode", partial(packing.encode, codec, x)
        yield codec.name, "decode", partial(unpacking.decode, codec, packed, head_dim, x)
