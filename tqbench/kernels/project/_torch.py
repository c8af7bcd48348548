"""All heads at once, and only the components that have bits: on the way in summed in float64, as codes must not depend on what else is
packed at the time, on the way back in the dtype of the rows. Tables come to a device once."""

from __future__ import annotations

import torch
from torch import Tensor

from tqbench.codecs.kvtc_lite import KvtcLite
from tqbench.core.codec import Learned


def project(codec: KvtcLite, x: Tensor) -> Tensor:
    """Sections with their components first."""
    mean, basis = _tables(codec, x.shape[1], str(x.device), torch.float64)
    y = ((x.to(torch.float64) - mean) @ basis).to(x.dtype)
    return y.unflatten(2, (x.shape[2] // codec.section, codec.section)).mT


def unproject(codec: KvtcLite, rows: Tensor, head_dim: int) -> Tensor:  # noqa: ARG001 - the matrix has as many rows
    """Undo `project`; components that are not there are zero."""
    mean, basis = _tables(codec, rows.shape[1], str(rows.device), rows.dtype)
    return rows.mT.flatten(2, 3) @ basis.mT + mean


def _tables(codec: KvtcLite, heads: int, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean, and the components that have bits."""
    made, key = (codec.learned or Learned()).made, ("project", codec.head_group, heads, device, dtype)
    if key not in made:
        mean, basis = (codec.table(name, torch.empty(1, heads, device=device)).to(dtype) for name in ("mean", "basis"))
        made[key] = mean, basis[..., : codec.active()]
    found: tuple[Tensor, Tensor] = made[key]
    return found
