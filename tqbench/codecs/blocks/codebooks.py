"""Scalar codebooks for coordinates of unit variance, that is, for vectors of length √n in n dimensions.

A Lloyd–Max table minimizes the mean squared error for a density f. Its boundaries lie midway between levels, and each level is the mean of
its cell:

    b_i = (c_{i−1} + c_i) / 2,    c_i = m(b_i, b_{i+1}),    m(a, b) = ∫ t f(t) dt / ∫ f(t) dt  over (a, b).

`gaussian`: f is N(0, 1). `sphere`: f(t) ∝ (1 − t²/n)^((n−3)/2), one coordinate of a random vector of that length. For a log-concave f the
equations have one solution, and Newton's method finds it to the last digits. The tables of projects are what those projects use: printed
constants, or their own iterations, which stop earlier.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Literal

import numpy as np

from tqbench.codecs.blocks.lloyd import lloyd_max

Table = Literal["gaussian", "sphere", "turbo", "turbo_historic", "vllm", "mlx_vlm"]
Array = np.ndarray

# The constants of TheTom/llama-cpp-turboquant (ggml-turbo-quant.c @ 69d8e4be4) for groups of 128, times √128; positive levels only.
_FORK = 128**0.5
PRINTED = {
    "turbo": {
        2: tuple(_FORK * level for level in (0.039994, 0.133462)),
        3: tuple(_FORK * level for level in (0.021460, 0.065717, 0.117832, 0.190685)),
        4: (0.12840, 0.38805, 0.65676, 0.94234, 1.25623, 1.61805, 2.06902, 2.73259),
    },
    # Its 4-bit table up to 2026-05: the means of 16 equiprobable Gaussian bins, Lloyd's starting point without an iteration.
    "turbo_historic": {
        4: tuple(_FORK * level for level in (0.006938, 0.020989, 0.035597, 0.051262, 0.068756, 0.089527, 0.117195, 0.173926)),
    },
}


def widths(name: Table) -> tuple[int, ...]:
    """The bits that there is a table for."""
    return tuple(PRINTED[name]) if name in PRINTED else tuple(range(1, 9))


@cache
def levels(name: Table, bits: int, n: int) -> tuple[float, ...]:
    """All 2**bits levels, ascending."""
    if name in PRINTED:
        return _mirrored(np.array(PRINTED[name][bits]))
    return {"gaussian": _gaussian, "sphere": _sphere, "vllm": _vllm, "mlx_vlm": _mlx_vlm}[name](bits, n)


@cache
def boundaries(name: Table, bits: int, n: int) -> tuple[float, ...]:
    """The midpoints between neighbouring levels."""
    return tuple((a + b) / 2 for a, b in pairwise(levels(name, bits, n)))


def _mirrored(positive: Array) -> tuple[float, ...]:
    return (*(-positive[::-1]).tolist(), *positive.tolist())


def _gaussian(bits: int, n: int) -> tuple[float, ...]:  # noqa: ARG001 - the same for every n
    return _mirrored(lloyd_max(lambda t: np.exp(-t * t / 2), 12.0, bits))  # beyond 12 lies less than 1e-32


def _sphere(bits: int, n: int) -> tuple[float, ...]:
    return _mirrored(lloyd_max(lambda t: np.maximum(1 - t * t / n, 0) ** ((n - 3) / 2), min(n**0.5, 12.0), bits))


def _vllm(bits: int, n: int) -> tuple[float, ...]:
    """vLLM's table for N(0, 1): at most 200 iterations from evenly spaced levels, cells integrated by the trapezoid rule in 200 steps."""
    count = 2**bits
    c = 3.5 * ((2 * np.arange(count) + 1) / count - 1)
    for _ in range(200):
        edges = np.concatenate([[-10.5], (c[1:] + c[:-1]) / 2, [10.5]])
        t = np.linspace(edges[:-1], edges[1:], 201)
        f = np.exp(-t * t / 2)
        moved = np.trapezoid(t * f, t, axis=0) / np.trapezoid(f, t, axis=0)
        if np.abs(moved - c).max() < 1e-10 * n**0.5:  # its tolerance is for N(0, 1/n)
            break
        c = moved
    return tuple(c.tolist())


def _mlx_vlm(bits: int, n: int) -> tuple[float, ...]:
    """mlx-vlm's table for the sphere: at most 100 iterations from equiprobable quantiles, on a grid of 32768 points in float32."""
    grid = np.linspace(-1 + 1e-6, 1 - 1e-6, 32768, dtype=np.float32)
    f = np.maximum(1 - grid**2, 1e-30) ** np.float32((n - 3) / 2)
    count = 2**bits
    c = np.interp((np.arange(count) + 0.5) / count, np.cumsum(f / f.sum()), grid).astype(np.float32)
    for _ in range(100):
        starts = np.concatenate([[0], np.searchsorted(grid, (c[1:] + c[:-1]) / 2)])
        moved = np.add.reduceat(f * grid, starts) / np.add.reduceat(f, starts)
        done = np.abs(moved - c).max() < 1e-6
        c = moved
        if done:
            break
    return tuple((n**0.5 * c.astype(np.float64)).tolist())
