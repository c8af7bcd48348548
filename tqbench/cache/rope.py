"""The rotary embedding of a model, to take keys back to what they were before it and to bring them forward again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tqbench.codecs.blocks.constants import constants
from tqbench.core.errors import Unsupported


@dataclass(frozen=True)
class Rope:
    """Pairs (i, i + n) of channels, n the number of frequencies, turn with the position; channels beyond 2n do not."""

    frequencies: tuple[float, ...]
    scaling: float = 1.0  # of cosine and sine, as some long-context variants have it

    def redo(self, x: Tensor, start: int) -> Tensor:
        """Rotate keys of the positions start, start + 1, …"""
        c, s = self._turn(x, start)
        a, b, rest = self._pairs(x)
        return torch.cat([a * c - b * s, b * c + a * s, rest], dim=-1)

    def undo(self, x: Tensor, start: int) -> Tensor:
        """Undo `redo`; cosine and sine are rounded, so their squares need not sum to one."""
        c, s = self._turn(x, start)
        a, b, rest = self._pairs(x)
        size = c * c + s * s
        return torch.cat([(a * c + b * s) / size, (b * c - a * s) / size, rest], dim=-1)

    def _turn(self, x: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine, rounded in float32 as models have them."""
        positions = torch.arange(start, start + x.shape[-2], device=x.device, dtype=torch.float32)
        angles = positions[:, None] * constants(self.frequencies, torch.float32, x.device)
        return (angles.cos() * self.scaling).to(x.dtype), (angles.sin() * self.scaling).to(x.dtype)

    def _pairs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n = len(self.frequencies)
        if x.shape[-1] < 2 * n:
            raise Unsupported(f"head_dim {x.shape[-1]} has no room for the {n} pairs of channels that RoPE turns")
        return x[..., :n], x[..., n : 2 * n], x[..., 2 * n :]
