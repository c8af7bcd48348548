"""The butterfly: log₂ n rounds of sums and differences of all pairs at once."""

from __future__ import annotations

import torch
from torch import Tensor

from tqbench.codecs.blocks import rotations


def hadamard(x: Tensor) -> Tensor:
    """H x / √n in the dtype of x."""
    n = x.shape[-1]
    rotations.check("hadamard", n)
    y, half = x, 1
    while half < n:
        a, b = y.unflatten(-1, (-1, 2, half)).unbind(-2)
        y = torch.stack([a + b, a - b], -2).flatten(-3)
        half *= 2
    return y * n**-0.5
