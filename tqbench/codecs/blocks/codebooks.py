"""Scalar codebooks for unit-variance coordinates. All are symmetric: only the positive levels are written down."""

from __future__ import annotations

from itertools import pairwise

# Lloyd–Max for N(0, 1), converged (MSE 0.36338, 0.117482, 0.034548, 0.009501).
GAUSSIAN = {
    1: (0.79788,),
    2: (0.45278, 1.51042),
    3: (0.24509, 0.75601, 1.34391, 2.15195),
    4: (0.12840, 0.38805, 0.65676, 0.94234, 1.25623, 1.61805, 2.06902, 2.73259),
}

# The tables of TheTom/llama-cpp-turboquant (ggml-turbo-quant.c @ 69d8e4be4), which are for a group of 128: times sqrt(128).
_FORK = 128**0.5
TURBO = {
    2: tuple(_FORK * level for level in (0.039994, 0.133462)),
    3: tuple(_FORK * level for level in (0.021460, 0.065717, 0.117832, 0.190685)),
    4: GAUSSIAN[4],
}
# Its 4-bit table up to 2026-05: the means of 16 equiprobable Gaussian bins, Lloyd's starting point without an iteration.
TURBO_HISTORIC = {4: tuple(_FORK * level for level in (0.006938, 0.020989, 0.035597, 0.051262, 0.068756, 0.089527, 0.117195, 0.173926))}

CODEBOOKS = {"gaussian": GAUSSIAN, "turbo": TURBO, "turbo_historic": TURBO_HISTORIC}


def levels(name: str, bits: int) -> list[float]:
    """All 2**bits levels, ascending."""
    positive = CODEBOOKS[name][bits]
    return [-level for level in reversed(positive)] + list(positive)


def boundaries(name: str, bits: int) -> list[float]:
    """The midpoints between neighbouring levels."""
    table = levels(name, bits)
    return [(a + b) / 2 for a, b in pairwise(table)]
