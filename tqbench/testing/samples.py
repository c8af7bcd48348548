"""The tensors that checks feed: seeded, and without touching torch's own generator."""

from __future__ import annotations

import torch
from torch import Tensor

HEAD_DIMS = (64, 80, 96, 128, 256)


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
