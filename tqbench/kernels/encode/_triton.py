"""Encode in Triton: rotate, quantize and pack in one kernel, for one token as for a long prompt.

Vectors go into the codec's basis by a matrix product, y = A x + a, whatever the wrappers are called; where x has 16 bits and A is a
Hadamard matrix up to a factor, in 16 bits too, because its entries are then ±1 and all products exact. What is left is one of six
arithmetics (`KINDS`) and one way to pack; groups of tokens of a channel are the vectors of a kernel of their own. Nothing waits for the
device: a NaN or an infinity makes the scale that is kept NaN or infinite, and is found where it is attended.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tqbench.codecs.affine import Affine
from tqbench.codecs.block import BLOCK, NONLINEAR, Block
from tqbench.codecs.blocks import codebooks
from tqbench.codecs.blocks.minifloat import LARGEST
from tqbench.codecs.codebook import Codebook
from tqbench.codecs.fp8 import SMALLEST, Fp8
from tqbench.codecs.kvtc_lite import KvtcLite
from tqbench.codecs.kvtc_paper import KvtcPaper
from tqbench.codecs.mlx_affine import MlxAffine
from tqbench.core.codec import Codec, Packed
from tqbench.core.errors import EvidenceError, Unsupported
from tqbench.kernels import _sections
from tqbench.kernels.packed import _triton as tiles
from tqbench.kernels.packed._triton_rounding import divided, inverse, minifloat, nearest_even, not_finite, over, round_even, stored
from tqbench.kernels.runs import _triton as runs
from tqbench.kernels.triton import operand

TOKENS, FEW = 32, 8  # of a tile; where sums are in float64
STEP = tl.constexpr(64)  # channels of a step of the matrix product


class Recipe(NamedTuple):
    """What a kernel is compiled for."""

    kind: str  # one of `KINDS`
    head_dim: int
    dim: int
    width: int
    group: int
    lanes: int  # the same, up to the next power of two
    root: float  # of the group
    bits: int
    halves: bool = False  # as in `Form`
    high: int = 0
    rule: str = ""  # which length a codebook keeps; how an affine code is rounded
    up: bool = True  # a value on a boundary goes up
    kept: bool = False  # codes are taken with the scale that is kept, not with the exact one
    smallest: float = 0.0  # of a scale
    largest: float = 0.0  # outermost level of a codebook; largest value of an eight-bit float
    lowest: int = 0  # exponent of the smallest normal eight-bit float
    mantissa: int = 0  # and its bits
    scaled: bool = True
    by_head: bool = False
    turned: bool = False
    moved: bool = False


class Tables(NamedTuple):
    """What a kernel reads beside x."""

    turn: Tensor | None = None  # Aᵀ [head_dim, width], columns as the codes lie
    gain: float = 1.0  # what it is to be multiplied with
    offset: Tensor | None = None  # a [kv_heads, width]
    edges: Tensor | None = None
    levels: Tensor | None = None
    head_scale: Tensor | None = None


@triton.jit(do_not_specialize=["room", "tokens"], do_not_specialize_on_alignment=["scales", "minima"])  # they change as a store grows
def _encode(x, s_batch, s_head, s_token, s_channel, low, high, scales, minima, room, t, tokens, heads, r: tl.constexpr, size: tl.constexpr):
    """One tile of tokens of one head. Arrays to fill have room for so many tokens of each head."""
    pair = tl.program_id(0)
    token = tl.program_id(1) * size + tl.arange(0, size)
    seen, i = token < tokens, tl.arange(0, r.width)
    head, row = pair % heads, pair.to(tl.int64) * room + token
    here = x + (pair // heads).to(tl.int64) * s_batch + head.to(tl.int64) * s_head + token.to(tl.int64)[:, None] * s_token
    if r.turned:
        y = _turned(here, s_channel, t, seen, r, size) * t.gain
    else:
        there = seen[:, None] & (i < r.dim)[None, :]
        y = tl.load(here + tiles.channel(r, i)[None, :] * s_channel, mask=there, other=0.0).to(tl.float32)
    if r.moved:
        y += tl.load(t.offset + head * r.width + i)[None, :]
    groups: tl.constexpr = r.width // r.lanes
    g = tl.reshape(y, (size, groups, r.lanes))
    inside = tl.reshape(tl.broadcast_to((i < r.dim)[None, :], (size, r.width)), g.shape)
    code, scale, minimum = _codes(g, i, inside, t, head, r)
    code = tl.reshape(code, (size, r.width))
    at, ranges = tl.arange(0, groups), r.dim // r.group
    fits = seen[:, None] & (at < ranges)[None, :]
    if scales is not None:
        tl.store(scales + row[:, None] * ranges + at[None, :], stored(scale, scales.dtype.element_ty), mask=fits)
    if minima is not None:
        tl.store(minima + row[:, None] * ranges + at[None, :], stored(minimum, minima.dtype.element_ty), mask=fits)
    if r.high:
        _store(low, code & ((1 << r.high) - 1), r.high, row, seen, r, size)
        _store_top(high, code >> r.high, row, seen, r, size)
    else:
        _store(low, code, r.bits, row, seen, r, size)


@triton.jit
def _codes(g, i, inside, t, head, r: tl.constexpr):
    """Codes of groups, their scales, and their minima or once more their scales."""
    if r.kind == "affine":
        code, scale, minimum = _affine(g, inside, r)
    elif r.kind == "signed_affine":
        code, scale, minimum = _signed_affine(g, r)
    else:
        if r.kind == "codebook":
            code, scale = _nearest(g, inside, t, r)
        elif r.kind == "symmetric":
            code, scale = _symmetric(g, i, r)
        elif r.kind == "nonlinear":
            code, scale = _nonlinear(g, i, t, r)
        else:
            code, scale = _minifloat(g, t, head, r)
        minimum = scale
    return code, scale, minimum


@triton.jit(do_not_specialize=["units"], do_not_specialize_on_alignment=["scales", "minima"])
def _encode_channels(x, s_batch, s_head, s_token, s_channel, codes, scales, minima, units, heads, r: tl.constexpr, size: tl.constexpr):
    """One group of tokens of some channels of one head."""
    section, channel, i = tl.program_id(0), tl.program_id(1) * size + tl.arange(0, size), tl.arange(0, r.width)
    batch, head, unit = section // (units * heads), section // units % heads, section % units
    here = x + batch.to(tl.int64) * s_batch + head.to(tl.int64) * s_head + channel.to(tl.int64)[:, None] * s_channel
    seen, token = channel < r.head_dim, unit.to(tl.int64) * r.group + i
    g = tl.load(here + token[None, :] * s_token, mask=seen[:, None], other=0.0).to(tl.float32)
    g = tl.reshape(g, (size, 1, r.width))
    code, scale, minimum = _codes(g, i, tl.broadcast_to((i < r.group)[None, None, :], g.shape), None, head, r)
    kept = section.to(tl.int64) * r.head_dim + channel
    if minima is not None:
        tl.store(minima + kept, tl.reshape(minimum, (size,)).to(minima.dtype.element_ty), mask=seen)
    tl.store(scales + kept, tl.reshape(scale, (size,)).to(scales.dtype.element_ty), mask=seen)
    per: tl.constexpr = 8 // r.bits if 8 % r.bits == 0 else 8
    count: tl.constexpr = 1 if 8 % r.bits == 0 else r.bits
    words, w = _words(tl.reshape(code, (size, r.width)), r.bits, per, r, size), tl.arange(0, r.width // per)
    for byte in tl.static_range(count):
        row = section.to(tl.int64) * (r.width * r.bits // 8) + w * count + byte
        tl.store(codes + row[None, :] * r.head_dim + channel[:, None], (words >> 8 * byte & 255).to(tl.uint8), mask=seen[:, None])


@triton.jit
def _turned(here, s_channel, t, seen, r: tl.constexpr, size: tl.constexpr):
    """[tokens, width]: the vectors in the codec's basis, up to a factor."""
    y, i = tl.full((size, r.width), 0.0, tl.float32), tl.arange(0, r.width)
    for first in range(0, r.head_dim, STEP):
        c = first + tl.arange(0, STEP)
        inside = c < r.head_dim
        x = tl.load(here + c[None, :] * s_channel, mask=seen[:, None] & inside[None, :], other=0.0)
        turn = tl.load(t.turn + c[:, None] * r.width + i[None, :], mask=inside[:, None], other=0.0)
        y += tl.dot(x.to(turn.dtype), turn, input_precision="ieee")
    return y


@triton.jit
def _nearest(g, inside, t, r: tl.constexpr):
    """The nearest level of each coordinate, and the length that is kept for each group."""
    if r.rule == "max_abs":
        n = tl.max(tl.abs(g), 2) * r.root / r.largest + not_finite(g, 2)
    else:
        n = tl.sqrt(tl.sum(g * g, 2))
    n = tl.where(n <= 1e-10, 0.0, n)
    u = g * (tl.where(n > 0, r.root / tl.where(n > 0, n, 1.0), 0.0))[:, :, None]
    code = tl.full(g.shape, 0, tl.int32)
    for k in tl.static_range(2**r.bits - 1):
        edge = tl.load(t.edges + k)
        code += (u >= edge).to(tl.int32) if r.up else (u > edge).to(tl.int32)
    c = tl.where(inside, tl.load(t.levels + code), 0.0)
    if r.rule == "norm_corrected":
        n = n * r.root / tl.sqrt(tl.sum(c * c, 2))
    if r.rule == "least_squares":
        n = n * tl.sum(u * c, 2) / tl.sum(c * c, 2)
    if r.rule == "unbiased":
        inner = tl.sum(u * c, 2)
        n = tl.where(n == 0, 0.0, n * r.group / tl.where(n > 0, inner, 1.0))
    return code, n


@triton.jit
def _symmetric(g, i, r: tl.constexpr):
    """Whole multiples of a scale, around zero: codes of eight bits are signed, shorter ones count from below."""
    half: tl.constexpr = 1 << (r.bits - 1)
    magnitude = tl.abs(g)
    most = tl.max(magnitude, 2) + not_finite(g, 2)
    if r.rule != "ggml":
        scale = tl.maximum(over(most, half - 1.0), r.smallest) + not_finite(g, 2)
        s = g * inverse(_kept(scale, r))[:, :, None]
        code = tl.minimum(tl.maximum(_round(s, r), -half), half - 1).to(tl.int32) & (2 * half - 1)
    elif r.bits == 8:
        scale = over(most, 127.0)
        s = g * tl.where(scale == 0, 0.0, inverse(scale))[:, :, None]
        whole = tl.floor(tl.abs(s))
        whole += tl.where(tl.abs(s) - whole >= 0.5, 1.0, 0.0)
        code = tl.where(s < 0, -whole, whole).to(tl.int32) & 255
    else:
        scale = _largest(g, i, r) * (-1.0 / half) + not_finite(g, 2)
        s = g * tl.where(scale == 0, 0.0, inverse(scale))[:, :, None]
        code = tl.minimum(tl.maximum((s + (half + 0.5)).to(tl.int32), 0), 2 * half - 1)
    return code, scale


@triton.jit
def _affine(g, inside, r: tl.constexpr):
    """Whole multiples of a scale above a minimum."""
    most: tl.constexpr = (1 << r.bits) - 1
    lane = tl.arange(0, r.lanes)
    g = tl.where(inside, g, tl.sum(tl.where((lane == 0)[None, None, :], g, 0.0), 2)[:, :, None])  # padding widens no range
    low = tl.min(g, 2)
    scale = over(tl.max(g, 2) - low, most) + not_finite(g, 2)
    if r.rule == "ggml":
        s = (g - low[:, :, None]) * tl.where(scale == 0, 0.0, inverse(scale))[:, :, None] + 0.5
        code = tl.minimum(s.to(tl.int32), most)
    else:
        scale = tl.maximum(scale, r.smallest) + not_finite(g, 2)
        against, edge = _kept(scale, r), _kept(low, r)
        s = divided(g - edge[:, :, None], against[:, :, None])
        code = tl.minimum(tl.maximum(_round(s, r), 0.0), most).to(tl.int32)
    return code, scale, low


@triton.jit
def _largest(g, i, r: tl.constexpr):
    """The value of largest magnitude, with its sign; the first channel of several."""
    c = tl.reshape(tl.broadcast_to(tiles.channel(r, i)[None, :], (g.shape[0], r.width)), g.shape)
    magnitude = tl.abs(g)
    first = tl.min(tl.where(magnitude == tl.max(magnitude, 2)[:, :, None], c, 2**30), 2)
    return tl.sum(tl.where(c == first[:, :, None], g, 0.0), 2)


@triton.jit
def _nonlinear(g, i, t, r: tl.constexpr):
    """The nearest of uneven levels; the scale that is best for these codes, values weighted by their squares, is what is kept."""
    largest = _largest(g, i, r)
    scale = over(largest, r.largest)
    u = g * tl.where(scale == 0, 0.0, inverse(scale))[:, :, None]
    code = tl.full(g.shape, 0, tl.int32)
    for k in tl.static_range(2**r.bits - 1):
        code += (u >= tl.load(t.edges + k)).to(tl.int32)
    q, x = tl.load(t.levels + code).to(tl.float64), g.to(tl.float64)
    power, zero = tl.sum(x * x * q * q, 2), tl.abs(largest) < r.smallest
    best = tl.sum(x * x * x * q, 2) / tl.where(power == 0, 1.0, power)
    return tl.where(zero[:, :, None], 0, code), tl.where(zero, 0.0, best.to(tl.float32)) + not_finite(g, 2)


@triton.jit
def _signed_affine(g, r: tl.constexpr):
    """From the edge of larger magnitude, in steps that have a sign, so many that zero is a level; what is kept decides no code."""
    most: tl.constexpr = (1 << r.bits) - 1
    low, high = tl.min(g, 2), tl.max(g, 2)
    step = tl.maximum(over(high - low, most), r.smallest)
    below = tl.abs(low) > tl.abs(high)
    edge, scale = tl.where(below, low, high), tl.where(below, step, -step)
    n = round_even(tl.div_rn(edge, scale))
    scale = tl.where(n == 0, scale, tl.div_rn(edge, tl.where(n == 0, 1.0, n)))
    edge = tl.where(n == 0, 0.0, edge)
    code = nearest_even(divided(g - edge[:, :, None], scale[:, :, None]))
    return tl.minimum(tl.maximum(code, 0.0), most).to(tl.int32), scale + not_finite(g, 2), edge + not_finite(g, 2)


@triton.jit
def _minifloat(g, t, head, r: tl.constexpr):
    """The nearest eight-bit float, halves to even; what is beyond the largest becomes it."""
    scale = tl.max(tl.abs(g), 2) + not_finite(g, 2)
    if r.by_head:
        s = over(g, tl.load(t.head_scale + head))
    elif r.scaled:
        scale = tl.maximum(over(scale, r.largest), r.smallest) + not_finite(g, 2)
        s = g * inverse(scale)[:, :, None]
    else:
        s = g
    return minifloat(s, r.largest, r.lowest, r.mantissa), scale


@triton.jit
def _kept(scale, r: tl.constexpr):
    if r.kept:
        scale = scale.to(tl.float16).to(tl.float32)
    return scale


@triton.jit
def _round(s, r: tl.constexpr):
    if r.up:
        whole = tl.floor(s + 0.5)
    else:
        whole = nearest_even(s)
    return whole


@triton.jit
def _words(code, bits: tl.constexpr, per: tl.constexpr, r: tl.constexpr, size: tl.constexpr):
    """One stream of bits for each row, least significant first, in words of so many codes."""
    return tl.sum(tl.reshape(code.to(tl.int64), (size, r.width // per, per)) << (tl.arange(0, per) * bits)[None, None, :], 2)


@triton.jit
def _store(to, code, bits: tl.constexpr, row, seen, r: tl.constexpr, size: tl.constexpr):
    """Bytes of whole codes, or eight codes at a time."""
    per: tl.constexpr = 8 // bits if 8 % bits == 0 else 8
    count: tl.constexpr = 1 if 8 % bits == 0 else bits
    words, w = _words(code, bits, per, r, size), tl.arange(0, r.width // per)
    for byte in tl.static_range(count):
        here = to + row[:, None] * (r.dim * bits // 8) + w[None, :] * count + byte
        tl.store(here, (words >> 8 * byte & 255).to(to.dtype.element_ty), mask=seen[:, None] & (w < r.dim // per)[None, :])


@triton.jit
def _store_top(to, code, row, seen, r: tl.constexpr, size: tl.constexpr):
    """The last bit of each code as a plane in the order of the channels, 32 at a time."""
    c = tiles.channel(r, tl.arange(0, r.width)) % 32
    words = tl.sum(tl.reshape(code.to(tl.int64) << c[None, :], (size, r.width // 32, 32)), 2)
    w = tl.arange(0, r.width // 32)
    for byte in tl.static_range(4):
        here = to + row[:, None] * (r.dim // 8) + w[None, :] * 4 + byte
        tl.store(here, (words >> 8 * byte & 255).to(tl.uint8), mask=seen[:, None] & (w * 4 + byte < r.dim // 8)[None, :])


def refuses(codec: Codec) -> str | None:
    """Why this codec has no Triton encoder, or None."""
    plain = codec.plain
    if type(plain) is KvtcPaper:
        return runs.refuses(codec)
    if type(codec) is KvtcLite:
        return None
    if codec.heads > 1:
        return f"codec {plain.name!r} packs several heads together"
    if type(plain) not in KINDS or codec.name == "bridge":
        return f"codec {plain.name!r}{' in this control' if codec.name == 'bridge' else ''} has no Triton encoder"
    if codec.unit > 1 and codec is not plain:
        return f"codec {plain.name!r} packs tokens of a channel together, in Triton only with nothing wrapped around it"
    return None if codec.ready else f"codec {plain.name!r} has not been calibrated"


def encode(codec: Codec, x: Tensor, room: Packed | None = None) -> Packed:
    """Encode float32, bfloat16 or float16 vectors, token by token into the arrays that are given."""
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16) or x.dim() != 4:
        raise EvidenceError(f"encode/triton takes [batch, kv_heads, tokens, head_dim] in up to float32, not {x.dtype} {list(x.shape)}")
    if isinstance(codec, KvtcLite):
        return _sections.encode(codec, x, "triton")
    if isinstance(codec.plain, KvtcPaper):
        return runs.encode(codec.plain, x)
    if codec.unit > 1:
        return _by_channel(codec, x)
    batch, heads, tokens, head_dim = x.shape
    recipe, tables = _ready(codec, head_dim, heads, operand(x.dtype), str(x.device))
    packed = _room(codec, x) if room is None else room
    if "reserved" in packed:
        packed["reserved"].zero_()
    if x.numel():
        arrays, size = _arrays(packed), FEW if recipe.kind == "nonlinear" else TOKENS
        between = next(each.stride(1) // each.stride(2) for each in packed.values())  # tokens that a head has room for
        grid = (batch * heads, triton.cdiv(tokens, size))
        fused = recipe.turned  # else codes are the reference's to the bit, whose products are rounded before something is added
        _encode[grid](x, *x.stride(), *arrays, between, tables, tokens, heads, recipe, size, enable_fp_fusion=fused)
    return packed


def _room(codec: Codec, x: Tensor) -> Packed:
    lead, parts = (*x.shape[:2], x.shape[2] // codec.unit), codec.layout(x.shape[3]).parts
    return {p.name: torch.empty(*lead, *p.shape, dtype=getattr(torch, p.dtype), device=x.device) for p in parts}


def _by_channel(codec: Codec, x: Tensor) -> Packed:
    """Groups of tokens of each channel."""
    (batch, heads, tokens, head_dim), group = x.shape, codec.unit
    if tokens % group:
        raise Unsupported(f"codec {codec.plain.name!r} encodes {group} tokens together, got {tokens}")
    units, fields = tokens // group, KINDS[type(codec.plain)](codec.plain, group)[0]
    recipe = Recipe(head_dim=head_dim, dim=group, width=group, lanes=group, root=group**0.5, **fields)
    packed = _room(codec, x)
    if x.numel():
        codes, _, scales, minima = _arrays(packed)
        grid = (batch * heads * units, triton.cdiv(head_dim, TOKENS))
        _encode_channels[grid](x, *x.stride(), codes, scales, minima, units, heads, recipe, TOKENS, enable_fp_fusion=False)
    return packed


def _arrays(packed: Packed) -> tuple[Tensor | None, ...]:
    """Codes or their low plane, the high plane, scales, minima."""
    names = (("codes", "low", "words"), ("high",), ("norms", "scales"), ("minima", "biases"))
    return tuple(next((packed[name] for name in either if name in packed), None) for either in names)


@lru_cache(maxsize=512)
def _ready(codec: Codec, head_dim: int, heads: int, dtype: torch.dtype, device: str) -> tuple[Recipe, Tables]:
    """A codec for one shape."""
    dim = codec.stored_dim(head_dim)
    width = triton.next_power_of_2(dim)
    fields, tables = KINDS[type(codec.plain)](codec.plain, dim)
    places = torch.arange(dim)
    if fields.get("halves"):  # as `channel` of packed/_triton.py
        places = places // 32 * 32 + places % 32 // 2 + places % 2 * 16
    units = torch.cat([torch.zeros(1, head_dim, dtype=torch.float64), torch.eye(head_dim, dtype=torch.float64)])
    sent = codec.transform(units.expand(1, heads, -1, -1))[0]
    offset, turn = sent[:, 0], (sent[:, 1:] - sent[:, :1])[0]
    plain = dim == head_dim and bool(torch.equal(turn, torch.eye(dim, dtype=torch.float64)))
    gain, kind = _signs(turn, dtype)
    shape = {"head_dim": head_dim, "dim": dim, "width": width, "lanes": triton.next_power_of_2(fields["group"])}
    recipe = Recipe(**shape, root=fields["group"] ** 0.5, turned=not plain, moved=bool(offset.any()), **fields)
    laid = {
        "turn": None if plain else torch.nn.functional.pad(turn[:, places] / gain, (0, width - dim)).to(kind),
        "offset": torch.nn.functional.pad(offset[:, places], (0, width - dim)).float() if recipe.moved else None,
        **{name: torch.as_tensor(x).float() for name, x in tables.items()},
    }
    return recipe, Tables(
        gain=1.0 if plain else gain, **{name: None if x is None else x.to(device).contiguous() for name, x in laid.items()}
    )


def _signs(turn: Tensor, dtype: torch.dtype) -> tuple[float, torch.dtype]:
    """The factor without which a matrix is one of signs and zeros, and the type to multiply in."""
    largest = float(turn.abs().max())
    signs = turn.abs() > largest / 2
    if dtype != torch.float32 and bool(((turn.abs() - largest).abs()[signs] < 1e-9 * largest).all() and (turn[~signs] == 0).all()):
        return largest, dtype
    return 1.0, torch.float32


Fields = tuple[dict[str, Any], dict[str, Any]]


def _codebook(codec: Codebook, dim: int) -> Fields:
    group = codec.channels(dim)
    levels = codebooks.levels(codec.table, codec.bits, group)
    split = codec.bits == 3 and codec.planes == "split"
    rule = "raw" if codec.scale == "norm_corrected_at_decode" else codec.scale
    recipe = {"kind": "codebook", "group": group, "bits": codec.bits, "high": 2 * split, "rule": rule, "up": codec.ties == "up"}
    return recipe | {"largest": levels[-1]}, {"edges": codebooks.boundaries(codec.table, codec.bits, group), "levels": levels}


def _block(codec: Block, dim: int) -> Fields:  # noqa: ARG001
    recipe = {
        "kind": codec.form,
        "group": BLOCK,
        "bits": codec.bits,
        "halves": codec.bits < 8,
        "high": 4 * (codec.bits == 5),
        "rule": "ggml",
    }
    if codec.form != "nonlinear":
        return recipe, {}
    edges = [(below + above) / 2 for below, above in pairwise(NONLINEAR)]
    return recipe | {"largest": float(NONLINEAR[0]), "smallest": 1e-15}, {"edges": edges, "levels": NONLINEAR}


def _mlx_affine(codec: MlxAffine, dim: int) -> Fields:  # noqa: ARG001
    return {"kind": "signed_affine", "group": codec.group_size, "bits": codec.bits, "smallest": 1e-7}, {}


def _affine_fields(codec: Affine, dim: int) -> Fields:
    return {
        "kind": codec.form,
        "group": codec.group_size or dim,
        "bits": codec.bits,
        "up": codec.rounding == "half_up",
        "kept": codec.encode_with == "kept" and codec.kept == "float16",
        "smallest": 1e-6 if codec.form == "symmetric" else 1e-8 if codec.encode_with == "exact" else 0.0,
    }, {}


def _fp8(codec: Fp8, dim: int) -> Fields:
    learned = {} if codec.learned is None else {"head_scale": codec.learned["scale"].flatten()}
    return {
        "kind": "fp8",
        "group": dim,
        "bits": 8,
        "largest": LARGEST[codec.format],
        "lowest": {"e4m3": -6, "e5m2": -14}[codec.format],
        "mantissa": {"e4m3": 3, "e5m2": 2}[codec.format],
        "smallest": SMALLEST,
        "scaled": codec.scale == "token_head",
        "by_head": codec.scale == "head",
    }, learned


KINDS: dict[type[Codec], Callable[[Any, int], Fields]] = {
    Codebook: _codebook,
    Block: _block,
    Affine: _affine_fields,
    MlxAffine: _mlx_affine,
    Fp8: _fp8,
}
