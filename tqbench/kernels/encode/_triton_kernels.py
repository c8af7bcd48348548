"""Kernels that encode: vectors into the basis of the codec, codes by its arithmetic, and both packed."""

from __future__ import annotations

import triton
import triton.language as tl

from tqbench.kernels.encode._triton_codes import codes_of
from tqbench.kernels.packed import _triton as tiles
from tqbench.kernels.packed._triton_rounding import stored

STEP = tl.constexpr(64)  # channels of a step of the matrix product


@triton.jit(do_not_specialize=["room", "tokens"], do_not_specialize_on_alignment=["scales", "minima"])  # they change as a store grows
def encode(x, s_batch, s_head, s_token, s_channel, low, high, scales, minima, room, t, tokens, heads, r: tl.constexpr, size: tl.constexpr):
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
    code, scale, minimum = codes_of(g, i, inside, t, head, r)
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


@triton.jit(do_not_specialize=["units"], do_not_specialize_on_alignment=["scales", "minima"])
def encode_channels(x, s_batch, s_head, s_token, s_channel, codes, scales, minima, units, heads, r: tl.constexpr, size: tl.constexpr):
    """One group of tokens of some channels of one head."""
    section, channel, i = tl.program_id(0), tl.program_id(1) * size + tl.arange(0, size), tl.arange(0, r.width)
    batch, head, unit = section // (units * heads), section // units % heads, section % units
    here = x + batch.to(tl.int64) * s_batch + head.to(tl.int64) * s_head + channel.to(tl.int64)[:, None] * s_channel
    seen, token = channel < r.head_dim, unit.to(tl.int64) * r.group + i
    g = tl.load(here + token[None, :] * s_token, mask=seen[:, None], other=0.0).to(tl.float32)
    g = tl.reshape(g, (size, 1, r.width))
    code, scale, minimum = codes_of(g, i, tl.broadcast_to((i < r.group)[None, None, :], g.shape), None, head, r)
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
