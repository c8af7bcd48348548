"""Attention on packed keys and values through the native library: nothing is decoded to memory, queries go into the rotated basis once."""

from __future__ import annotations

import ctypes
from array import array as numbers
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tqbench.core.errors import EvidenceError
from tqbench.kernels import native, packed
from tqbench.kernels.attend import View
from tqbench.kernels.attend._call import Call, CallSide

EVERYTHING = 1 << 40  # reach of a query that sees all


@dataclass(frozen=True)
class Switches:
    """What the library can do otherwise; a store uses it as it is."""

    fast: bool = False  # levels, queries and weights of 8 bits
    split: int = 0  # tokens per task; 0: the library chooses
    ahead: int = 64  # tokens between what is computed and what is fetched from memory; 0: nothing is
    sparse: float = 0.0  # values whose weight is less than this, relative to the largest so far, are left out
    dropped: Tensor | None = None  # float32 [batch, heads, queries]: gets the share of each query's weight that was left out


def attend(q: Tensor, k: View, v: View, start: int, scale: float, softcap: float | None = None) -> Tensor:
    """Attention of each query over its own mixture of packed and exact positions, in float32."""
    return switched(Switches(), q, k, v, start, scale, softcap)


def attend_fast(q: Tensor, k: View, v: View, start: int, scale: float, softcap: float | None = None) -> Tensor:
    """The same with levels, queries and weights of 8 bits."""
    return switched(Switches(fast=True), q, k, v, start, scale, softcap)


def switched(switches: Switches, q: Tensor, k: View, v: View, start: int, scale: float, softcap: float | None = None) -> Tensor:
    """The same with switches."""
    queries = q.to(torch.float32).contiguous()
    out = torch.empty_like(queries)
    batch, heads, count, head_dim = q.shape
    kv_heads = k.tail.shape[1]
    sides, kept = zip(_side(k, q, kv_heads, keys=True), _side(v, q, kv_heads, keys=False), strict=True)
    reach = EVERYTHING if k.reach is None else k.reach
    shape = (batch, heads, kv_heads, count, head_dim, start, reach)
    dropped = None if switches.dropped is None else switches.dropped.data_ptr()
    how = (switches.split, switches.ahead, switches.fast, switches.sparse, dropped)
    call = Call(*shape, scale, softcap or 0.0, queries.data_ptr(), out.data_ptr(), *sides, *how)
    status = native.library().tqbench_attend(ctypes.byref(call))
    del kept  # lived as long as the call
    if status:
        raise EvidenceError("attend/native: out of memory" if status == 1 else f"attend/native refused its arguments: q {list(q.shape)}")
    return out.to(q.dtype)


def _side(view: View, q: Tensor, kv_heads: int, *, keys: bool) -> tuple[CallSide, Any]:
    codec, stored = view.codec, view.stored
    if codec is None or stored is None:
        raise EvidenceError("attend/native reads codes, and this view has none")
    (batch, _, queries, head_dim), arrays, exact = q.shape, stored(), {"tail": view.tail, "sinks": view.sinks}
    held = {name: x for name, x in exact.items() if x is not None}
    form, fits = packed.describe(codec, head_dim, keys=keys), len(view.bounds) == queries
    fits &= all((x.shape[0], x.shape[1], x.shape[3]) == (batch, kv_heads, head_dim) for x in held.values())
    if not fits or not form.takes(arrays, batch, kv_heads):
        given = f"{len(view.bounds)} bounds, {packed.words(held | arrays)}"
        raise EvidenceError(f"attend/native refused its arguments: q {list(q.shape)} on {'keys' if keys else 'values'} with {given}")
    around = packed.basis(codec, head_dim, kv_heads)
    rows, bounds = around.columns if keys else around.rows, numbers("q", view.bounds)
    found, kept = zip(packed.exact(view.sinks), packed.exact(view.tail), form.packed(arrays), strict=True)
    side = CallSide(
        *found,
        view.packed_end,
        view.tail_start,
        None if rows is None else rows.data_ptr(),
        None if around.offset is None else around.offset.data_ptr(),
        bounds.buffer_info()[0],
    )
    return side, (kept, bounds, form, around)
