"""Dynamic programming over components and bits: the least error that the components so far can have with so many bits spent.

Variances become whole numbers with a common factor, so that errors are sums without rounding: in floating point small gains would be lost
beside large errors, and which of two allocations is better would be left to chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import lcm


def allocate(variances: Sequence[float], budget: int, most: int) -> list[int]:
    """Bits of each component."""
    least: dict[int, int] = {0: 0}  # bits spent -> error
    choices: list[dict[int, int]] = []  # for each component: bits spent up to it -> its own
    for variance in _whole(variances, most):
        found: dict[int, int] = {}
        chosen: dict[int, int] = {}
        for used in sorted(least):
            for bits in range(min(most, budget - used) + 1):
                error = least[used] + variance // 4**bits
                if used + bits not in found or error < found[used + bits]:
                    found[used + bits], chosen[used + bits] = error, bits
        least = found
        choices.append(chosen)
    spent = min(least, key=lambda bits: (least[bits], bits))
    widths = []
    for chosen in reversed(choices):
        widths.append(chosen[spent])
        spent -= chosen[spent]
    return widths[::-1]


def _whole(variances: Sequence[float], most: int) -> list[int]:
    """The variances times a number that makes them, and their quotients by 4^most, whole."""
    exact = [Fraction(variance) for variance in variances]
    factor = 4**most * lcm(*(x.denominator for x in exact))
    return [int(x * factor) for x in exact]
