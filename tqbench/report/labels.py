"""Where the labels of a figure go: beside their points, over as little else as possible."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Box:
    """A rectangle in points of the page."""

    x: float
    y: float
    width: float
    height: float

    def overlap(self, other: Box) -> float:
        """The area that both cover."""
        across = min(self.x + self.width, other.x + other.width) - max(self.x, other.x)
        along = min(self.y + self.height, other.y + other.height) - max(self.y, other.y)
        return max(0.0, across) * max(0.0, along)


SIXTEENTHS = (0, 8, 4, 12, 14, 10, 2, 6, 13, 11, 15, 9, 1, 7, 3, 5)  # of a turn, the most legible first
TURNS = tuple((round(math.cos(math.pi * i / 8), 3), round(math.sin(math.pi * i / 8), 3)) for i in SIXTEENTHS)
AROUND = tuple((gap * dx, gap * dy) for gap in (8, 13, 20, 30, 42, 56, 72, 90, 110, 132) for dx, dy in TURNS)
WIDTH = 0.62  # of a letter, in sizes
OVER = 20  # how much worse it is to cover another label than to cover a mark


def width(text: str, size: float) -> float:
    """About how wide a text is; fonts differ."""
    return WIDTH * size * len(text)


def place(points: list[tuple[float, float]], texts: list[str], frame: Box, size: float, taken: list[Box]) -> list[Box]:
    """A box for each text, chosen one after another around its point; `taken` is what had better stay visible."""
    placed: list[Box] = []
    hidden = [Box(x - 4, y - 4, 8, 8) for x, y in points] + taken
    for (x, y), text in zip(points, texts, strict=True):
        wide, high = width(text, size), 1.25 * size
        free = [Box(x + dx - wide * _behind(dx), y + dy - high / 2, wide, high) for dx, dy in AROUND]
        near = [box for box in hidden if abs(box.x - x) < wide + 150 and abs(box.y - y) < 160]
        costs = [
            OVER * (sum(map(box.overlap, placed)) + wide * high - box.overlap(frame)) + sum(map(box.overlap, near)) + 0.1 * i
            for i, box in enumerate(free)
        ]
        placed.append(free[costs.index(min(costs))])
    return placed


def spread(heights: list[float], gap: float, low: float, high: float) -> list[float]:
    """The same heights, moved apart to at least `gap`, in their order and between `low` and `high` while there is room."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    up, down = list(heights), list(heights)
    for below, above in itertools.pairwise(order):
        up[above] = max(up[above], up[below] + gap)
    for above, below in itertools.pairwise(reversed(order)):
        down[below] = min(down[below], down[above] - gap)
    moved = [(a + b) / 2 for a, b in zip(up, down, strict=True)]  # both keep the gap, so their mean does
    if not order or len(order) * gap > high - low:
        return moved
    for i, j in itertools.pairwise(order):
        moved[i] = max(moved[i], low)
        moved[j] = max(moved[j], moved[i] + gap)
    for j, i in itertools.pairwise(reversed(order)):
        moved[j] = min(moved[j], high)
        moved[i] = min(moved[i], moved[j] - gap)
    return moved


def _behind(dx: float) -> float:
    """The share of a text that lies left of where it is put: none to the right of its point, all to the left, half above and below."""
    return 0.5 if dx == 0 else float(dx < 0)
