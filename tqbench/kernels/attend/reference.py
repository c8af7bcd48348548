"""The formula, one query at a time: softmax(q · K scale) V over exactly the keys and values that this query may see."""

from __future__ import annotations

import torch
from torch import Tensor

from tqbench.core.codec import compute_dtype
from tqbench.kernels.attend import View


def attend(q: Tensor, k: View, v: View, start: int, scale: float, softcap: float | None = None) -> Tensor:
    """Attention of each query over its own mixture of packed and exact positions."""
    dtype = compute_dtype(q.dtype)
    k_packed, v_packed = k.packed().to(dtype), v.packed().to(dtype)
    out = torch.empty(q.shape, dtype=dtype, device=q.device)
    for i in range(q.shape[2]):
        keys = visible(k, k_packed, i, start + i).to(dtype)  # [batch, kv_heads, start + i + 1, head_dim]
        values = visible(v, v_packed, i, start + i).to(dtype)
        for head in range(q.shape[1]):
            shared = head * keys.shape[1] // q.shape[1]
            scores = keys[:, shared] @ q[:, head, i].to(dtype)[..., None] * scale
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            out[:, head, i] = (torch.softmax(scores, dim=1) * values[:, shared]).sum(1)
    return out.to(q.dtype)


def visible(side: View, packed: Tensor, i: int, t: int) -> Tensor:
    """What query i, at position t, sees of one side."""
    sinks = 0 if side.sinks is None else side.sinks.shape[2]
    end = min(side.bounds[i], t + 1)
    parts = [
        packed[:, :, : max(0, end - sinks)],
        side.tail[:, :, max(end, side.tail_start) - side.tail_start : max(0, t + 1 - side.tail_start)],
    ]
    if sinks:
        parts.insert(0, side.sinks[:, :, : t + 1].to(packed.dtype))
    parts = [part.to(packed.dtype) for part in parts if part.shape[2]] or parts[:1]
    seen = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)  # what is packed may be all, and large
    return seen if side.reach is None else seen[:, :, max(0, t + 1 - side.reach) :]
