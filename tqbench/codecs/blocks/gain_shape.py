"""A vector as its length and its direction, and the direction's coordinates as indices into a scalar codebook.

y = ‖y‖ / √n · u with ‖u‖ = √n: the coordinates u_i have unit variance whatever the size of the group, so one table serves all.
"""

from __future__ import annotations

from typing import Literal

from tqbench.codecs.blocks.codebooks import Table, boundaries, levels
from tqbench.codecs.blocks.constants import constants
from tqbench.core.lazy import Tensor, torch

Ties = Literal["up", "down"]  # where a coordinate goes that lies on a boundary


def split(y: Tensor, length: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Lengths [.., 1], by default the norm, and u; what is shorter than 1e-10 is zero."""
    length = y.norm(dim=-1, keepdim=True) if length is None else length
    length = torch.where(length > 1e-10, length, 0.0)
    return length, torch.where(length > 0, y / length, 0.0) * y.shape[-1] ** 0.5


def nearest(u: Tensor, table: Table, bits: int, ties: Ties) -> Tensor:
    """The index of the nearest level of each coordinate."""
    edges = constants(boundaries(table, bits, u.shape[-1]), u.dtype, u.device)
    return torch.bucketize(u.contiguous(), edges, right=ties == "up")


def values(index: Tensor, table: Table, bits: int, dtype: torch.dtype) -> Tensor:
    """The levels that these indices stand for."""
    return constants(levels(table, bits, index.shape[-1]), dtype, index.device)[index.long()]
