"""Levels that are the means of their cells, in one dimension: k-means of samples, and the Lloyd–Max table of a density."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

STEPS = 100_000  # a guard: the levels settle within a few hundred steps, a few thousand when there are many
SETTLED = 1e-11

Density = Callable[[np.ndarray], np.ndarray]
Below = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # edges -> (mass, moment) of all that lies below each


def kmeans(values: np.ndarray, n: int) -> np.ndarray:
    """n ascending levels, each the mean of the ascending `values` that are nearest to it; a value halfway counts to the upper."""
    moments = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])

    def below(edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        count = np.searchsorted(values, edges)
        return count, moments[count]

    middles = ((np.arange(n) + 0.5) * len(values) / n).astype(int)  # of n equally full cells
    return _lloyd(values[middles].astype(np.float64), np.array([values[0], np.inf]), below)


def lloyd_max(density: Density, end: float, bits: int) -> np.ndarray:
    """The positive ones of the 2**bits best levels for a density that is symmetric and zero beyond `end`: Newton on c − m(c) = 0."""
    fine = np.linspace(0, end, 20001)
    mass = np.cumsum(density(fine) ** (1 / 3))  # the density of the levels when there are many (Panter and Dite)
    k = 2 ** (bits - 1)
    c = np.interp((np.arange(k) + 0.5) / k * mass[-1], mass, fine)
    for _ in range(100):
        error, slope = _centroid_error(c, density, end)
        step = np.linalg.solve(slope, error)
        while np.any(np.diff(c - step, prepend=0.0) <= 0):  # a step that swaps levels is too long
            step /= 2
        c = c - step
        if np.abs(step).max() < 1e-13:
            break
    return c


def _centroid_error(c: np.ndarray, density: Density, end: float) -> tuple[np.ndarray, np.ndarray]:
    """c − m(c) and its derivative by c, which is tridiagonal: a cell's mean moves with its two edges, and an edge with its two levels."""
    b = np.concatenate([[0.0], (c[1:] + c[:-1]) / 2, [end]])
    nodes, weights = np.polynomial.legendre.leggauss(64)
    half = np.diff(b)[:, None] / 2
    t = b[:-1, None] + half * (1 + nodes)
    f = half * weights * density(t)
    mass = f.sum(1)
    mean = (f * t).sum(1) / mass
    lower = density(b[:-1]) * (mean - b[:-1]) / mass / 2  # ∂ mean_i / ∂ c_{i−1}
    upper = density(b[1:]) * (b[1:] - mean) / mass / 2  # ∂ mean_i / ∂ c_{i+1}
    lower[0] = upper[-1] = 0.0  # 0 and the end stay where they are
    return c - mean, np.diag(1 - lower - upper) - np.diag(lower[1:], -1) - np.diag(upper[:-1], 1)


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
