"""The cheapest mix under a limit on damage: for each layer one of several choices, each with its bytes and its damage. Damage is taken to
add up over layers; then dynamic programming over bytes finds the best mix there is, not only the one that a greedy search ends at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import gcd, inf

import numpy as np
from numpy.typing import NDArray

FINEST = (
    1 << 14
)  # steps between the cheapest mix and the dearest: where bytes have no common step that coarse, choices count up to a step more


@dataclass(frozen=True)
class Choice:
    """What a layer may run: the schemes of its keys and values, what it keeps in bytes, and what it costs in KLD."""

    k: str
    v: str
    bytes: int
    kld: float


def worth(choices: Sequence[Choice]) -> list[Choice]:
    """Those that no other beats in both, cheapest first."""
    found: list[Choice] = []
    for choice in sorted(choices, key=lambda one: (one.bytes, one.kld)):
        if not found or choice.kld < found[-1].kld:
            found.append(choice)
    return found


def cheapest(layers: Sequence[Sequence[Choice]], limit: float) -> list[Choice] | None:
    """The choice for each layer whose bytes are the fewest while damage adds up to at most the limit, and of these the least harmful;
    None if even the least harmful mix exceeds it."""
    options = [worth(choices) for choices in layers]
    if sum(min(one.kld for one in own) for own in options) > limit:
        return None
    weights = _steps([[one.bytes - own[0].bytes for one in own] for own in options])
    size = 1 + sum(max(own) for own in weights)
    least, chosen = np.zeros(1), []
    for own, steps in zip(options, weights, strict=True):
        least, pick = _add(least, [one.kld for one in own], steps, size)
        chosen.append(pick)
    at = int(np.flatnonzero(least <= limit)[0])
    found = []
    for own, steps, pick in zip(reversed(options), reversed(weights), reversed(chosen), strict=True):
        index = int(pick[at])
        found.append(own[index])
        at -= steps[index]
    return found[::-1]


def _steps(extra: list[list[int]]) -> list[list[int]]:
    """Bytes beyond a layer's cheapest choice in whole steps, rounded up."""
    most = sum(max(own) for own in extra)
    step = max(reduce(gcd, (x for own in extra for x in own), 0), -(-most // FINEST), 1)
    return [[-(-x // step) for x in own] for own in extra]


def _add(least: NDArray[np.float64], damage: list[float], steps: list[int], size: int) -> tuple[NDArray[np.float64], NDArray[np.int16]]:
    """The least damage for exactly so many steps once another layer has chosen, and what it chose."""
    length = min(size, len(least) + max(steps))
    sums = np.full((len(steps), length), inf)
    for row, kld, step in zip(sums, damage, steps, strict=True):
        row[step : step + len(least)] = least[: length - step] + kld
    pick = sums.argmin(0)
    return np.take_along_axis(sums, pick[None], 0)[0], pick.astype(np.int16)
