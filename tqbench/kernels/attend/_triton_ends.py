"""Before and after attend/_triton_kernels.py: queries go into the basis of the keys; partial softmaxes are joined, and the sums come back
from the basis of the values. Each is one launch, because at decoding a launch costs as much as the work."""

from __future__ import annotations

import triton
import triton.language as tl

STEP = tl.constexpr(64)  # channels that one program makes


@triton.jit(do_not_specialize=["rows", "queries"])
def turn(
    q, s_batch, s_head, s_query, columns, offset, out, shift, rows, heads, queries, share, dim, stored,
    width: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """`block` queries in the basis of the keys, and their products with what is added to every key."""
    row = tl.program_id(0) * block + tl.arange(0, block)
    real, i = row < rows, tl.arange(0, width)
    batch, head, query = row // queries // heads, row // queries % heads, row % queries
    here = q + batch.to(tl.int64) * s_batch + head.to(tl.int64) * s_head + query.to(tl.int64) * s_query
    j, inside = tl.program_id(1) * STEP + tl.arange(0, STEP), real[:, None] & (i < dim)[None, :]
    x = tl.load(here[:, None] + i[None, :], mask=inside, other=0.0).to(tl.float32)
    if columns is None:
        y = tl.load(here[:, None] + j[None, :], mask=real[:, None] & (j < dim)[None, :], other=0.0).to(tl.float32)
    else:
        y = _times(x, columns, dim, stored, i, j)
    tl.store(out + row.to(tl.int64)[:, None] * stored + j[None, :], y, mask=real[:, None] & (j < stored)[None, :])
    if offset is not None and tl.program_id(1) == 0:
        added = tl.load(offset + (head // share)[:, None] * dim + i[None, :], mask=inside, other=0.0)
        tl.store(shift + row, tl.sum(x * added, 1), mask=real)


@triton.jit
def _times(x, matrix, inner, outer, i, j):
    """[block, step]: x times some columns of a matrix [inner, outer]."""
    m = tl.load(matrix + i[:, None] * outer + j[None, :], mask=(i < inner)[:, None] & (j < outer)[None, :], other=0.0)
    if x.shape[0] >= 16:
        y = tl.dot(x, m, input_precision="tf32x3")  # three products of parts of them, off by no more than sums of single precision
    else:  # fewer rows than matrix products take
        y = tl.sum(tl.reshape(x, (x.shape[0], x.shape[1], 1)) * m[None, :, :], 1)
    return y


@triton.jit(
    do_not_specialize=["rows", "queries", "packed_splits", "exact_splits"],
    do_not_specialize_on_alignment=["mass"],  # which lies behind the peaks of all splits
)
def merge(
    packed_acc, exact_acc, peak, mass, lost, matrix, offset, out, dropped, rows, heads, queries, share, packed_splits, exact_splits,
    stored, dim, width: tl.constexpr, splits: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """`block` rows: all partial softmaxes as one. Sums over packed values and over exact ones are in different bases until here."""
    row = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    real, s = row < rows, tl.arange(0, splits)
    at_split = s[:, None] * rows + row[None, :]
    there = (s < packed_splits + exact_splits)[:, None] & real[None, :]
    m = tl.load(peak + at_split, mask=there, other=float("-inf"))
    top = tl.max(m, 0)
    top = tl.where(top == float("-inf"), 0.0, top)
    w = tl.exp2(m - top[None, :]) * tl.load(mass + at_split, mask=there, other=0.0)
    total = tl.where(real, tl.sum(w, 0), 1.0)
    if dropped is not None:
        left = tl.exp2(m - top[None, :]) * tl.load(lost + at_split, mask=there, other=0.0)
        tl.store(dropped + row, tl.sum(left, 0) / total, mask=real)
    j = tl.program_id(1) * STEP + tl.arange(0, STEP)
    found = tl.full((block, STEP), 0.0, tl.float32)
    if packed_acc is not None:
        if matrix is not None:
            i = tl.arange(0, width)
            found += _times(_sums(packed_acc, peak, top, 0, packed_splits, rows, row, real, stored, i), matrix, stored, dim, i, j)
        else:
            found += _sums(packed_acc, peak, top, 0, packed_splits, rows, row, real, stored, j)
        if offset is not None:
            inside = tl.sum(tl.where((s < packed_splits)[:, None], w, 0.0), 0)
            head = (row // queries % heads) // share
            found += inside[:, None] * tl.load(
                offset + head[:, None] * dim + j[None, :], mask=real[:, None] & (j < dim)[None, :], other=0.0
            )
    if exact_acc is not None:
        found += _sums(exact_acc, peak, top, packed_splits, exact_splits, rows, row, real, dim, j)
    here = out + row[:, None] * dim + j[None, :]
    tl.store(here, (found / total[:, None]).to(out.dtype.element_ty), mask=real[:, None] & (j < dim)[None, :])


@triton.jit
def _sums(acc, peak, top, first, count, rows, row, real, dim, i):
    """[block, columns]: the sums of the splits, each scaled from its own peak to the common one, several splits at a time."""
    together: tl.constexpr = 64 if row.shape[0] == 1 else 1
    x, size = tl.full((row.shape[0], i.shape[0]), 0.0, tl.float32), rows.to(tl.int64) * dim
    for j in range(0, count, together):
        s = j + tl.arange(0, together)
        there = (s < count)[:, None] & real[None, :]
        w = tl.exp2(tl.load(peak + (first + s)[:, None] * rows + row[None, :], mask=there, other=float("-inf")) - top[None, :])
        here = acc + s.to(tl.int64)[:, None, None] * size + row[None, :, None] * dim + i[None, None, :]
        found = tl.load(here, mask=there[:, :, None] & (i < dim)[None, None, :], other=0.0)
        x += tl.sum(w[:, :, None] * found, 0)
    return x
