"""All heads at once, and only the components that have bits: on the way in summed in float64, as codes must not depend on what else is
packed at the time, on the way back in the dtype of the rows."""

from __future__ import annotations

import torch
from torch import Tensor

from tqbench.codecs.kvtc_lite import KvtcLite


def project(codec: KvtcLite, x: Tensor) -> Tensor:
    """Sections with their components first."""
    mean, basis = (codec.table(name, x) for name in ("mean", "basis"))
    y = ((x.to(torch.float64) - mean) @ basis[..., : codec.active()]).to(x.dtype)
    return y.unflatten(2, (x.shape[2] // codec.section, codec.section)).mT


def unproject(codec: KvtcLite, rows: Tensor, head_dim: int) -> Tensor:  # noqa: ARG001 - the matrix has as many rows
    """Undo `project`; components that are not there are zero."""
    mean, basis = (codec.table(name, rows).to(rows.dtype) for name in ("mean", "basis"))
    return rows.mT.flatten(2, 3) @ basis[..., : codec.active()].mT + mean
