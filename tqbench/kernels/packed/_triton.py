"""Tiles of packed vectors in registers: what every Triton kernel reads a cache through.

A tile has one row per token and one column per stored value, in the order in which the codes lie (`channel` says which is which), padded to
a power of two. `Form` is known when a kernel is compiled, `Arrays` when it is launched; both are made from the `Format` of the package.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tqbench.codecs.blocks import minifloat
from tqbench.core.codec import Codec, Packed
from tqbench.kernels.packed import E4M3, E5M2, FIFTH, FLOATS, HALVES, NUMBERS, SPLIT, TABLE, Parts, spell, together

BYTE = NUMBERS["byte"]


class Form(NamedTuple):
    """A format as a kernel is compiled for it."""

    floats: bool = True  # values as they are; nothing below `group` matters then
    dim: int = 0  # values of a vector as it is stored
    width: int = 0  # the same, up to the next power of two
    group: int = 0  # values that share a scale
    bits: int = 8
    unit: int = 1  # tokens whose codes make one stream, for each channel
    halves: bool = False  # channels j and j + 16 share a byte
    high: int = 0  # bits of a code that lie in the first plane, where the last one has a plane of its own; 0: it has none
    table: bool = False  # codes are looked up; else they are integers
    flip: int = 0
    bias: int = 0
    scaled: bool = False
    stepped: bool = False  # scales are bytes that are looked up
    shifted: bool = False  # a minimum is added
    normalized: bool = False  # the scale is the length of the whole
    by_head: bool = False  # one scale for each KV head

    @property
    def folded(self) -> bool:
        """Whether one factor for each token says all about its scale: it can wait until after the sums."""
        return not self.floats and self.unit == 1 and self.group == self.dim and not self.shifted


class Rows(NamedTuple):
    """An array [batch, kv_heads, units, …]: its memory, and how many elements lie between neighbours."""

    data: Tensor | None = None
    batch: int = 0
    head: int = 0
    unit: int = 0


class Arrays(NamedTuple):
    """What is stored, and the tables that give it its meaning."""

    codes: Rows = Rows()
    high: Rows = Rows()
    scales: Rows = Rows()
    minima: Rows = Rows()
    table: Tensor | None = None
    steps: Tensor | None = None
    head_scale: Tensor | None = None


@lru_cache(maxsize=512)
def _known(codec: Codec, head_dim: int, device: str, dtype: torch.dtype) -> tuple[Form, Parts, Arrays]:
    """What does not depend on the tokens."""
    dim, fields = codec.stored_dim(head_dim), spell(codec, head_dim)
    parts, arrangement, value = fields["parts"], fields.get("arrangement"), fields.get("value")
    if arrangement == FLOATS:
        return Form(True, dim, triton.next_power_of_2(dim)), parts, Arrays()
    values, steps, by_head = (fields.get(name) for name in ("values", "scale_table", "head_scale"))
    if value in (E4M3, E5M2):
        values = minifloat.decode(torch.arange(256, dtype=torch.uint8), "e4m3" if value == E4M3 else "e5m2", torch.float32)
    form = Form(
        False,
        dim,
        triton.next_power_of_2(dim),
        fields.get("group", dim),
        fields.get("bits", 8),
        fields.get("unit", 1),
        arrangement in (HALVES, FIFTH),
        2 if arrangement == SPLIT else 4 if arrangement == FIFTH else 0,
        value in (TABLE, E4M3, E5M2),
        fields.get("flip", 0),
        fields.get("bias", 0),
        bool(fields.get("scale", 0)),
        fields.get("scale", 0) == BYTE,
        bool(fields.get("minimum", 0)),
        bool(fields.get("normalized", 0)),
        by_head is not None,
    )
    steps, by_head = (None if x is None else torch.as_tensor(x, dtype=torch.float32).to(device) for x in (steps, by_head))
    table = None if values is None else torch.as_tensor(values, dtype=torch.float32).to(device, dtype)
    return form, parts, Arrays(table=table, steps=steps, head_scale=by_head)


def arrays(codec: Codec, head_dim: int, stored: Packed, dtype: torch.dtype = torch.float32) -> tuple[Form, Arrays]:
    """This codec's arrays as kernels take them, its levels in the type that they are multiplied in."""
    device = next(iter(stored.values())).device
    form, parts, known = _known(codec, head_dim, str(device), dtype)
    codes_, high, scales, minima = (Rows() if name is None else rows(stored[name]) for name in parts)
    return form, known._replace(codes=codes_, high=high, scales=scales, minima=minima)


def exact(x: Tensor) -> tuple[Form, Arrays]:
    """Vectors in a floating-point type."""
    dim = x.shape[-1]
    return Form(True, dim, triton.next_power_of_2(dim)), Arrays(rows(x))


def rows(x: Tensor) -> Rows:
    """Where an array lies."""
    x = together(x, 3)
    return Rows(x, *x.stride()[:3])


@triton.jit
def at(a, batch, head):
    """The first element of one sequence's head."""
    return a.data + batch.to(tl.int64) * a.batch + head.to(tl.int64) * a.head


@triton.jit
def channel(f: tl.constexpr, i):
    """The value that lies at place i."""
    if f.halves:
        i = i // 32 * 32 + i % 32 // 2 + i % 2 * 16
    return i


@triton.jit
def vectors(a, f: tl.constexpr, batch, head, token, seen):
    """[tokens, width]: the values themselves; tokens that are not `seen` are not read."""
    i = tl.arange(0, f.width)
    if f.floats:
        here = at(a.codes, batch, head) + token[:, None] * a.codes.unit + i[None, :]
        x = tl.load(here, mask=seen[:, None] & (i < f.dim)[None, :], other=0.0)
    else:
        x = levels(a, f, batch, head, token, seen).to(tl.float32)
        if f.normalized:
            x = x / _length(x, f)
        if f.scaled:
            x = x * _ranges(a.scales, a, f, batch, head, token, seen)
        if f.shifted:
            x = x + _ranges(a.minima, a, f, batch, head, token, seen)
        if f.by_head:
            x = x * tl.load(a.head_scale + head)
    return x


@triton.jit
def factors(a, f: tl.constexpr, batch, head, token, seen, x):
    """[tokens]: what the levels x of each token are multiplied with, where `Form.folded`."""
    s = tl.full((token.shape[0],), 1.0, tl.float32)
    if f.scaled:
        kept = tl.load(at(a.scales, batch, head) + token * a.scales.unit, mask=seen, other=0)
        if f.stepped:
            s = tl.load(a.steps + kept.to(tl.int32))
        else:
            s = kept.to(tl.float32)
    if f.normalized:
        i = tl.arange(0, f.width)
        wide = tl.where((i < f.dim)[None, :], x.to(tl.float32), 0.0)
        s = s / tl.sqrt(tl.sum(wide * wide, 1))
    if f.by_head:
        s = s * tl.load(a.head_scale + head)
    return s


@triton.jit
def levels(a, f: tl.constexpr, batch, head, token, seen):
    """[tokens, width]: what the codes stand for before any scale."""
    code = codes(a, f, batch, head, token, seen)
    if f.table:
        x = tl.load(a.table + code)
    else:
        x = ((code ^ f.flip) + f.bias).to(tl.float32)
    return x


@triton.jit
def codes(a, f: tl.constexpr, batch, head, token, seen):
    """[tokens, width]: codes as they were packed, whether their bytes have a sign or not."""
    base = at(a.codes, batch, head)
    if f.unit > 1:
        x = _along_tokens(base, a.codes.unit, f, token, seen)
    elif f.high:
        low = _bytes(base, a.codes.unit, f.dim * f.high // 8, f.width * f.high // 8, f.high, token, seen)
        x = low.to(tl.int32) | _top(a, f, batch, head, token, seen) << f.high
    elif 8 % f.bits == 0:
        x = _bytes(base, a.codes.unit, f.dim * f.bits // 8, f.width * f.bits // 8, f.bits, token, seen).to(tl.int32)
    else:
        x = _across_bytes(base, a.codes.unit, f, token, seen)
    return x & ((1 << f.bits) - 1)


@triton.jit
def _top(a, f: tl.constexpr, batch, head, token, seen):
    """The last bit of each code, from the plane that it has for itself, in the order of the channels."""
    i = tl.arange(0, f.width)
    c, there = channel(f, i), seen[:, None] & (i < f.dim)[None, :]
    x = tl.load(at(a.high, batch, head) + token[:, None] * a.high.unit + (c >> 3)[None, :], mask=there, other=0)
    return (x.to(tl.int32) >> (c & 7)[None, :]) & 1


@triton.jit
def _bytes(base, stride, size: tl.constexpr, width: tl.constexpr, bits: tl.constexpr, token, seen):
    """Codes that do not cross bytes: halves of bytes side by side, halves of these, and so on."""
    b = tl.arange(0, width)
    x = tl.load(base + token[:, None] * stride + b[None, :], mask=seen[:, None] & (b < size)[None, :], other=0)
    if bits <= 4:
        x = tl.reshape(tl.join(x & 15, x >> 4), (x.shape[0], 2 * x.shape[1]))
    if bits <= 2:
        x = tl.reshape(tl.join(x & 3, x >> 2), (x.shape[0], 2 * x.shape[1]))
    if bits <= 1:
        x = tl.reshape(tl.join(x & 1, x >> 1), (x.shape[0], 2 * x.shape[1]))
    return x


@triton.jit
def _across_bytes(base, stride, f: tl.constexpr, token, seen):
    """Codes of three, five, six or seven bits: each from the two bytes that it may lie in."""
    i = tl.arange(0, f.width)
    bit = i * f.bits
    there = seen[:, None] & (i < f.dim)[None, :]
    first = base + token[:, None] * stride + (bit >> 3)[None, :]
    low = tl.load(first, mask=there, other=0).to(tl.int32)
    high = tl.load(first + 1, mask=there & ((bit & 7) + f.bits > 8)[None, :], other=0).to(tl.int32)
    return ((low | high << 8) >> (bit & 7)[None, :]) & ((1 << f.bits) - 1)


@triton.jit
def _along_tokens(base, stride, f: tl.constexpr, token, seen):
    """Codes whose streams run along tokens, one for each channel."""
    i = tl.arange(0, f.width)
    bit = token % f.unit * f.bits
    there = seen[:, None] & (i < f.dim)[None, :]
    first = base + (token // f.unit)[:, None] * stride + (bit >> 3)[:, None] * f.dim + i[None, :]
    low = tl.load(first, mask=there, other=0).to(tl.int32)
    high = tl.load(first + f.dim, mask=there & ((bit & 7) + f.bits > 8)[:, None], other=0).to(tl.int32)
    return ((low | high << 8) >> (bit & 7)[:, None]) & ((1 << f.bits) - 1)


@triton.jit
def _ranges(rows_, a, f: tl.constexpr, batch, head, token, seen):
    """Scales or minima, one for each value of the tile."""
    i = tl.arange(0, f.width)
    column = channel(f, i) if f.unit > 1 else channel(f, i) // f.group
    there = seen[:, None] & (i < f.dim)[None, :]
    s = tl.load(at(rows_, batch, head) + (token // f.unit)[:, None] * rows_.unit + column[None, :], mask=there, other=0)
    if f.stepped:
        x = tl.load(a.steps + s.to(tl.int32))
    else:
        x = s.to(tl.float32)
    return x


@triton.jit
def _length(x, f: tl.constexpr):
    """The length of each group of levels, for each value of the tile."""
    groups: tl.constexpr = f.width // f.group
    squares = tl.reshape(x * x, (x.shape[0], groups, f.group))
    length = tl.sqrt(tl.sum(squares, 2))
    return tl.reshape(tl.broadcast_to(length[:, :, None], (x.shape[0], groups, f.group)), (x.shape[0], f.width))
