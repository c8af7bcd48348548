"""The block form of `_torch.py` in composed MLX operations, computed in float32 whatever the model's dtype. Scores come from the packed
form wherever any query of the block sees it; inside the band where the queries differ, both forms are computed and each query takes its
own. Keys beyond the block are never touched."""

from __future__ import annotations

import mlx.core as mx

from tqbench.kernels.attend import View

QUERIES = 256  # per block: scores of a block are [batch, heads, 256, keys]


def attend(q: mx.array, k: View, v: View, start: int, scale: float, softcap: float | None = None) -> mx.array:
    """Attention of each query over its own mixture of packed and exact positions."""
    batch, heads, queries, dim = q.shape
    keys, values = _Forms(k, start), _Forms(v, start)
    kv_heads = k.tail.shape[1]
    folded = q.astype(mx.float32).reshape(batch, kv_heads, heads // kv_heads, queries, dim) * scale  # query heads that share a KV head
    blocks = []
    for first in range(0, queries, QUERIES):
        last = min(queries, first + QUERIES)
        stop = start + last
        scores = keys.scores(folded[:, :, :, first:last].flatten(2, 3), first, last, stop)
        if softcap is not None:
            scores = softcap * mx.tanh(scores / softcap)
        keys_at, queries_at = mx.arange(stop), mx.arange(start + first, stop)[:, None]
        hidden = keys_at > queries_at
        if k.reach is not None:
            hidden = hidden | (keys_at <= queries_at - k.reach)
        weights = mx.softmax(mx.where(mx.tile(hidden, (heads // kv_heads, 1)), -mx.inf, scores), axis=-1)
        mixed = values.mix(weights, first, last, stop)
        blocks.append(mixed.reshape(batch, heads, last - first, dim))
    return mx.concatenate(blocks, axis=2).astype(q.dtype)


class _Forms:
    """The packed and the exact form of one side, as plain arrays over positions."""

    def __init__(self, side: View, start: int):
        decoded = side.packed().astype(mx.float32)
        self.packed = decoded if side.sinks is None else mx.concatenate([side.sinks.astype(mx.float32), decoded], axis=2)
        self.exact, self.exact_start = side.tail.astype(mx.float32), side.tail_start
        self.ends = side.bounds
        self.windowless = all(end > start + i for i, end in enumerate(side.bounds))  # each query sees even itself packed

    def band(self, first: int, last: int, stop: int) -> tuple[int, int]:
        """Positions [low, high): below low every query of the block sees packed, from high on every query sees exact."""
        if self.windowless:
            return stop, stop
        return min(stop, self.ends[first]), min(stop, self.ends[last - 1])

    def sees_exact(self, first: int, last: int, low: int, high: int, rows: int) -> mx.array:
        """[rows, high − low]: whether a query sees a position of the band in exact form."""
        band = mx.arange(low, high) >= mx.array(list(self.ends[first:last]))[:, None]
        return mx.tile(band, (rows // (last - first), 1))

    def tail(self, low: int, high: int) -> mx.array:
        """Exact positions [low, high)."""
        return self.exact[:, :, low - self.exact_start : high - self.exact_start]

    def scores(self, block: mx.array, first: int, last: int, stop: int) -> mx.array:
        """q · k for all positions below stop."""
        low, high = self.band(first, last, stop)
        packed = block @ self.packed[:, :, :high].swapaxes(2, 3)
        if low == stop:
            return packed
        exact = block @ self.tail(low, stop).swapaxes(2, 3)
        sees = self.sees_exact(first, last, low, high, block.shape[2])
        band = mx.where(sees, exact[..., : high - low], packed[..., low:])
        return mx.concatenate([packed[..., :low], band, exact[..., high - low :]], axis=-1)

    def mix(self, weights: mx.array, first: int, last: int, stop: int) -> mx.array:
        """Σ weight · v over all positions below stop."""
        low, high = self.band(first, last, stop)
        if low == stop:
            return weights @ self.packed[:, :, :high]
        # The band's weights are split between the two forms: each position counts once.
        sees, band = self.sees_exact(first, last, low, high, weights.shape[2]), weights[..., low:high]
        packed = mx.concatenate([weights[..., :low], mx.where(sees, 0, band)], axis=-1)
        exact = mx.concatenate([mx.where(sees, band, 0), weights[..., high:]], axis=-1)
        return packed @ self.packed[:, :, :high] + exact @ self.tail(low, stop)
