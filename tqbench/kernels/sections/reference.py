"""Row by row and value by value, as the formulas say; every step is rounded to the type that torch would compute it in."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from tqbench.codecs.blocks.packing import Widths

SMALLEST = np.float16(2.0**-24)


def quantize(rows: Tensor, widths: Widths) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, minima and steps."""
    values = rows.cpu().numpy()
    codes = np.zeros(values.shape, np.int32)
    minima, steps = (np.zeros(values.shape[:-1], np.float16) for _ in range(2))
    for at, width in _rows(values.shape, widths):
        if width:
            minima[at], steps[at] = quant_params(values[at], width)
        if np.isfinite(minima[at]) and 0 < steps[at] < np.inf:
            codes[at] = [code(value, minima[at], steps[at], width) for value in values[at]]
    return torch.from_numpy(codes), torch.from_numpy(minima), torch.from_numpy(steps)


def quant_params(row: np.ndarray, width: int) -> tuple[np.float16, np.float16]:
    """The lower end, rounded down, and the step from there to the upper end in 2^width − 1 steps, rounded up."""
    kind = row.dtype.type
    low, high = halves(row) if width == 1 else (row.min(), row.max())
    with np.errstate(over="ignore"):  # what fp16 does not hold becomes infinite, and is refused by who asks
        minimum = np.float16(low)
        if kind(minimum) > low:
            minimum = np.nextafter(minimum, np.float16(-np.inf))
        wide = (high - kind(minimum)) / kind(2**width - 1)
        step = np.float16(wide)
        if kind(step) < wide:
            step = np.nextafter(step, np.float16(np.inf))
    return minimum, max(step, SMALLEST)


def halves(row: np.ndarray) -> tuple[np.floating, np.floating]:
    """The mean of the values that are not above the mean, and of those that are."""
    wide, kind = row.astype(np.float64), row.dtype.type
    above = wide > wide.mean()
    means = [wide[mask].mean() if mask.any() else wide.mean() for mask in (~above, above)]
    return kind(means[0]), kind(means[1])


def code(value: np.floating, minimum: np.float16, step: np.float16, width: int) -> int:
    """The nearest step, halves to even."""
    kind = type(value)
    return int(min(max(np.rint((value - kind(minimum)) / kind(step)), 0), 2**width - 1))


def dequantize(codes: Tensor, minima: Tensor, steps: Tensor, dtype: torch.dtype) -> Tensor:
    """minimum + step · code."""
    levels, lows, wide = (x.cpu().numpy() for x in (codes, minima.to(dtype), steps.to(dtype)))
    rows = np.empty(levels.shape, lows.dtype)
    for at in np.ndindex(*levels.shape[:-1]):
        rows[at] = [lows.dtype.type(level) * wide[at] + lows[at] for level in levels[at].tolist()]
    return torch.from_numpy(rows)


def _rows(shape: tuple[int, ...], widths: Widths) -> Iterator[tuple[tuple[int, ...], int]]:
    """Every row and its number of bits."""
    for b, h, u, c in np.ndindex(*shape[:-1]):
        yield (b, h, u, c), widths[h][c]
