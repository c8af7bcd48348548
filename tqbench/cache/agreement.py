"""How well what a cache holds agrees with the exact keys and values, vector by vector: one figure for all would be that of the largest."""

from __future__ import annotations

from typing import Any

import numpy as np

from tqbench.cache.arrays import Arrays, Floats
from tqbench.cache.side import SideStore
from tqbench.core.state import Agreement


def agreement(side: SideStore, name: str, exact: Any, start: int) -> Agreement:
    """Of one side of a layer: everything it holds, beside the exact vectors, of which the first is at position `start`."""
    parts = [side.exact_sinks, side.decoded(), side.tail[:, :, side.packed_end - side.tail_start :]]
    held = side.arrays.concat([part for part in parts if part is not None])
    first = max(start, side.base)
    return between(side.layer.index, name, exact[:, :, first - start :], held[:, :, first - side.base :], side.arrays)


def between(layer: int, side: str, exact: Any, held: Any, arrays: Arrays) -> Agreement:
    """Of two arrays [batch, kv_heads, tokens, head_dim]."""
    x, y = (arrays.wide(array).reshape(-1, array.shape[-1]) for array in (exact, held))
    sizes, others, wrong = (_length(vectors) for vectors in (x, y, x - y))
    cosine = _share(np.einsum("nd,nd->n", x, y), sizes * others, np.where(sizes == others, 1.0, 0.0))
    return Agreement(layer, side, cosine, _share(wrong, sizes, np.where(wrong > 0, 1.0, 0.0)))


def _length(vectors: Floats) -> Floats:
    return np.sqrt(np.einsum("nd,nd->n", vectors, vectors))


def _share(part: Floats, whole: Floats, of_nothing: Floats) -> Floats:
    return np.divide(part, whole, out=of_nothing.copy(), where=whole > 0)
