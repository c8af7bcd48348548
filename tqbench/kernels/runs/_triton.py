"""Codec `kvtc_paper` on a device: projections are torch's matrix products in float32, and one Triton kernel for each kind of run takes
coefficients to packed codes, another one takes them back. Nothing waits for the device: what is not finite makes a run's scale NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tqbench.codecs.blocks.runs import Kind
from tqbench.codecs.blocks.wrap import Heads
from tqbench.codecs.kvtc_paper import STREAMS, KvtcPaper
from tqbench.core.codec import Codec, Learned, Packed
from tqbench.core.errors import EvidenceError
from tqbench.kernels.packed import words
from tqbench.kernels.packed._triton import rows as laid
from tqbench.kernels.packed._triton_rounding import divided, inverse, minifloat, nearest_even, not_finite, over
from tqbench.measure.stages import stage

TILE, TALL = 1024, 16  # coefficients of a program, and vectors at most
LARGEST = tl.constexpr(448.0)  # e4m3
FLAT = ["vectors", "rank", "stream", "total", "column", "first", "run", "count"]  # compiled once, whatever their values


@dataclass(frozen=True)
class Alike:
    """All runs of a kind, which lie one after another: where their columns, bytes and ranges begin."""

    kind: Kind
    count: int
    column: int
    byte: int  # in the stream of their width
    run: int


@dataclass(frozen=True)
class Ready:
    """A codec on a device."""

    mean: Tensor  # [rows, 1, features]
    basis: Tensor  # [rows, features, rank]
    kinds: tuple[Alike, ...]
    sizes: dict[str, int]  # bytes of each stream for one vector

    @property
    def runs(self) -> int:
        """Of all kinds together."""
        return sum(alike.count for alike in self.kinds)


def _ready(codec: KvtcPaper, device: str) -> Ready:
    made, key = (codec.learned or Learned()).made, ("runs", device)
    if key not in made:
        made[key] = _laid(codec, device)
    found: Ready = made[key]
    return found


def _laid(codec: KvtcPaper, device: str) -> Ready:
    mean, basis = (codec._kept(name).to(device, torch.float32) for name in ("mean", "basis"))
    plan, kinds = codec.plan, list[Alike]()
    sizes: dict[str, int] = {}
    columns = accumulate((kind.size * count for kind, count in plan), initial=0)
    runs = accumulate((count for _, count in plan), initial=0)
    for (kind, count), column, run in zip(plan, columns, runs, strict=False):
        name = STREAMS[kind.bits]
        kinds.append(Alike(kind, count, column, sizes.get(name, 0), run))
        sizes[name] = kinds[-1].byte + count * kind.code_bytes
    return Ready(mean, basis, tuple(kinds), sizes)


@triton.jit
def _place(count, tall: tl.constexpr):
    """The run of this program among all of its kind, and its vectors."""
    return tl.program_id(0) % count, (tl.program_id(0) // count).to(tl.int64) * tall + tl.arange(0, tall)


@triton.jit(do_not_specialize=FLAT)
def _squeeze(
    c, codes, scales, shifts, vectors, rank, stream, total, column, first, run, count,
    size: tl.constexpr, bits: tl.constexpr, tall: tl.constexpr,
):  # fmt: skip
    """One run of some vectors."""
    which, row = _place(count, tall)
    i = tl.arange(0, size)
    seen = row < vectors
    x = tl.load(c + row[:, None] * rank + (column + which * size + i)[None, :], mask=seen[:, None], other=0.0)
    if bits == 8:
        shift = (tl.sum(x.to(tl.float64), 1) / size).to(tl.float32).to(tl.float16)
        away = x - shift.to(tl.float32)[:, None]
        scale = tl.max(tl.abs(away), 1).to(tl.float16)
        factor = inverse(scale.to(tl.float32)) * LARGEST  # two roundings, as in torch's number / tensor
        code = minifloat(away * factor[:, None], LARGEST, -6, 3)
    else:
        top: tl.constexpr = (1 << bits) - 1
        low = tl.min(x, 1)
        shift, scale = low.to(tl.float16), over(tl.max(x, 1) - low, top).to(tl.float16)
        code = nearest_even(divided(x - shift.to(tl.float32)[:, None], scale.to(tl.float32)[:, None]))
        code = tl.minimum(tl.maximum(code, 0.0), top).to(tl.int32)
    each, unsound = row * total + run + which, not_finite(x, 1) != 0
    tl.store(scales + each, tl.where(unsound, float("nan"), scale.to(tl.float32)).to(tl.float16), mask=seen)
    tl.store(shifts + each, tl.where(unsound, float("nan"), shift.to(tl.float32)).to(tl.float16), mask=seen)
    per: tl.constexpr = size if size * bits < 8 else 8 // bits
    whole: tl.constexpr = size // per
    packed = tl.sum(tl.reshape(code, (tall, whole, per)) << (tl.arange(0, per) * bits)[None, None, :], 2)
    here = codes + row[:, None] * stream + first + which * whole + tl.arange(0, whole)[None, :]
    tl.store(here, packed.to(tl.uint8), mask=seen[:, None])


@triton.jit(do_not_specialize=[*FLAT, "rows", "tokens"])
def _expand(
    codes, scales, shifts, c, vectors, rows, tokens, rank, column, first, run, count,
    size: tl.constexpr, bits: tl.constexpr, tall: tl.constexpr,
):  # fmt: skip
    """The coefficients of one run of some vectors."""
    which, row = _place(count, tall)
    i = tl.arange(0, size)
    seen, pair, token = row < vectors, row // tokens, row % tokens
    bit = i * bits
    here = codes.data + pair // rows * codes.batch + pair % rows * codes.head + token * codes.unit + first
    raw = tl.load(here[:, None] + (which * ((size * bits + 7) // 8) + (bit >> 3))[None, :], mask=seen[:, None], other=0)
    code = raw.to(tl.int32) >> (bit & 7)[None, :] & ((1 << bits) - 1)
    scale, shift = _kept(scales, rows, pair, token, run + which, seen), _kept(shifts, rows, pair, token, run + which, seen)
    if bits == 8:
        scale = over(scale, LARGEST)
        level = ((code & 127) << 7 | (code & 128) << 8).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32) * 256.0
        level = tl.where((code & 127) == 127, float("nan"), level)
    else:
        level = code.to(tl.float32)
    x = shift[:, None] + scale[:, None] * level
    tl.store(c + row[:, None] * rank + (column + which * size + i)[None, :], x, mask=seen[:, None])


@triton.jit
def _kept(a, rows, pair, token, run, seen):
    """Scales or shifts."""
    return tl.load(a.data + pair // rows * a.batch + pair % rows * a.head + token * a.unit + run, mask=seen, other=0.0).to(tl.float32)


def refuses(codec: Codec) -> str | None:
    """Why this codec is not served here, or None."""
    inner = codec.inner if isinstance(codec, Heads) else codec
    return None if type(inner) is KvtcPaper else f"codec {codec.plain.name!r}, as it is wrapped here, is not kvtc_paper itself"


def encode(codec: KvtcPaper, x: Tensor) -> Packed:
    """Center, project, quantize and pack."""
    ready, (batch, heads, tokens, head_dim) = _ready(codec, str(x.device)), x.shape
    if (heads, codec.span * head_dim) != (len(ready.mean) * codec.span, ready.mean.shape[-1]):
        raise EvidenceError(f"kvtc_paper/triton: learned for {list(ready.mean.shape)}, given {list(x.shape)}")
    with stage("center"):
        y = x.float().unflatten(1, (-1, codec.span)).transpose(2, 3).flatten(-2) - ready.mean
    with stage("project"):
        c = y @ ready.basis
    with stage("quantize"):
        lead = batch, len(ready.mean), tokens
        streams = {name: torch.empty(*lead, size, dtype=torch.uint8, device=x.device) for name, size in ready.sizes.items()}
        scales, shifts = (torch.empty(*lead, ready.runs, dtype=torch.float16, device=x.device) for _ in range(2))
        for alike in ready.kinds:
            codes = streams[STREAMS[alike.kind.bits]]
            given = (c, codes, scales, shifts, c.numel() // c.shape[-1], c.shape[-1], codes.shape[-1], ready.runs)
            _launch(_squeeze, alike, *given)
        return streams | {"scales": scales, "shifts": shifts}


def decode(codec: Codec, arrays: Packed, head_dim: int) -> Tensor:
    """Unpack, dequantize and project back, the heads that are asked for."""
    plain: Any = codec.plain
    ready, some = _ready(plain, str(arrays["scales"].device)), slice(None)
    if isinstance(codec, Heads):
        some = slice(codec.first * head_dim, (codec.first + codec.count) * head_dim)
    c = _coefficients(ready, arrays)
    with stage("unproject"):
        y = c @ ready.basis[:, some].mT
    with stage("uncenter"):
        return plain._heads(y + ready.mean[..., some], head_dim)


def _coefficients(ready: Ready, arrays: Packed) -> Tensor:
    """[batch, rows, tokens, rank]."""
    sizes = ready.sizes | dict.fromkeys(("scales", "shifts"), ready.runs)
    lead, rank = tuple(arrays["scales"].shape[:3]), ready.basis.shape[-1]
    fits = len(ready.mean) == lead[1] and all(name in arrays and arrays[name].shape == (*lead, size) for name, size in sizes.items())
    if not fits or any(x.dtype != (torch.float16 if name in ("scales", "shifts") else torch.uint8) for name, x in arrays.items()):
        raise EvidenceError(f"kvtc_paper/triton refused its arguments: {words(arrays)}")
    with stage("dequantize"):
        c = torch.empty(*lead, rank, device=arrays["scales"].device)
        held = {name: laid(x) for name, x in arrays.items()}
        for alike in ready.kinds:
            given = (held[STREAMS[alike.kind.bits]], held["scales"], held["shifts"], c, lead[0] * lead[1] * lead[2], *lead[1:], rank)
            _launch(_expand, alike, *given)
        return c


def _launch(kernel: Any, alike: Alike, *given: Any) -> None:
    """A program for each run of so many vectors, all in one dimension: the others have few."""
    kind, vectors = alike.kind, given[4]
    tall = max(1, min(TALL, TILE // kind.size))
    if vectors:
        kernel[(triton.cdiv(vectors, tall) * alike.count,)](
            *given, alike.column, alike.byte, alike.run, alike.count, kind.size, kind.bits, tall
        )
