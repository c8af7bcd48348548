"""The dense matrix."""

from __future__ import annotations

from torch import Tensor

from tqbench.codecs.blocks.rotations import rotate


def hadamard(x: Tensor) -> Tensor:
    """H x / √n, summed in float64."""
    return rotate(x, "hadamard", x.shape[-1], 0)
