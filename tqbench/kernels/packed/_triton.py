"""Tiles of packed vectors in registers: what every Triton kernel reads a cache through.

A tile has one row per token and one column per stored value, padded to a power of two. Codes that share a byte lie in different parts of
a tile, column i of each from byte i, because no code has then to be moved beside its neighbour (`channel` says which value is where); all
other formats have one part. `Form` is known when a kernel is compiled, `Arrays` when it is launched; both are made from the `Format` of
the package.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tqbench.codecs.blocks import minifloat
from tqbench.core.codec import Codec, Packed
from tqbench.kernels.packed import E4M3, E5M2, FIFTH, FLOATS, HALVES, NUMBERS, SPLIT, TABLE, Parts, _ptx, spell, together
from tqbench.kernels.triton import interpreting

BYTE = NUMBERS["byte"]
FIFTH_BITS = 4  # of a code that has a fifth
NARROWEST = 16  # columns of a part: matrix products take no fewer


class Form(NamedTuple):
    """A format as a kernel is compiled for it."""

    floats: bool = True  # values as they are; nothing below `group` matters then
    dim: int = 0  # values of a vector as it is stored
    width: int = 0  # the same, up to the next power of two
    parts: int = 1
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
    text: str = ""  # PTX that makes halves of codes; without it they are looked up in memory

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
    width, bits, unit = triton.next_power_of_2(dim), fields.get("bits", 8), fields.get("unit", 1)
    high = 2 if arrangement == SPLIT else FIFTH_BITS if arrangement == FIFTH else 0
    shared = 8 // (high or bits) if 8 % (high or bits) == 0 and unit == 1 else 1  # codes of a byte
    form = Form(
        False,
        dim,
        width,
        shared if width // shared >= NARROWEST else 1,
        fields.get("group", dim),
        bits,
        unit,
        arrangement in (HALVES, FIFTH),
        high,
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
    if dtype == torch.float16 and not interpreting():
        form = form._replace(text=_text(form, value, values))
    return form, parts, Arrays(table=table, steps=steps, head_scale=by_head)


def _text(form: Form, value: int | None, values: Any) -> str:
    """PTX for the levels of this form; empty where they are looked up in memory."""
    if form.unit > 1 or form.high == FIFTH_BITS or form.bits not in (2, 3, 4, 8) or (form.bits < 8 and form.parts == 1):
        return ""
    if value in (E4M3, E5M2):
        return _ptx.minifloats("e4m3" if value == E4M3 else "e5m2")
    if form.table:
        return "" if form.bits == 8 else _ptx.lookup(form.bits, form.high, values)
    return _ptx.integers(form.parts, form.flip, form.bias)


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
def columns(f: tl.constexpr, part: tl.constexpr):
    """The values in the columns of a part."""
    return channel(f, tl.arange(0, f.width // f.parts) * f.parts + part)


@triton.jit
def vectors(a, f: tl.constexpr, batch, head, token, seen):
    """A part [tokens, columns] each: the values themselves; tokens that are not `seen` are not read."""
    if f.floats:
        i = tl.arange(0, f.width)
        here = at(a.codes, batch, head) + token[:, None] * a.codes.unit + i[None, :]
        made = (tl.load(here, mask=seen[:, None] & (i < f.dim)[None, :], other=0.0),)
    else:
        x = levels(a, f, batch, head, token, seen)
        factor, more = tl.full((token.shape[0], 1), 1.0, tl.float32), tl.full((token.shape[0], 1), 0.0, tl.float32)
        if f.scaled:
            factor = _ranges(a.scales, a, f, batch, head, token, seen)
        if f.normalized:
            factor = factor / _length(x, f)
        if f.by_head:
            factor = factor * tl.load(a.head_scale + head)
        if f.shifted:
            more = _ranges(a.minima, a, f, batch, head, token, seen)
        made = ()
        for p in tl.static_range(tl.constexpr(f.parts)):
            if factor.dtype == tl.float16 and x[p].dtype == tl.float16:  # their product is rounded once, as it would be later
                made = made + (tl.fma(x[p], tl.broadcast_to(factor, x[p].shape), tl.broadcast_to(more.to(tl.float16), x[p].shape)),)
            else:
                made = made + (x[p].to(tl.float32) * factor + more,)
    return made


@triton.jit
def kept(a, f: tl.constexpr, batch, head, token, seen):
    """[tokens]: the scale of each token, where `Form.folded`."""
    s = tl.full((token.shape[0],), 1.0, tl.float32)
    if f.scaled:
        found = tl.load(at(a.scales, batch, head) + token * a.scales.unit, mask=seen, other=0)
        if f.stepped:
            s = tl.load(a.steps + found.to(tl.int32))
        else:
            s = found.to(tl.float32)
    if f.by_head:
        s = s * tl.load(a.head_scale + head)
    return s


@triton.jit
def factors(scale, x, f: tl.constexpr):
    """[tokens]: what the levels x of each token are multiplied with, where `Form.folded`."""
    if f.normalized:
        scale = scale / tl.sqrt(_squares(x, f.dim, f))
    return scale


@triton.jit
def levels(a, f: tl.constexpr, batch, head, token, seen):
    """A part [tokens, columns] each: what the codes stand for before any scale."""
    made = ()
    if f.text != "":
        made = _in_registers(a, f, batch, head, token, seen)
    else:
        code = codes(a, f, batch, head, token, seen)
        for p in tl.static_range(tl.constexpr(f.parts)):
            if f.table:
                made = made + (tl.load(a.table + code[p]),)
            else:
                made = made + (((code[p] ^ f.flip) + f.bias).to(tl.float32),)
    return made


@triton.jit
def _in_registers(a, f: tl.constexpr, batch, head, token, seen):
    """The same as halves, four bytes at a time."""
    x = _bytes(at(a.codes, batch, head), a.codes.unit, f.dim // f.parts, f.width // f.parts, token, seen).to(tl.uint8, bitcast=True)
    if f.parts == 1:
        made = (tl.inline_asm_elementwise(f.text, "=r,=r,r", [x], dtype=tl.float16, is_pure=False, pack=4),)
    elif f.parts == 2:
        made = tl.inline_asm_elementwise(f.text, "=r,=r,=r,=r,r", [x], dtype=(tl.float16, tl.float16), is_pure=False, pack=4)
    else:
        halves: tl.constexpr = (tl.float16, tl.float16, tl.float16, tl.float16)
        if f.high:
            top = _bytes(at(a.high, batch, head), a.high.unit, f.dim // 8, f.width // 8, token, seen)
            twice = tl.reshape(tl.join(top, top), x.shape)
            made = tl.inline_asm_elementwise(f.text, "=r,=r,=r,=r,=r,=r,=r,=r,r,r", [x, twice], dtype=halves, is_pure=False, pack=4)
        else:
            made = tl.inline_asm_elementwise(f.text, "=r,=r,=r,=r,=r,=r,=r,=r,r", [x], dtype=halves, is_pure=False, pack=4)
    return made


@triton.jit
def codes(a, f: tl.constexpr, batch, head, token, seen):
    """A part [tokens, columns] each: codes as they were packed."""
    base = at(a.codes, batch, head)
    made = ()
    if f.parts > 1:
        bits: tl.constexpr = 8 // f.parts
        x = _bytes(base, a.codes.unit, f.dim // f.parts, f.width // f.parts, token, seen).to(tl.int32)
        for p in tl.static_range(tl.constexpr(f.parts)):
            code = x >> (p * bits) & ((1 << bits) - 1)
            if f.high:
                code = code | _top(a, f, p, batch, head, token, seen) << f.high
            made = made + (code,)
    elif f.unit > 1:
        made = (_along_tokens(base, a.codes.unit, f, token, seen),)
    elif f.high:
        low = _across_bytes(base, a.codes.unit, f, f.high, token, seen)
        made = (low | _top(a, f, 0, batch, head, token, seen) << f.high,)
    else:
        made = (_across_bytes(base, a.codes.unit, f, f.bits, token, seen),)
    return made


@triton.jit
def _top(a, f: tl.constexpr, part: tl.constexpr, batch, head, token, seen):
    """The last bit of each code, from the plane that it has for itself, in the order of the channels."""
    c = columns(f, part)
    there = seen[:, None] & (c < f.dim)[None, :]
    x = tl.load(at(a.high, batch, head) + token[:, None] * a.high.unit + (c >> 3)[None, :], mask=there, other=0)
    return (x.to(tl.int32) >> (c & 7)[None, :]) & 1


@triton.jit
def _bytes(base, stride, size: tl.constexpr, width: tl.constexpr, token, seen):
    """[tokens, width]: bytes as they lie."""
    b = tl.arange(0, width)
    return tl.load(base + token[:, None] * stride + b[None, :], mask=seen[:, None] & (b < size)[None, :], other=0)


@triton.jit
def _across_bytes(base, stride, f: tl.constexpr, bits: tl.constexpr, token, seen):
    """Codes in one stream of bits, least significant first: each from the one or two bytes that it may lie in."""
    i = tl.arange(0, f.width)
    bit = i * bits
    there = seen[:, None] & (i < f.dim)[None, :]
    first = base + token[:, None] * stride + (bit >> 3)[None, :]
    x = tl.load(first, mask=there, other=0).to(tl.int32)
    if 8 % bits != 0:
        x = x & 255 | tl.load(first + 1, mask=there & ((bit & 7) + bits > 8)[None, :], other=0).to(tl.int32) << 8
    return x >> (bit & 7)[None, :] & ((1 << bits) - 1)


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
    """Scales or minima as they are kept, one for each column, which all parts share: groups hold whole bytes."""
    base = at(rows_, batch, head) + (token // f.unit)[:, None] * rows_.unit
    if f.unit > 1 or (f.group < f.dim and f.group & (f.group - 1)):
        c = columns(f, 0)
        column = c if f.unit > 1 else c // f.group
        x = tl.load(base + column[None, :], mask=seen[:, None] & (c < f.dim)[None, :], other=0)
    else:
        g = tl.arange(0, f.width // f.group)
        x = _spread(tl.load(base + g[None, :], mask=seen[:, None] & (g * f.group < f.dim)[None, :], other=0), f)
    if f.stepped:
        x = tl.load(a.steps + x.to(tl.int32))
    return x


@triton.jit
def _spread(x, f: tl.constexpr):
    """[tokens, groups] to [tokens, columns]."""
    columns_: tl.constexpr = f.width // f.parts
    wide = tl.broadcast_to(x[:, :, None], (x.shape[0], x.shape[1], columns_ // x.shape[1]))
    return tl.reshape(wide, (x.shape[0], columns_))


@triton.jit
def _length(x, f: tl.constexpr):
    """The length of each group of levels, for each column."""
    groups: tl.constexpr = f.width // f.group
    length = tl.full((x[0].shape[0], groups), 0.0, tl.float32)
    for p in tl.static_range(tl.constexpr(f.parts)):
        wide = x[p].to(tl.float32)
        length += tl.sum(tl.reshape(wide * wide, (wide.shape[0], groups, wide.shape[1] // groups)), 2)
    return _spread(tl.sqrt(length), f)


@triton.jit
def _squares(x, dim: tl.constexpr, f: tl.constexpr):
    """[tokens]: the squared length of all levels."""
    length = tl.full((x[0].shape[0],), 0.0, tl.float32)
    for p in tl.static_range(tl.constexpr(f.parts)):
        wide = tl.where((columns(f, p) < dim)[None, :], x[p].to(tl.float32), 0.0)
        length += tl.sum(wide * wide, 1)
    return length
