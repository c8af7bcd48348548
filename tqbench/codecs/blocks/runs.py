"""Runs of consecutive coefficients that share a scale, a shift and a type, and the allocation that decides which runs there are.

Two or four bits are KIVI's uniform codes: shift = min, scale = (max − min) / (2^bits − 1), code = round((c − shift) / scale). Eight bits
are e4m3 about the run's mean: shift = mean, scale = max|c − shift|, code = e4m3(448 (c − shift) / scale). Scale and shift are kept in
fp16 and codes are taken against what is kept. The codes of a run end on a byte, so a run of one coefficient takes five bytes: it is its
fp16 shift, and with eight bits what e4m3 keeps of the rest.

`allocate` finds the runs of least error within a budget: a dynamic program over the end of the last run and the bytes spent,

    best[i][b] = min(best[i − 1][b] + z[i], min over sizes and types of best[i − size][b − cost] + e[size, type][i]),

z[i] the energy of coefficient i, lost if no run covers it, and e the squared error of a run that ends before i, measured by `errors`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import gcd, inf
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tqbench.codecs.blocks.minifloat import LARGEST
from tqbench.core.errors import Unsupported
from tqbench.core.lazy import Tensor, torch

SIZES = (1, 16, 64, 256, 1024)
BITS = (2, 4, 8)
PLACES = 16  # a run of n coefficients starts at a multiple of n / 16, so that measuring all runs of a size costs the same for each size
AT_ONCE = 1 << 22  # values that are measured together


class Kind(NamedTuple):
    """What a run may be."""

    size: int
    bits: int

    @property
    def code_bytes(self) -> int:
        """Bytes of the codes."""
        return -(-self.size * self.bits // 8)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scale and shift."""
        return self.code_bytes + 4

    @property
    def stride(self) -> int:
        """Runs start at multiples of this."""
        return max(1, self.size // PLACES)


class Run(NamedTuple):
    """Consecutive coefficients that are stored together."""

    start: int
    kind: Kind


def kinds(sizes: Sequence[int] = SIZES) -> list[Kind]:
    """All kinds of these sizes."""
    return [Kind(size, bits) for size in sizes for bits in BITS]


def quantize(c: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [.., size], scale and shift [.., 1] of runs [.., size]."""
    if bits == 8:
        shift = c.mean(-1, keepdim=True).to(torch.float16)
        away = c - shift
        scale = away.abs().amax(-1, keepdim=True).to(torch.float16)
        fitting = (away * (LARGEST["e4m3"] / _divisor(scale, c))).clamp_(-LARGEST["e4m3"], LARGEST["e4m3"])
        return fitting.to(torch.float8_e4m3fn).view(torch.uint8), scale, shift
    low, high = c.aminmax(dim=-1, keepdim=True)
    shift, scale = low.to(torch.float16), ((high - low) / (2**bits - 1)).to(torch.float16)
    codes = ((c - shift) / _divisor(scale, c)).round_().clamp_(0, 2**bits - 1)
    return codes.to(torch.uint8), scale, shift


def dequantize(codes: Tensor, scale: Tensor, shift: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """Undo `quantize`."""
    if bits == 8:
        return shift.to(dtype) + scale.to(dtype) / LARGEST["e4m3"] * codes.view(torch.float8_e4m3fn).to(dtype)
    return shift.to(dtype) + scale.to(dtype) * codes.to(dtype)


def _divisor(scale: Tensor, like: Tensor) -> Tensor:
    """The scale; where all values are the same, one."""
    return torch.where(scale == 0, 1.0, scale.to(like.dtype))


def errors(c: Tensor, kinds: Sequence[Kind]) -> dict[Kind, NDArray[np.float64]]:
    """Per kind, e[i]: the squared error of the run that ends before coefficient i, summed over vectors c [.., r]; infinite where no run of
    that size ends."""
    rows = c.flatten(0, -2)
    found = {kind: np.full(c.shape[-1] + 1, inf) for kind in kinds}
    for kind, measured in found.items():
        if kind.size <= c.shape[-1]:
            measured[kind.size :: kind.stride] = np.concatenate(list(_measured(rows, kind)))
            if not np.isfinite(measured[kind.size :: kind.stride]).all():  # it would be dropped as if it were nothing
                raise Unsupported(f"coefficients up to {float(rows.abs().max()):.3g} overflow the float16 scale or shift of their run")
    return found


def _measured(rows: Tensor, kind: Kind) -> Iterator[NDArray[np.float64]]:
    """The errors of all runs of a kind, some at once."""
    windows = rows.unfold(1, kind.size, kind.stride)  # [vectors, runs, size]
    for some in windows.split(max(1, AT_ONCE // (len(rows) * kind.size)), dim=1):
        lost = dequantize(*quantize(some, kind.bits), kind.bits, some.dtype) - some
        yield lost.square().sum(-1).sum(0, dtype=torch.float64).cpu().numpy()


def allocate(energy: NDArray[np.float64], e: Mapping[Kind, NDArray[np.float64]], budget: int) -> list[Run]:
    """The runs of least error that take at most `budget` bytes; of equal ones those that take fewest."""
    order = list(e)
    unit = gcd(*(kind.nbytes for kind in order))
    room, farthest = budget // unit + 1, max(kind.size for kind in order)
    best = np.full((farthest + 1, room), inf)  # of the last `farthest` ends; which row is whose goes round
    best[0] = 0
    chosen = np.full((len(energy) + 1, room), -1, np.int8)  # the kind of the run that ends there, or none
    for i in range(1, len(energy) + 1):
        row = best[(i - 1) % len(best)] + energy[i - 1]
        for k, kind in enumerate(order):
            cost = kind.nbytes // unit
            if e[kind][i] < inf and cost < room:
                with_run = best[(i - kind.size) % len(best), : room - cost] + e[kind][i]
                better = with_run < row[cost:]
                row[cost:][better], chosen[i, cost:][better] = with_run[better], k
        best[i % len(best)] = row
    return _followed(chosen, order, unit, int(best[len(energy) % len(best)].argmin()))


def _followed(chosen: NDArray[np.int8], order: list[Kind], unit: int, spent: int) -> list[Run]:
    """The runs on the way back from the end, in ascending order."""
    end, found = len(chosen) - 1, list[Run]()
    while end:
        k = int(chosen[end, spent])
        if k < 0:
            end -= 1
            continue
        end, spent = end - order[k].size, spent - order[k].nbytes // unit
        found.append(Run(end, order[k]))
    return found[::-1]
