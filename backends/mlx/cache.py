"""A tqbench store as a layer of an mlx-lm cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import ArraysCache, KVCache

from backends.mlx.arrays import MlxArrays
from tqbench.cache.build import Layer, Shape
from tqbench.cache.store import Store
from tqbench.core.errors import EvidenceError, Unsupported
from tqbench.core.evidence import SideEvidence
from tqbench.core.scheme import Scheme
from tqbench.core.session import ModelInfo, Terms


class BaselineCache(list[Any]):
    """The model's own cache."""

    def evidence(self) -> list[SideEvidence]:
        """The engine's cache keeps no evidence."""
        return []


class StoreCache(list[Any]):
    """The model's own cache with every full-attention layer replaced by a store; linear-attention layers stay the engine's."""

    def __init__(self, own: list[Any], info: ModelInfo, scheme: Scheme, terms: Terms):
        super().__init__(own)
        shape = Shape(info.architecture, info.head_dim, info.dtype, info.kv_heads, info.heads)
        held = kv_layers(own)
        for position, index in enumerate(held):
            layer = Layer(index, position)
            store = Store(scheme.for_layer(position, len(held), shape.sharing), shape, MlxArrays(info.device), terms, layer)
            self[index] = StoreLayer(store, info.head_dim)
        self.stores: list[Store] = [self[index].store for index in held]

    def evidence(self) -> list[SideEvidence]:
        """Per layer and side, what the stores did."""
        return [side for store in self.stores for side in store.evidence()]

    def check(self, tokens: int) -> None:
        """Raise if any layer's queries did not go through its store."""
        for store in self.stores:
            if not store.queries == store.tokens == tokens:
                through = f"{store.tokens} of {tokens} tokens stored, {store.queries} attended through the store"
                raise EvidenceError(f"layer {store.layer.index}: {through}")


def kv_layers(cache: Sequence[Any]) -> list[int]:
    """The layers that hold keys and values. A sliding window is refused until the store can forget."""
    other = sorted({type(layer).__name__ for layer in cache if type(layer) not in (KVCache, ArraysCache)})
    if other:
        raise Unsupported(f"this model keeps {', '.join(other)}; schemes replace only mlx-lm's KVCache of full attention yet")
    held = [i for i, layer in enumerate(cache) if type(layer) is KVCache]
    if not held:
        raise Unsupported("no layer of this model keeps keys and values of full attention")
    return held


class StoreLayer:
    """Hands new K and V to the store. The attention function finds the store through its `cache` argument.

    It must never have an attribute called `bits`: mlx-lm takes such a cache for its own quantized one.
    """

    def __init__(self, store: Store, head_dim: int):
        self.store, self.head_dim = store, head_dim

    @property
    def offset(self) -> int:
        """The position of the next token, which RoPE reads."""
        return self.store.tokens

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append; the engine gets everything only when its own attention is to read it."""
        if {keys.shape[-1], values.shape[-1]} != {self.head_dim}:
            sizes = f"{keys.shape[-1]} and {values.shape[-1]} values"
            raise Unsupported(
                f"this model caches keys and values of {sizes}, which schemes do not support yet (only of head_dim, {self.head_dim})"
            )
        self.store.append(keys, values)
        if self.store.through_engine:
            keys, values = self.store.visible()
        return keys, values

    def make_mask(self, queries: int, return_array: bool = False, window_size: int | None = None) -> str | None:
        """The causal mask by its name, as mlx-lm's own cache gives it; the store applies it itself."""
        if window_size is not None:
            raise Unsupported("this model attends in a sliding window, which schemes do not support yet")
        if return_array:
            raise Unsupported("this model computes its attention from a mask array, which schemes do not support yet")
        return None if queries == 1 else "causal"

    @property
    def state(self) -> list[mx.array]:
        """The arrays that exist, for mx.eval."""
        sides = (self.store.k, self.store.v)
        return [array for side in sides for array in (side.exact_sinks, side.tail, *side.buffers.values()) if array is not None]

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays that exist."""
        return sum(array.nbytes for array in self.state)

    def size(self) -> int:
        return self.store.tokens

    def empty(self) -> bool:
        return not self.store.tokens

    def is_trimmable(self) -> bool:
        return False
