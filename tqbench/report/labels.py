"""Where the labels of a figure go: beside their points, over as little else as possible."""

from __future__ import annotations

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


AROUND = tuple(
    (gap * dx, gap * dy) for gap in (8, 16, 26, 38) for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
)
RIGHT = tuple((8, sign * 3 * step) for step in range(12) for sign in (1, -1))


def place(
    points: list[tuple[float, float]], texts: list[str], frame: Box, size: float, ways: tuple[tuple[int, int], ...], taken: list[Box]
) -> list[Box]:
    """A box for each text, chosen one after another from `ways` away from its point; `taken` is what must stay visible."""
    placed: list[Box] = []
    dots = [Box(x - 4, y - 4, 8, 8) for x, y in points]
    for (x, y), text in zip(points, texts, strict=True):
        width, height = 0.6 * size * len(text), 1.25 * size
        free = [Box(x + dx - width * _behind(dx), y + dy - height / 2, width, height) for dx, dy in ways]
        outside = [4 * (width * height - box.overlap(frame)) for box in free]
        costs = [
            sum(map(box.overlap, placed + dots + taken)) + out + 0.1 * i for i, (box, out) in enumerate(zip(free, outside, strict=True))
        ]
        placed.append(free[costs.index(min(costs))])
    return placed


def _behind(dx: float) -> float:
    """The share of a text that lies left of where it is put: none to the right of its point, all to the left, half above and below."""
    return 0.5 if dx == 0 else float(dx < 0)
