"""The codec's own transform, and sections with their components first."""

from __future__ import annotations

import torch
from torch import Tensor

from tqbench.codecs.kvtc_lite import KvtcLite


def project(codec: KvtcLite, x: Tensor) -> Tensor:
    """All heads at once."""
    return codec.transform(x).unflatten(2, (x.shape[2] // codec.section, codec.section)).mT[..., : codec.active(), :]


def unproject(codec: KvtcLite, rows: Tensor, head_dim: int) -> Tensor:
    """Undo `project`; components that are not there are zero."""
    y = torch.nn.functional.pad(rows.mT, (0, head_dim - rows.shape[-2])).flatten(2, 3)
    return codec.inverse(y, head_dim)
