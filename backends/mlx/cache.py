"""A tqbench store as a layer of an mlx-lm cache.

What mlx-lm's own cache makes of a model is the baseline. A sliding window is where the model file gives a layer a `RotatingKVCache`; its
`max_size` is the same number as transformers' `sliding_window`: what a query sees, itself included. Mistral runs as Llama there: its
`sliding_window` is not read and every layer attends to everything.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import ArraysCache, KVCache, RotatingKVCache, create_attention_mask

from backends.mlx.arrays import MlxArrays
from backends.stores import Stores
from tqbench.cache.agreement import between
from tqbench.cache.build import Layer, Shape
from tqbench.cache.state import by_key, exact, exactly
from tqbench.cache.store import Store
from tqbench.core.errors import StorageError, Unsupported
from tqbench.core.evidence import SideEvidence
from tqbench.core.scheme import Scheme
from tqbench.core.session import ModelInfo, Terms
from tqbench.core.state import SIDES, Agreement, State


class BaselineCache(list[Any]):
    """The model's own cache."""

    def evidence(self) -> list[SideEvidence]:
        """The engine's cache keeps no evidence."""
        return []

    def verify(self) -> None:
        """There is nothing to verify."""

    def kv_bytes(self) -> int:
        """Bytes of the keys and values that are held, room for growth left out."""
        return sum(
            int(array[:, :, : layer.size()].nbytes) for layer in self if hasattr(layer, "keys") for array in (layer.keys, layer.values)
        )

    def piece(self, index: int) -> tuple[mx.array, mx.array]:
        """Keys and values of a layer, from the first token on."""
        layer = self[index]
        if type(layer) is not KVCache:
            raise Unsupported(f"a context in mlx-lm's {type(layer).__name__} cannot be taken over by a scheme")
        return layer.keys[:, :, : layer.offset], layer.values[:, :, : layer.offset]

    def state(self) -> State:
        """Keys and values as they are."""
        arrays, dtype = MlxArrays(), lambda x: str(x.dtype).rpartition(".")[2]
        pairs = {index: self.piece(index) for index in _saved(self)}
        return State(
            tuple(
                exact(f"{index}.{side}", x, 0, arrays, dtype(x))
                for index, pair in pairs.items()
                for side, x in zip(SIDES, pair, strict=True)
            )
        )

    def take_back(self, state: State, info: ModelInfo) -> None:
        """What was saved, into an empty cache."""
        held, arrays = _saved(self), MlxArrays()
        found = by_key(state, [f"{index}.{side}" for index in held for side in SIDES])
        for index in held:
            (keys, start), (values, first) = (
                exactly(found[f"{index}.{side}"], info.kv_heads, info.head_dim, arrays, info.dtype) for side in SIDES
            )
            if keys.shape != values.shape or start or first:
                raise StorageError(f"layer {index} holds other tokens than this model's own cache would")
            self[index].keys, self[index].values, self[index].offset = keys, values, keys.shape[2]

    def agreement(self, context: BaselineCache) -> list[Agreement]:
        """With another of its kind."""
        arrays = MlxArrays()
        return [
            between(index, side, x, y, arrays)
            for index in _saved(self)
            for side, x, y in zip(SIDES, context.piece(index), self.piece(index), strict=True)
        ]


class StoreCache(Stores, list[Any]):
    """The model's own cache with every layer that holds K and V replaced by a store; linear-attention layers stay the engine's."""

    def __init__(self, own: list[Any], info: ModelInfo, scheme: Scheme, terms: Terms):
        super().__init__(own)
        shape = Shape(info.architecture, info.head_dim, info.dtype, info.kv_heads, info.heads)
        held = kv_layers(own)
        for position, index in enumerate(held):
            layer = Layer(index, position, getattr(own[index], "max_size", None))
            store = Store(scheme.for_layer(position, len(held), shape.sharing), shape, MlxArrays(info.device), terms, layer)
            self[index] = SlidingLayer(store, own[index]) if layer.reach else StoreLayer(store)
        self.stores: list[Store] = [self[index].store for index in held]

    def take(self, context: BaselineCache) -> None:
        """Take over what the model's own cache holds."""
        for index, layer in enumerate(context):
            if isinstance(self[index], StoreLayer):
                self[index].store.take(*context.piece(index))
            else:
                self[index] = copy.deepcopy(layer)
        mx.eval([layer.state for layer in self])

    def state(self) -> State:
        """What the stores hold."""
        _saved(self)
        return State(tuple(entry for store in self.stores for entry in store.hand_out()))

    def take_back(self, state: State) -> None:
        """What was saved, into empty stores."""
        _saved(self)
        found = by_key(state, [f"{store.layer.index}.{side}" for store in self.stores for side in SIDES])
        for store in self.stores:
            store.take_back(found)
        mx.eval([layer.state for layer in self])


def kv_layers(cache: Sequence[Any]) -> list[int]:
    """The layers that hold keys and values, of full or sliding-window attention. A layer of another class is refused by its name: it may
    hold some too, which would stay uncompressed unseen."""
    other = {type(layer).__name__ for layer in cache if type(layer) not in (KVCache, RotatingKVCache, ArraysCache)}
    other |= {f"{type(layer).__name__} with keep={layer.keep}" for layer in cache if getattr(layer, "keep", 0)}
    if other:
        raise Unsupported(f"this model keeps {', '.join(sorted(other))}, which schemes do not support yet")
    held = [i for i, layer in enumerate(cache) if type(layer) is not ArraysCache]
    if not held:
        raise Unsupported("no layer of this model keeps keys and values")
    return held


def _saved(cache: Sequence[Any]) -> list[int]:
    """The layers that hold keys and values, if they are all that a cache holds: the states of others are not saved yet."""
    if other := sorted({type(layer).__name__ for layer in cache if type(layer) not in (KVCache, StoreLayer)}):
        raise Unsupported(f"this model keeps {', '.join(other)}, which cannot be saved yet")
    return list(range(len(cache)))


class StoreLayer:
    """Hands new K and V to the store. The attention function finds the store through its `cache` argument.

    It must never have an attribute called `bits`: mlx-lm takes such a cache for its own quantized one.
    """

    def __init__(self, store: Store):
        self.store = store

    @property
    def offset(self) -> int:
        """The position of the next token, which RoPE reads."""
        return self.store.tokens

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append; the engine gets everything only when its own attention is to read it."""
        expected = (self.store.shape.kv_heads, self.store.shape.head_dim)
        if found := {(x.shape[1], x.shape[-1]) for x in (keys, values)} - {expected}:
            sizes = " and ".join(f"{heads} × {size}" for heads, size in sorted(found))
            raise Unsupported(
                f"layer {self.store.layer.index} caches {sizes} values per token, which schemes do not support yet "
                f"(only KV heads × head_dim, {expected[0]} × {expected[1]})"
            )
        self.store.append(keys, values)
        if self.store.through_engine:
            keys, values = self.store.visible()
        return keys, values

    def make_mask(self, queries: int, return_array: bool = False, window_size: int | None = None) -> Any:
        """The mask that mlx-lm's own cache gives; a store applies it itself."""
        if window_size is not None:
            raise Unsupported("this model slides a window over a cache of full attention, which schemes do not support yet")
        return create_attention_mask(queries, self.offset, return_array, None)

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


class SlidingLayer(StoreLayer):
    """The same in a sliding window. The engine's own cache runs beside it with positions in place of keys: it makes the masks and says in
    which order the engine reads its keys, which matters to the last bit of a sum."""

    def __init__(self, store: Store, own: RotatingKVCache):
        super().__init__(store)
        self.own, self.reach = own, own.max_size

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append; the engine gets what it would have kept itself, in its order."""
        positions = mx.arange(self.offset, self.offset + keys.shape[2])[None, None, :, None]
        order, _ = self.own.update_and_fetch(positions, positions)
        keys, values = super().update_and_fetch(keys, values)
        if self.store.through_engine:
            index = order.flatten() - (self.offset - keys.shape[2])
            keys, values = (mx.take(x, index, axis=2) for x in (keys, values))
        return keys, values

    def make_mask(self, queries: int, return_array: bool = False, window_size: int | None = None) -> Any:
        """The mask that mlx-lm's own cache gives; a store applies it itself."""
        if window_size not in (None, self.reach):
            raise Unsupported(f"this model slides a window of {window_size} over a cache of {self.reach}, which schemes do not support yet")
        return self.own.make_mask(queries, window_size=window_size, return_array=return_array)

    @property
    def state(self) -> list[mx.array]:
        """The arrays that exist, for mx.eval."""
        beside = [self.own.keys, self.own.values]
        return super().state + [array for array in beside if array is not None]

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays that exist; the positions belong to the instrument."""
        return sum(array.nbytes for array in super().state)
