"""Lloyd's algorithm in one dimension: k-means of samples, and the Lloyd–Max levels of a density. For values of order 1."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

STEPS = 100_000  # a guard: the levels settle within a few hundred steps, a few thousand when there are many
SETTLED = 1e-11

Below = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # edges -> (mass, moment) of all that lies below each


def kmeans(values: np.ndarray, n: int) -> np.ndarray:
    """n ascending levels, each the mean of the ascending `values` that are nearest to it; a value halfway counts to the upper."""
    moments = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])

    def below(edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        count = np.searchsorted(values, edges)
        return count, moments[count]

    middles = ((np.arange(n) + 0.5) * len(values) / n).astype(int)  # of n equally full cells
    return _lloyd(values[middles].astype(np.float64), np.array([values[0], np.inf]), below)


def lloyd_max(grid: np.ndarray, density: np.ndarray, n: int) -> np.ndarray:
    """n ascending levels, each the mean of its cell under the density, which is linear between the points of the fine `grid`."""

    def integral(f: np.ndarray) -> np.ndarray:
        return np.concatenate([[0.0], np.cumsum((f[1:] + f[:-1]) / 2 * np.diff(grid))])

    mass, moment = integral(density), integral(density * grid)
    start = np.interp((np.arange(n) + 0.5) / n * mass[-1], mass, grid)
    return _lloyd(start, grid[[0, -1]], lambda edges: (np.interp(edges, grid, mass), np.interp(edges, grid, moment)))


def _lloyd(levels: np.ndarray, ends: np.ndarray, below: Below) -> np.ndarray:
    for _ in range(STEPS):
        edges = np.concatenate([ends[:1], (levels[1:] + levels[:-1]) / 2, ends[1:]])
        mass, moment = (np.diff(part) for part in below(edges))
        moved = np.where(mass > 0, moment / np.where(mass > 0, mass, 1), levels)  # an empty cell keeps its level
        settled = np.abs(moved - levels).max() < SETTLED
        levels = moved
        if settled:
            break
    return levels
