"""Floating-point formats of four and eight bits as tables. Rounding is to the nearest value, ties to the even mantissa; what is too large
becomes the largest value (`saturating`), never infinity or NaN.

Codes ascend with the magnitudes, so the nearest value is a search among the midpoints, and the even code is the even mantissa. The tables
are exact in float32 and in float64, so neither rounds twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import count, takewhile
from math import nan
from typing import Literal

from tqbench.codecs.blocks.constants import constants
from tqbench.core.lazy import Tensor, torch

Format = Literal["e2m1", "e4m3", "e5m2"]
_MANTISSA = {"e2m1": 1, "e4m3": 3, "e5m2": 2}  # bits
_LOWEST = {"e2m1": 0, "e4m3": -6, "e5m2": -14}  # exponent of the smallest normal value
LARGEST = {"e2m1": 6.0, "e4m3": 448.0, "e5m2": 57344.0}  # OCP: e4m3 has no infinity and one NaN, e2m1 has neither


@cache
def magnitudes(name: Format) -> tuple[float, ...]:
    """The values from 0 up, in the order of their codes."""
    return tuple(takewhile(lambda value: value <= LARGEST[name], _ascending(2 ** _MANTISSA[name], _LOWEST[name])))


def _ascending(steps: int, lowest: int) -> Iterator[float]:
    for code in count():
        exponent, mantissa = divmod(code, steps)
        yield (mantissa / steps * 2.0**lowest) if exponent == 0 else (1 + mantissa / steps) * 2.0 ** (lowest + exponent - 1)


def encode(x: Tensor, name: Format) -> Tensor:
    """The codes of the nearest values: sign, exponent, mantissa in the low bits of a byte."""
    levels = constants(magnitudes(name), x.dtype, x.device)
    middles, size = (levels[1:] + levels[:-1]) / 2, x.abs().contiguous()
    below, above = (torch.bucketize(size, middles, right=up) for up in (False, True))  # they differ on a tie
    code = torch.where(below % 2 == 0, below, above)
    return (code + torch.signbit(x) * _half(name)).to(torch.uint8)


def decode(codes: Tensor, name: Format, dtype: torch.dtype) -> Tensor:
    """The values of codes."""
    return constants(_values(name), dtype, codes.device)[codes.long()]


@cache
def _values(name: Format) -> tuple[float, ...]:
    """Of every code."""
    upper = (*magnitudes(name), *[nan] * (_half(name) - len(magnitudes(name))))
    return (*upper, *(-value for value in upper))


def _half(name: Format) -> int:
    """The codes of one sign."""
    return 8 if name == "e2m1" else 128
