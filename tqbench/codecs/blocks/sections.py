"""Uniform codes of the rows of a section, [.., components, tokens], each row with a width and a range of its own.

x ≈ step · code + minimum. Minimum and step are kept in fp16 and codes are taken against what is kept. Rounded to the nearest, a range would
lose its ends, and at 16 bits a minimum would be off by many steps; so the minimum is rounded down and the step up, and no value is off by
more than half a step, whatever the width. A component of no bits comes back as 0.
The ends of a range are minimum and maximum, but one bit has no more than these two levels, from which most values are farther than from
their mean: 3 times the variance would be lost where no code at all loses it once. There they are the means of two halves: a third of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from tqbench.codecs.blocks.packing import Widths
from tqbench.core.lazy import Tensor, torch

SMALLEST = 2.0**-24  # step: the least that fp16 holds


def quantize(rows: Tensor, widths: Widths) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of rows [batch, heads, units, components, tokens] as int32, and the fp16 minimum and step of each."""
    each = torch.tensor(widths, dtype=torch.int32, device=rows.device)[:, None]  # [heads, 1, components]
    minima, steps = quant_params(rows, each, [c for c, column in enumerate(zip(*widths, strict=True)) if 1 in column])
    return batch_quantize(rows, minima, steps, each), minima, steps


def quant_params(rows: Tensor, widths: Tensor, single: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Minimum and step of each row, in fp16; `single` names the components that have one bit in some head."""
    used, top = widths > 0, _top(widths, rows).clamp_min(1)
    low, high = rows.amin(-1), rows.amax(-1)
    if single:
        at = torch.tensor(single, device=rows.device)
        for end, mean in zip((low, high), _halves(rows[..., at, :]), strict=True):
            end[..., at] = torch.where(widths[..., at] == 1, mean, end[..., at])
    minima = torch.where(used, half_below(low), 0.0)
    steps = half_above(((high - minima.to(rows.dtype)) / top).clamp_min(SMALLEST))
    return minima, torch.where(used, steps, 0.0)


def _halves(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of the values that are not above the mean, and of those that are; summed in float64."""
    wide = rows.to(torch.float64)
    above = wide > wide.mean(-1, keepdim=True)
    lower, upper = ((wide * mask).sum(-1) / mask.sum(-1) for mask in (~above, above))
    return torch.where(above.all(-1), upper, lower).to(rows.dtype), torch.where(above.any(-1), upper, lower).to(rows.dtype)


def batch_quantize(rows: Tensor, minima: Tensor, steps: Tensor, widths: Tensor) -> Tensor:
    """Codes of rows whose minima and steps are known."""
    minima, steps = (x.to(rows.dtype).unsqueeze(-1) for x in (minima, steps))
    codes = ((rows - minima) / torch.where(steps == 0, 1.0, steps)).round().clamp_min(0)
    return torch.minimum(codes, _top(widths, rows).unsqueeze(-1)).to(torch.int32)


def dequantize(codes: Tensor, minima: Tensor, steps: Tensor, dtype: torch.dtype) -> Tensor:
    """The values that codes stand for."""
    return codes.to(dtype) * steps.to(dtype).unsqueeze(-1) + minima.to(dtype).unsqueeze(-1)


def half_below(x: Tensor) -> Tensor:
    """The largest fp16 number that is not above x."""
    near = x.to(torch.float16)
    bits = near.view(torch.int16)
    lower = torch.where(near == 0, -0x7FFF, torch.where(near > 0, bits - 1, bits + 1)).to(torch.int16)
    return torch.where(near.to(x.dtype) > x, lower, bits).view(torch.float16)


def half_above(x: Tensor) -> Tensor:
    """The smallest fp16 number that is not below x."""
    return -half_below(-x)


def _top(widths: Tensor, like: Tensor) -> Tensor:
    """The largest code of each row."""
    return ((1 << widths) - 1).to(like.dtype)
