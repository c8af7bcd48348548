"""How many bits each component gets: the fewest squared error that a budget of whole bits can leave.

A component of variance λ that is coded with b bits is left with an error of about λ / 4^b, so its next bit gains 3λ / 4^(b + 1): ever less.
Taking the largest gain again and again is then the best of all allocations, and no search is needed.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from math import frexp


def greedy(variances: Sequence[float], budget: int, most: int) -> list[int]:
    """Bits of each component, at most `most`: the highest gain first, of equal ones that of the later component. What gains nothing gets
    nothing, so some of the budget may be left. Gains are compared as exponent and fraction, and never rounded."""
    widths = [0] * len(variances)
    waiting = [_rank(variance, 0, i) for i, variance in enumerate(variances) if variance > 0]
    heapq.heapify(waiting)
    for _ in range(budget):
        if not waiting:
            break
        i = -waiting[0][2]
        widths[i] += 1
        if widths[i] < most:
            heapq.heapreplace(waiting, _rank(variances[i], widths[i], i))
        else:
            heapq.heappop(waiting)
    return widths


def _rank(variance: float, bits: int, i: int) -> tuple[int, float, int]:
    """The place of a component's next bit: sorted by variance / 4^bits and then by index, both from the highest."""
    fraction, exponent = frexp(variance)
    return 2 * bits - exponent, -fraction, -i
