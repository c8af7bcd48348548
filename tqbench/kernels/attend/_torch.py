"""The same in blocks of queries. Scores come from the packed form wherever any query of the block sees it; inside the band where
the queries differ, both forms are computed and each query takes its own. Keys beyond the block are never touched."""

from __future__ import annotations

import torch
from torch import Tensor

from tqbench.core.codec import compute_dtype
from tqbench.kernels.attend import View

QUERIES = 256  # per block: scores of a block are [batch, heads, 256, keys]


def attend(q: Tensor, k: View, v: View, start: int, scale: float, softcap: float | None = None) -> Tensor:
    """Attention of each query over its own mixture of packed and exact positions."""
    batch, heads, queries, dim = q.shape
    dtype = compute_dtype(q.dtype)
    keys, values = _Forms(k, start, dtype), _Forms(v, start, dtype)
    kv_heads = k.tail.shape[1]
    folded = q.to(dtype).reshape(batch, kv_heads, heads // kv_heads, queries, dim)  # query heads that share a KV head
    out = torch.empty_like(folded)
    for first in range(0, queries, QUERIES):
        last = min(queries, first + QUERIES)
        block = (folded[:, :, :, first:last] * scale).flatten(2, 3)
        positions = torch.arange(start + first, start + last, device=q.device)
        stop = start + last
        scores = keys.scores(block, first, last, stop).unflatten(2, (heads // kv_heads, last - first))
        if softcap is not None:
            scores = scores.div_(softcap).tanh_().mul_(softcap)
        ahead = torch.arange(start + first, stop, device=q.device) > positions[:, None]
        scores[..., start + first :].masked_fill_(ahead, float("-inf"))
        if k.reach is not None:
            behind = torch.arange(stop, device=q.device) <= positions[:, None] - k.reach
            scores.masked_fill_(behind, float("-inf"))
        weights = torch.softmax(scores, dim=-1).flatten(2, 3)
        out[:, :, :, first:last] = values.mix(weights, first, last, stop).unflatten(2, (heads // kv_heads, last - first))
    return out.reshape(batch, heads, queries, dim).to(q.dtype)


class _Forms:
    """The packed and the exact form of one side, as plain tensors over positions."""

    def __init__(self, side: View, start: int, dtype: torch.dtype):
        decoded = side.packed().to(dtype)
        self.packed = decoded if side.sinks is None else torch.cat([side.sinks.to(dtype), decoded], dim=2)
        self.exact, self.exact_start = side.tail.to(dtype), side.tail_start
        self.device, self.ends = decoded.device, side.bounds
        self.windowless = all(end > start + i for i, end in enumerate(side.bounds))  # each query sees even itself packed

    def band(self, first: int, last: int, stop: int) -> tuple[int, int]:
        """Positions [low, high): below low every query of the block sees packed, from high on every query sees exact."""
        if self.windowless:
            return stop, stop
        return min(stop, self.ends[first]), min(stop, self.ends[last - 1])

    def sees_exact(self, first: int, last: int, low: int, high: int, rows: int) -> Tensor:
        """[rows, high − low]: whether a query sees a position of the band in exact form."""
        bounds = torch.tensor(self.ends[first:last], device=self.device)  # of several queries: one has no band
        band = torch.arange(low, high, device=self.device) >= bounds[:, None]
        return band.repeat(rows // (last - first), 1)

    def tail(self, low: int, high: int) -> Tensor:
        """Exact positions [low, high)."""
        return self.exact[:, :, low - self.exact_start : high - self.exact_start]

    def scores(self, block: Tensor, first: int, last: int, stop: int) -> Tensor:
        """q · k for all positions below stop."""
        low, high = self.band(first, last, stop)
        scores = torch.empty(*block.shape[:3], stop, dtype=block.dtype, device=block.device)
        torch.matmul(block, self.packed[:, :, :high].mT, out=scores[..., :high])
        if high < stop:
            torch.matmul(block, self.tail(high, stop).mT, out=scores[..., high:])
        if low < high:
            exact = self.sees_exact(first, last, low, high, block.shape[2])
            band = scores[..., low:high]
            band.copy_(torch.where(exact, block @ self.tail(low, high).mT, band))
        return scores

    def mix(self, weights: Tensor, first: int, last: int, stop: int) -> Tensor:
        """Σ weight · v over all positions below stop."""
        low, high = self.band(first, last, stop)
        if low == high:
            mixed = weights[..., :high] @ self.packed[:, :, :high]
            return mixed + weights[..., high:] @ self.tail(high, stop) if high < stop else mixed
        exact = self.sees_exact(first, last, low, high, weights.shape[2])
        own = weights[..., low:]  # from low on, exact; the packed share of the band is cut out and added to the packed part
        packed = weights[..., :high].clone()
        packed[..., low:].masked_fill_(exact, 0)
        own = own.clone()
        own[..., : high - low].masked_fill_(~exact, 0)
        return packed @ self.packed[:, :, :high] + own @ self.tail(low, stop)
