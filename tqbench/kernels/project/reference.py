"""One vector after another: y = (x − mean) · basis and x = mean + basis · y, summed in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from tqbench.codecs.kvtc_lite import KvtcLite


def project(codec: KvtcLite, x: Tensor) -> Tensor:
    """The rows of every section."""
    batch, heads, tokens, _ = x.shape
    mean, basis = (codec.table(name, x) for name in ("mean", "basis"))
    rows = torch.empty(batch, heads, tokens // codec.section, codec.active(), codec.section, dtype=x.dtype, device=x.device)
    for b in range(batch):
        for h in range(heads):
            for t in range(tokens):
                y = (x[b, h, t].double() - mean[h, 0]) @ basis[h]
                rows[b, h, t // codec.section, :, t % codec.section] = y[: codec.active()].to(x.dtype)
    return rows


def unproject(codec: KvtcLite, rows: Tensor, head_dim: int) -> Tensor:
    """The vectors of every section."""
    batch, heads, units, active, section = rows.shape
    mean, basis = (codec.table(name, rows) for name in ("mean", "basis"))
    x = torch.empty(batch, heads, units * section, head_dim, dtype=rows.dtype, device=rows.device)
    for b in range(batch):
        for h in range(heads):
            for t in range(units * section):
                y = rows[b, h, t // section, :, t % section].double()
                x[b, h, t] = (mean[h, 0] + basis[h][:, :active] @ y).to(rows.dtype)
    return x
