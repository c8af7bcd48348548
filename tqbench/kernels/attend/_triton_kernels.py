"""The kernels of attend/_triton.py: a partial softmax for each split of each region, and what joins them."""

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


@triton.jit(do_not_specialize=["first_k", "first_v", "queries", "splits"])  # they change as the context grows
def partial(
    q, shift, lut, k, v, spans, acc, peak, mass, lost, first_k, first_v, queries, kv_heads, scale, softcap, splits,
    k_form: tl.constexpr, v_form: tl.constexpr, how: tl.constexpr,
):  # fmt: skip
    """One split of one region, for `how.rows` rows of one KV head: softmax (q · k scale) v over the positions of `spans`."""
    split, pair = tl.program_id(2), tl.program_id(1)
    batch, head = pair // kv_heads, pair % kv_heads
    r = tl.arange(0, how.rows)
    query = tl.program_id(0) * (how.rows // how.share) + r // how.share
    real = (r < how.rows // how.share * how.share) & (query < queries)
    row = ((batch * kv_heads + head) * how.share + r % how.share).to(tl.int64) * queries + query
    low = tl.load(spans + 2 * query, mask=real, other=2**31 - 1)
    high = tl.load(spans + 2 * query + 1, mask=real, other=0)
    high = tl.where(low < high, high, 0)
    begin, end = tl.min(tl.where(low < high, low, 2**31 - 1)), tl.max(high)
    chunk = tl.cdiv(tl.cdiv(tl.maximum(end - begin, 0), splits), how.tokens) * how.tokens
    begin += split * chunk
    end = tl.minimum(end, begin + chunk)

    turned, step = _queries(q, row, real, k_form, how)
    apart = tl.full((how.rows,), 0.0, tl.float32)
    if shift is not None:
        apart = tl.load(shift + row, mask=real, other=0.0)

    top = tl.full((how.rows,), float("-inf"), tl.float32)
    total = tl.full((how.rows,), 0.0, tl.float32)
    left = tl.full((how.rows,), 0.0, tl.float32)
    mixed = _nothing(v_form, how)
    for start in range(begin, end, how.tokens):
        token = start + tl.arange(0, how.tokens)
        there = token < end
        if how.looked_up:
            s = _from_table(lut, k, k_form, batch, head, token - first_k, there, row, real, how)
        else:
            s = _scores(turned, k, k_form, batch, head, token - first_k, there, how)
        s = (s * step[:, None] + apart[:, None]) * scale
        if softcap is not None:
            s = softcap * (1 - 2 / (tl.exp2(s * (2 * LOG2E / softcap)) + 1))
        seen = (token[None, :] >= low[:, None]) & (token[None, :] < high[:, None]) & there[None, :]
        s = tl.where(seen, s * LOG2E, float("-inf"))
        higher = tl.maximum(top, tl.max(s, 1))
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        p, fade = tl.exp2(s - safe[:, None]), tl.exp2(top - safe)
        top, total, left = higher, total * fade + tl.sum(p, 1), left * fade
        if how.sparse > 0:
            if tl.max(p) >= how.sparse:
                mixed = _mix(mixed, fade, p, v, v_form, batch, head, token - first_v, there, how)
            else:
                mixed, left = _faded(mixed, fade, v_form), left + tl.sum(p, 1)
        else:
            mixed = _mix(mixed, fade, p, v, v_form, batch, head, token - first_v, there, how)

    place = split.to(tl.int64) * tl.num_programs(1) * how.share * queries + row
    for part in tl.static_range(tl.constexpr(v_form.parts)):
        c = tiles.columns(v_form, part)
        tl.store(acc + place[:, None] * v_form.dim + c[None, :], mixed[part], mask=real[:, None] & (c < v_form.dim)[None, :])
    tl.store(peak + place, top, mask=real)
    tl.store(mass + place, total, mask=real)
    if how.sparse > 0:
        tl.store(lost + place, left, mask=real)


@triton.jit
def _queries(q, row, real, f: tl.constexpr, how: tl.constexpr):
    """[rows, columns] each as they are multiplied, and [rows]: what their products are to be multiplied with."""
    given, largest = (), tl.full((how.rows,), 1e-30, tl.float32)
    for part in tl.static_range(tl.constexpr(f.parts)):
        c = tiles.columns(f, part)
        x = tl.load(q + row[:, None] * f.dim + c[None, :], mask=real[:, None] & (c < f.dim)[None, :], other=0.0).to(tl.float32)
        given, largest = given + (x,), tl.maximum(largest, tl.max(tl.abs(x), 1))
    turned, step = (), tl.full((how.rows,), 1.0, tl.float32)
    if how.k_operand == tl.int8:
        step = largest / 127
    for part in tl.static_range(tl.constexpr(f.parts)):
        x = given[part]
        if how.k_operand == tl.int8:
            x = tl.floor(x / step[:, None] + 0.5)
        turned = turned + (x.to(how.k_operand),)
    return turned, step


@triton.jit
def _scores(turned, k, f: tl.constexpr, batch, head, token, there, how: tl.constexpr):
    """[rows, tokens]: the products with the keys, up to the scale."""
    if how.k_folded:
        x = tiles.levels(k, f, batch, head, token, there)
        s = _products(turned, x, f, how) * tiles.factors(k, f, batch, head, token, there, x)[None, :]
    else:
        s = _products(turned, tiles.vectors(k, f, batch, head, token, there), f, how)
    return s


@triton.jit
def _products(turned, x, f: tl.constexpr, how: tl.constexpr):
    s = _product(turned[0], x[0], how)
    for p in tl.static_range(tl.constexpr(1), tl.constexpr(f.parts)):
        s += _product(turned[p], x[p], how)
    return s


@triton.jit
def _product(turned, x, how: tl.constexpr):
    if how.k_operand == tl.int8:
        s = tl.dot(turned, tl.trans(x.to(tl.int8)), out_dtype=tl.int32).to(tl.float32)
    elif how.narrow:
        s = tl.dot(turned, tl.trans(x.to(how.k_operand)), out_dtype=tl.float16).to(tl.float32)
    else:
        s = tl.dot(turned, tl.trans(x.to(how.k_operand)), input_precision="ieee")
    return s


@triton.jit
def _from_table(lut, k, f: tl.constexpr, batch, head, token, there, row, real, how: tl.constexpr):
    """The same from products that were made before: one is looked up for each row, token and channel."""
    code = tiles.codes(k, f, batch, head, token, there)
    s = tl.full((how.rows, how.tokens), 0.0, tl.float32)
    r = tl.arange(0, how.rows)
    for one in range(how.rows):
        at_lut = lut + tl.sum(tl.where(r == one, row, 0)) * f.dim * 2**f.bits
        if tl.sum(tl.where((r == one) & real, 1, 0)) > 0:
            for p in tl.static_range(tl.constexpr(f.parts)):
                c = tiles.columns(f, p)
                known = there[:, None] & (c < f.dim)[None, :]
                products = tl.load(at_lut + c[None, :] * 2**f.bits + code[p], mask=known, other=0.0)
                s += tl.where((r == one)[:, None], tl.sum(products, 1)[None, :], 0.0)
    return s * tiles.factors(k, f, batch, head, token, there, tiles.levels(k, f, batch, head, token, there))[None, :]


@triton.jit
def _mix(mixed, fade, p, v, f: tl.constexpr, batch, head, token, there, how: tl.constexpr):
    """[rows, columns] each: the sums so far, faded, and the values of these tokens, weighted. As halves weights are at most 2¹⁴, whatever
    the lengths are, so that those of tokens beside one that towers above them keep their digits."""
    largest = 1.0
    if how.v_folded:
        x = tiles.levels(v, f, batch, head, token, there)
        lengths = tiles.factors(v, f, batch, head, token, there, x)
        largest = tl.max(tl.abs(lengths))
        largest = tl.where(largest > 0, largest, 1.0)
        w = p * (lengths * (LIFT / largest))[None, :]
    else:
        x = tiles.vectors(v, f, batch, head, token, there)
        w = p * LIFT
    made = ()
    for i in tl.static_range(tl.constexpr(f.parts)):
        sums = tl.dot(w.to(how.v_operand), x[i].to(how.v_operand), input_precision="ieee") * (largest / LIFT)
        made = made + (mixed[i] * fade[:, None] + sums,)
    return made


@triton.jit
def _nothing(f: tl.constexpr, how: tl.constexpr):
    made = ()
    for _ in tl.static_range(tl.constexpr(f.parts)):
        made = made + (tl.full((how.rows, f.width // f.parts), 0.0, tl.float32),)
    return made


@triton.jit
def _faded(mixed, fade, f: tl.constexpr):
    made = ()
    for i in tl.static_range(tl.constexpr(f.parts)):
        made = made + (mixed[i] * fade[:, None],)
    return made


@triton.jit(do_not_specialize=["rows", "packed_splits", "exact_splits"])
def merge(
    packed_acc, exact_acc, peak, mass, lost, y, e, packed_mass, dropped, rows, packed_splits, exact_splits, packed_dim, exact_dim,
    width: tl.constexpr, splits: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """`block` rows: all partial softmaxes as one. Sums over packed values and over exact ones stay apart: they are in different bases."""
    row = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    real = row < rows
    s = tl.arange(0, splits)
    at_split = s[:, None] * rows + row[None, :]
    there = (s < packed_splits + exact_splits)[:, None] & real[None, :]
    m = tl.load(peak + at_split, mask=there, other=float("-inf"))
    l = tl.load(mass + at_split, mask=there, other=0.0)
    top = tl.max(m, 0)
    top = tl.where(top == float("-inf"), 0.0, top)
    w = tl.exp2(m - top[None, :])
    total = tl.where(real, tl.sum(w * l, 0), 1.0)
    if dropped is not None:
        tl.store(dropped + row, tl.sum(w * tl.load(lost + at_split, mask=there, other=0.0), 0) / total, mask=real)
    if packed_mass is not None:
        tl.store(packed_mass + row, tl.sum(tl.where((s < packed_splits)[:, None], w * l, 0.0), 0) / total, mask=real)
    if y is not None:
        _join(y, packed_acc, peak, top, total, 0, packed_splits, rows, row, real, packed_dim, width)
    if e is not None:
        _join(e, exact_acc, peak, top, total, packed_splits, exact_splits, rows, row, real, exact_dim, width)


@triton.jit
def _join(out, acc, peak, top, total, first, count, rows, row, real, dim, width: tl.constexpr):
    """Sums of the splits, each scaled from its own peak to the common one."""
    i = tl.arange(0, width)
    here, there = row[:, None] * dim + i[None, :], real[:, None] & (i < dim)[None, :]
    x, step = tl.full((row.shape[0], width), 0.0, tl.float32), rows.to(tl.int64) * dim
    for j in range(count):
        w = tl.exp2(tl.load(peak + (first + j) * rows + row, mask=real, other=float("-inf")) - top)
        x += w[:, None] * tl.load(acc + j * step + here, mask=there, other=0.0)
    tl.store(out + here, x / total[:, None], mask=there)
