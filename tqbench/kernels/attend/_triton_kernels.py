"""The kernel of attend/_triton.py: a partial softmax for each split of each region.

Tokens and channels are the rows of its matrix products, queries the columns: of a matrix product they may be as few as eight, and decoding
has no more than the query heads that share a KV head."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from tqbench.kernels.packed import _triton as tiles

LOG2E = tl.constexpr(1.4426950408889634)
LIFT = tl.constexpr(16384.0)


class How(NamedTuple):
    """What a kernel is compiled for beside the formats."""

    rows: int
    tokens: int
    share: int  # query heads that share a KV head
    k_operand: Any
    v_operand: Any
    k_folded: bool
    v_folded: bool
    narrow: bool
    looked_up: bool
    sparse: float


@triton.jit(
    do_not_specialize=["begin", "end", "first_k", "first_v", "queries", "splits"],  # they change as the context grows
    do_not_specialize_on_alignment=["peak", "mass", "lost"],  # which begin where the splits of earlier regions end
)
def partial(
    q, shift, lut, k, v, spans, begin, end, acc, peak, mass, lost, first_k, first_v, queries, kv_heads, scale, softcap, splits,
    k_form: tl.constexpr, v_form: tl.constexpr, how: tl.constexpr,
):  # fmt: skip
    """One split of one region, for `how.rows` rows of one KV head: softmax (q · k scale) v over the positions [begin, end), of
    which a query sees its own `spans`; None: all."""
    split, pair = tl.program_id(2), tl.program_id(1)
    batch, head = pair // kv_heads, pair % kv_heads
    r = tl.arange(0, how.rows)
    query = tl.program_id(0) * (how.rows // how.share) + r // how.share
    real = (r < how.rows // how.share * how.share) & (query < queries)
    row = ((batch * kv_heads + head) * how.share + r % how.share).to(tl.int64) * queries + query
    low, high = tl.full((how.rows,), begin, tl.int32), tl.where(real, end, 0)
    if spans is not None:
        low = tl.load(spans + 2 * query, mask=real, other=2**31 - 1)
        high = tl.load(spans + 2 * query + 1, mask=real, other=0)
    begin, end = _share_of(low, tl.where(low < high, high, 0), split, splits, how)

    turned, step = _queries(q, row, real, k_form, how)
    apart = tl.full((how.rows,), 0.0, tl.float32)
    if shift is not None:
        apart = tl.load(shift + row, mask=real, other=0.0)
    gain = scale * LOG2E if softcap is None else scale
    step, apart = step * gain, apart * gain

    top = tl.full((how.rows,), float("-inf"), tl.float32)
    total = tl.full((how.tokens, how.rows), 0.0, tl.float32)  # summed up in the end: over tokens means across threads
    left = tl.full((how.rows,), 0.0, tl.float32)
    mixed, unit = _nothing(v_form, how), 0.0
    for start in range(begin, end, how.tokens):
        token = start + tl.arange(0, how.tokens)
        there = token < end
        k_scale = _scale(k, k_form, how.k_folded, batch, head, token - first_k, there)  # both at once, before the work that hides their way
        v_scale = _scale(v, v_form, how.v_folded, batch, head, token - first_v, there)
        s = _scores(k_scale, turned, lut, row, real, k, k_form, batch, head, token - first_k, there, how)
        s = s * step[None, :] + apart[None, :]
        if softcap is not None:
            s = softcap * LOG2E * (1 - 2 / (tl.exp2(s * (2 * LOG2E / softcap)) + 1))
        seen = there[:, None]
        if spans is not None:
            seen = seen & (token[:, None] >= low[None, :]) & (token[:, None] < high[None, :])
        s = tl.where(seen, s, float("-inf"))
        higher = tl.maximum(top, tl.max(s, 0))
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        p, fade = tl.exp2(s - safe[None, :]), tl.exp2(top - safe)
        top, total, left = higher, total * fade[None, :] + p, left * fade
        if how.sparse > 0:
            if tl.max(tl.where(real[None, :], p, 0.0)) >= how.sparse:
                mixed, unit = _mix(v_scale, mixed, unit, fade, p, v, v_form, batch, head, token - first_v, there, how)
            else:
                mixed, left = _scaled(mixed, fade, v_form), left + tl.sum(p, 0)
        else:
            mixed, unit = _mix(v_scale, mixed, unit, fade, p, v, v_form, batch, head, token - first_v, there, how)

    place = split.to(tl.int64) * tl.num_programs(1) * how.share * queries + row
    for part in tl.static_range(tl.constexpr(v_form.parts)):
        c = tiles.columns(v_form, part)
        tl.store(
            acc + place[None, :] * v_form.dim + c[:, None], mixed[part] * (unit / LIFT), mask=real[None, :] & (c < v_form.dim)[:, None]
        )
    tl.store(peak + place, top, mask=real)
    tl.store(mass + place, tl.sum(total, 0), mask=real)
    if how.sparse > 0:
        tl.store(lost + place, left, mask=real)


@triton.jit
def _share_of(low, high, split, splits, how: tl.constexpr):
    """The positions of one split, whole tiles. They come from a reduction over rows even where all are alike: where nothing is fetched
    ahead, the compiler keeps the levels of codes out of the lanes' registers once it knows that a loop is the same for all of them."""
    begin, end = tl.min(tl.where(low < high, low, 2**31 - 1)), tl.max(high)
    chunk = tl.cdiv(tl.cdiv(tl.maximum(end - begin, 0), splits), how.tokens) * how.tokens
    begin += split * chunk
    return begin, tl.minimum(end, begin + chunk)


@triton.jit
def _queries(q, row, real, f: tl.constexpr, how: tl.constexpr):
    """[columns, rows] each as they are multiplied, and [rows]: what their products are to be multiplied with."""
    given = ()
    largest = tl.full((how.rows,), 1e-30, tl.float32)
    for part in tl.static_range(tl.constexpr(f.parts)):
        c = tiles.columns(f, part)
        x = tl.load(q + row[:, None] * f.dim + c[None, :], mask=real[:, None] & (c < f.dim)[None, :], other=0.0).to(tl.float32)
        given, largest = given + (x,), tl.maximum(largest, tl.max(tl.abs(x), 1))
    turned = ()
    step = tl.full((how.rows,), 1.0, tl.float32)
    if how.k_operand == tl.int8:
        step = largest / 127
    for part in tl.static_range(tl.constexpr(f.parts)):
        x = given[part]
        if how.k_operand == tl.int8:
            x = tl.floor(x / step[:, None] + 0.5)
        turned = turned + (tl.trans(x.to(how.k_operand)),)
    return turned, step


@triton.jit
def _scale(side, f: tl.constexpr, folded: tl.constexpr, batch, head, token, there):
    s = tl.full((token.shape[0],), 1.0, tl.float32)
    if folded:
        s = tiles.kept(side, f, batch, head, token, there)
    return s


@triton.jit
def _scores(scale, turned, lut, row, real, k, f: tl.constexpr, batch, head, token, there, how: tl.constexpr):
    """[tokens, rows]: the products with the keys, up to the scale."""
    if how.looked_up:
        s = _from_table(scale, lut, k, f, batch, head, token, there, row, real, how)
    elif how.k_folded:
        x = tiles.levels(k, f, batch, head, token, there)
        s = _products(turned, x, f, how) * tiles.factors(scale, x, f)[:, None]
    else:
        s = _products(turned, tiles.vectors(k, f, batch, head, token, there), f, how)
    return s


@triton.jit
def _products(turned, x, f: tl.constexpr, how: tl.constexpr):
    if how.k_operand == tl.int8:
        s = tl.full((how.tokens, how.rows), 0, tl.int32)
    elif how.narrow:
        s = tl.full((how.tokens, how.rows), 0.0, tl.float16)
    else:
        s = tl.full((how.tokens, how.rows), 0.0, tl.float32)
    for p in tl.static_range(tl.constexpr(f.parts)):
        s = tl.dot(x[p].to(how.k_operand), turned[p], s, input_precision="ieee", out_dtype=s.dtype)
    return s.to(tl.float32)


@triton.jit
def _from_table(scale, lut, k, f: tl.constexpr, batch, head, token, there, row, real, how: tl.constexpr):
    """The same from products that were made before: one is looked up for each row, token and channel."""
    code = tiles.codes(k, f, batch, head, token, there)
    s = tl.full((how.tokens, how.rows), 0.0, tl.float32)
    r = tl.arange(0, how.rows)
    for one in range(how.rows):
        at_lut = lut + tl.sum(tl.where(r == one, row, 0)) * f.dim * 2**f.bits
        if tl.sum(tl.where((r == one) & real, 1, 0)) > 0:
            for p in tl.static_range(tl.constexpr(f.parts)):
                c = tiles.columns(f, p)
                known = there[:, None] & (c < f.dim)[None, :]
                products = tl.load(at_lut + c[None, :] * 2**f.bits + code[p], mask=known, other=0.0)
                s += tl.where((r == one)[None, :], tl.sum(products, 1)[:, None], 0.0)
    if f.normalized:
        scale = tiles.factors(scale, tiles.levels(k, f, batch, head, token, there), f)
    return s * scale[:, None]


@triton.jit
def _mix(scale, mixed, unit, fade, p, v, f: tl.constexpr, batch, head, token, there, how: tl.constexpr):
    """[columns, rows] each: the sums so far, faded, and the values of these tokens, weighted, in units of the largest length so far over
    2¹⁴. So as halves weights are at most 2¹⁴, and those of tokens beside one that towers above them keep their digits."""
    larger = 1.0
    if how.v_folded:
        x = tiles.levels(v, f, batch, head, token, there)
        lengths = tiles.factors(scale, x, f)
        larger = tl.maximum(unit, tl.max(tl.abs(lengths)))
        w = p * (lengths * tl.where(larger > 0, LIFT / larger, 0.0))[:, None]
    else:
        x = tiles.vectors(v, f, batch, head, token, there)
        w = p * LIFT
    mixed = _scaled(mixed, fade * tl.where(larger > 0, unit / larger, 0.0), f)
    made = ()
    for i in tl.static_range(tl.constexpr(f.parts)):
        made = made + (tl.dot(tl.trans(x[i].to(how.v_operand)), w.to(how.v_operand), mixed[i], input_precision="ieee"),)
    return made, larger


@triton.jit
def _nothing(f: tl.constexpr, how: tl.constexpr):
    made = ()
    for _ in tl.static_range(tl.constexpr(f.parts)):
        made = made + (tl.full((f.width // f.parts, how.rows), 0.0, tl.float32),)
    return made


@triton.jit
def _scaled(mixed, by, f: tl.constexpr):
    made = ()
    for i in tl.static_range(tl.constexpr(f.parts)):
        made = made + (mixed[i] * by[None, :],)
    return made
