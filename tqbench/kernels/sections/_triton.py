"""Codes of sections in Triton: some rows of one head in each program, their widths read from a table. Nothing waits for the device: a
value that is not finite makes minimum and step NaN, and all that is decoded of its row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tqbench.codecs.blocks.packing import Widths
from tqbench.core.errors import EvidenceError
from tqbench.kernels.packbits._triton import table, tile
from tqbench.kernels.packed._triton_rounding import divided, half_below, nearest_even, not_finite, over
from tqbench.kernels.sections._arguments import dense

SMALLEST = tl.constexpr(2.0**-24)  # step


@triton.jit(do_not_specialize=["units"])
def _quantize(
    rows, s_batch, s_head, s_unit, s_row, s_value, widths, codes, minima, steps, heads, units, components, count,
    height: tl.constexpr, values: tl.constexpr,
):  # fmt: skip
    section = tl.program_id(0)
    row, i = tl.program_id(1) * height + tl.arange(0, height), tl.arange(0, values)
    batch, head, unit = section // (units * heads), section // units % heads, section % units
    there, seen = row < components, i < count
    width = tl.load(widths + head * components + row, mask=there, other=0)
    here = rows + batch.to(tl.int64) * s_batch + head.to(tl.int64) * s_head + unit.to(tl.int64) * s_unit
    here = here + row.to(tl.int64)[:, None] * s_row + i.to(tl.int64)[None, :] * s_value
    inside = (width > 0)[:, None] & seen[None, :]
    x = tl.load(here, mask=inside, other=0.0)
    low, high = tl.min(tl.where(inside, x, float("inf")), 1), tl.max(tl.where(inside, x, float("-inf")), 1)
    if tl.max(tl.where(width == 1, 1, 0), 0) > 0:
        lower, upper = _halves(x, inside, count)
        low, high = tl.where(width == 1, lower, low), tl.where(width == 1, upper, high)
    sound, used = not_finite(x, 1) == 0, width > 0
    top = tl.maximum((1 << width) - 1, 1).to(tl.float32)
    minimum = half_below(low)
    step = -half_below(-tl.maximum(over(high - minimum.to(tl.float32), top), SMALLEST))
    minimum, step = tl.where(used, minimum.to(tl.float32), 0.0), tl.where(used, step.to(tl.float32), 0.0)
    code = nearest_even(divided(x - minimum[:, None], step[:, None]))
    code = tl.where(inside, tl.minimum(tl.maximum(code, 0.0), top[:, None]), 0.0).to(tl.int32)
    each = section.to(tl.int64) * components + row
    tl.store(codes + each[:, None] * count + i[None, :], code, mask=there[:, None] & seen[None, :])
    tl.store(minima + each, tl.where(sound, minimum, float("nan")).to(tl.float16), mask=there)
    tl.store(steps + each, tl.where(sound, step, float("nan")).to(tl.float16), mask=there)


@triton.jit
def _halves(x, inside, count):
    """The mean of the values that are not above the mean, and of those that are; summed in float64."""
    wide = x.to(tl.float64)
    mean = tl.sum(wide, 1) / count
    above, below = inside & (wide > mean[:, None]), inside & (wide <= mean[:, None])
    many, few = tl.sum(above.to(tl.int32), 1), tl.sum(below.to(tl.int32), 1)
    upper, lower = tl.sum(tl.where(above, wide, 0.0), 1), tl.sum(tl.where(below, wide, 0.0), 1)
    upper, lower = upper / tl.maximum(many, 1), lower / tl.maximum(few, 1)
    return tl.where(few > 0, lower, upper).to(tl.float32), tl.where(many > 0, upper, lower).to(tl.float32)


@triton.jit
def _dequantize(codes, minima, steps, rows, components, count, height: tl.constexpr, values: tl.constexpr):
    section = tl.program_id(0)
    row, i = tl.program_id(1) * height + tl.arange(0, height), tl.arange(0, values)
    there, each = row < components, section.to(tl.int64) * components + row
    seen, at = there[:, None] & (i < count)[None, :], each[:, None] * count + i[None, :]
    minimum, step = tl.load(minima + each, mask=there, other=0.0), tl.load(steps + each, mask=there, other=0.0)
    x = tl.load(codes + at, mask=seen, other=0).to(tl.float32) * step.to(tl.float32)[:, None] + minimum.to(tl.float32)[:, None]
    tl.store(rows + at, x, mask=seen)


def quantize(rows: Tensor, widths: Widths) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, minima and steps of float32 rows."""
    if rows.dtype != torch.float32 or rows.dim() != 5 or (len(widths), {len(head) for head in widths}) != (rows.shape[1], {rows.shape[3]}):
        raise EvidenceError(f"sections/triton takes float32 rows of {len(widths)} heads' widths, not {rows.dtype} {list(rows.shape)}")
    batch, heads, units, components, count = rows.shape
    codes = torch.empty(rows.shape, dtype=torch.int32, device=rows.device)
    minima, steps = (torch.empty(rows.shape[:-1], dtype=torch.float16, device=rows.device) for _ in range(2))
    if rows.numel():
        height, values = tile(count)
        grid, given = (batch * heads * units, triton.cdiv(components, height)), (table(widths, str(rows.device)), codes, minima, steps)
        _quantize[grid](rows, *rows.stride(), *given, heads, units, components, count, height, values)
    return codes, minima, steps


def dequantize(codes: Tensor, minima: Tensor, steps: Tensor, dtype: torch.dtype) -> Tensor:
    """Float32 rows."""
    codes, minima, steps = dense("triton", codes, minima, steps, dtype)
    rows, (components, count) = torch.empty(codes.shape, device=codes.device), codes.shape[-2:]
    if rows.numel():
        height, values = tile(count)
        grid = (minima.numel() // components, triton.cdiv(components, height))
        _dequantize[grid](codes, minima, steps, rows, components, count, height, values)
    return rows
