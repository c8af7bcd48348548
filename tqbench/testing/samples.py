"""The tensors that checks feed: seeded, and without touching torch's own generator."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

HEAD_DIMS = (64, 80, 96, 128, 256)
WIDTHS = tuple(tuple(np.random.default_rng(seed).permutation(17).tolist()) for seed in range(2))  # 0 to 16, in another order per head


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal values, drawn in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def strided(x: Tensor) -> Tensor:
    """Equal values as a view into a larger buffer, none of whose dimensions is contiguous; the gaps hold other bytes."""
    gaps = torch.full([2 * size + 1 for size in x.shape], 77, dtype=x.dtype, device=x.device)
    view = gaps[tuple(slice(1, None, 2) for _ in x.shape)]
    return view.copy_(x)


def relative(x: Tensor, y: Tensor) -> float:
    """‖x − y‖² / ‖x‖², in float64."""
    return float((x.double() - y.double()).square().sum() / x.double().square().sum())


SECTIONS = {  # [batch, heads, units, components, tokens], for widths as above
    "gaussian": gaussian(1, 2, 2, 17, 24),
    "large": 1e4 * gaussian(1, 2, 2, 17, 24, seed=1),
    "tiny": 1e-6 * gaussian(1, 2, 2, 17, 24, seed=2),
    "subnormal": 1e-42 * gaussian(1, 2, 2, 17, 24, seed=3),
    "far from zero": 300 + 0.01 * gaussian(1, 2, 2, 17, 24, seed=4),
    "zeros": torch.zeros(1, 2, 2, 17, 24),
    "constant": torch.full((1, 2, 2, 17, 24), -3.3),
    "halves": torch.arange(2 * 2 * 17 * 24).reshape(1, 2, 2, 17, 24) % 7 / 2,
    "one token": gaussian(1, 2, 2, 17, 1, seed=5),
    "long": gaussian(1, 2, 1, 17, 1200, seed=7),
    "ragged": gaussian(2, 2, 1, 17, 37, seed=6),
    "no section": gaussian(1, 2, 0, 17, 24),
}
