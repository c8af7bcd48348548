"""Keys, values and queries to measure on. The time of most forms does not depend on them; their errors do."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from tqbench.bench.plan import Geometry
from tqbench.core.op import Place

PEAKY = 4.0  # queries that much longer make a softmax that looks at few keys
OUTLIER_EVERY, OUTLIER = 32, 8.0  # one key channel in so many is that much larger, as in many models
SINK_MASS = 0.2  # of the softmax, on the first token


@dataclass(frozen=True)
class Vectors:
    """Exact inputs, made in float32: q [batch, heads, 1, head_dim], k and v [batch, kv_heads, tokens, head_dim]."""

    q: Tensor
    k: Tensor
    v: Tensor

    @property
    def scale(self) -> float:
        """Of the scores."""
        return float(self.q.shape[-1] ** -0.5)

    def at(self, place: Place) -> Vectors:
        """The same there, in the model's dtype."""
        return Vectors(*(x.to(place.device, getattr(torch, place.dtype)) for x in (self.q, self.k, self.v)))


def vectors(kind: str, geometry: Geometry, tokens: int, seed: int = 0) -> Vectors:
    """Seeded inputs of one of `plan.DATA`."""
    generator = torch.Generator().manual_seed(seed)
    g = geometry
    q = torch.randn(g.batch, g.heads, 1, g.head_dim, generator=generator)
    k, v = (torch.randn(g.batch, g.kv_heads, tokens, g.head_dim, generator=generator) for _ in range(2))
    if kind == "peaky":
        q *= PEAKY
    elif kind == "outlier":
        k[..., ::OUTLIER_EVERY] *= OUTLIER
    elif kind == "sink":
        k[:, :, 0] = _sink(q.unflatten(1, (g.kv_heads, -1)).flatten(2, 3), tokens)
    return Vectors(q, k, v)


def _sink(folded: Tensor, tokens: int) -> Tensor:
    """A key along the mean of the queries that share it, as long as it takes to draw `SINK_MASS` among keys with normal scores."""
    mean = folded.mean(dim=2)
    score = log(SINK_MASS / (1 - SINK_MASS) * max(tokens - 1, 1)) + 0.5  # the mean of exp(score) of the others is e^½
    return mean * (max(score, 0.0) * folded.shape[-1] ** 0.5 / mean.square().sum(-1, keepdim=True))
