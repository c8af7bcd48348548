"""A tqbench store as a layer of transformers' cache."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import cache_utils
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
    get_layer_types_and_kwargs,
)

from backends.stores import Stores
from tqbench.cache.agreement import between
from tqbench.cache.arrays import TorchArrays
from tqbench.cache.build import Layer, Shape
from tqbench.cache.shared import Shared
from tqbench.cache.state import by_key, exact, exactly
from tqbench.cache.store import Store
from tqbench.core.errors import StorageError, Unsupported
from tqbench.core.evidence import SideEvidence
from tqbench.core.scheme import Scheme
from tqbench.core.session import Terms
from tqbench.core.state import SIDES, Agreement, State
from tqbench.measure.stages import stage

HOLD = (DynamicLayer, DynamicSlidingWindowLayer)
NO_ATTENTION = (cache_utils.DummyLayer,) if hasattr(cache_utils, "DummyLayer") else ()  # older versions know no layers of that kind
HOLD_NONE = (LinearAttentionLayer, *NO_ATTENTION)  # a state whose size does not grow, or no attention at all


class BaselineCache(DynamicCache):
    """The model's own cache."""

    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The engine's own, marked as a stage."""
        with stage("append"):
            keys, values = super().update(*args, **kwargs)
        return keys, values

    def evidence(self) -> list[SideEvidence]:
        """The engine's cache keeps no evidence."""
        return []

    def verify(self) -> None:
        """There is nothing to verify."""

    def kv_bytes(self) -> int:
        """Bytes of the arrays that exist."""
        held = [layer for layer in self.layers if type(layer) in HOLD and layer.keys is not None]
        return sum(int(layer.keys.nbytes + layer.values.nbytes) for layer in held)

    def piece(self, index: int) -> tuple[Tensor, Tensor, int]:
        """Keys and values of a layer, and the position of the first: a sliding window has forgotten those before."""
        layer: Any = self.layers[index]
        return layer.keys, layer.values, layer.get_seq_length() - layer.keys.shape[2]

    def state(self) -> State:
        """Keys and values as they are."""
        entries = []
        for index in _saved(self.layers):
            *pair, start = self.piece(index)
            dtype, arrays = str(pair[0].dtype).removeprefix("torch."), TorchArrays(str(pair[0].device))
            entries += [exact(f"{index}.{side}", x, start, arrays, dtype) for side, x in zip(SIDES, pair, strict=True)]
        return State(tuple(entries))

    def take_back(self, state: State, shape: Shape, device: str) -> None:
        """What was saved, into an empty cache."""
        held, arrays = _saved(self.layers), TorchArrays(device)
        found = by_key(state, [f"{index}.{side}" for index in held for side in SIDES])
        for index in held:
            layer: Any = self.layers[index]
            (keys, start), (values, first) = (
                exactly(found[f"{index}.{side}"], shape.kv_heads, shape.head_dim, arrays, shape.dtype) for side in SIDES
            )
            kept = getattr(layer, "sliding_window", None)
            if keys.shape != values.shape or start != first or start != (max(0, start + keys.shape[2] - kept + 1) if kept else 0):
                raise StorageError(f"layer {index} holds other tokens than this model's own cache would")
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            if kept:
                layer.cumulative_length = start + keys.shape[2]

    def agreement(self, context: BaselineCache) -> list[Agreement]:
        """With another of its kind."""
        arrays = TorchArrays()
        return [
            between(index, side, x, y, arrays)
            for index in _saved(self.layers)
            for side, x, y in zip(SIDES, context.piece(index)[:2], self.piece(index)[:2], strict=True)
        ]


class StoreCache(Stores, DynamicCache):
    """The model's own cache with every layer that holds K and V replaced by a store; linear-attention layers stay the engine's."""

    def __init__(self, config: Any, shape: Shape, device: str, scheme: Scheme, terms: Terms):
        super().__init__(config=config)
        held = kv_layers(config)
        self.shared = Shared(len(held))
        for position, index in enumerate(held):
            own = scheme.for_layer(position, len(held), shape.sharing)
            layer = Layer(index, position, getattr(self.layers[index], "sliding_window", None))
            self.layers[index] = StoreLayer(Store(own, shape, TorchArrays(device), terms, layer, self.shared))
        self.stores = [self.layers[index].store for index in held]

    def take(self, context: BaselineCache) -> None:
        """Take over what the model's own cache holds."""
        for index, layer in enumerate(context.layers):
            if isinstance(self.layers[index], StoreLayer):
                self.layers[index].store.take(*context.piece(index))
            else:
                self.layers[index] = copy.deepcopy(layer)

    def state(self) -> State:
        """What the stores hold."""
        _saved(self.layers)
        own = [entry for store in self.stores for entry in store.hand_out()]
        return State((*own, *self.shared.hand_out()))

    def take_back(self, state: State) -> None:
        """What was saved, into empty stores."""
        _saved(self.layers)
        own = [f"{store.layer.index}.{side}" for store in self.stores for side in SIDES]
        found = by_key(state, [*own, *(f"all.{side}" for side in self.shared.sides)])
        for store in self.stores:
            store.take_back(found)
        self.shared.take_back(found)


def kv_layers(config: Any) -> list[int]:
    """The layers that hold keys and values, of full or sliding-window attention. A layer of another class is refused by its name: it may
    hold some too, which would stay uncompressed unseen."""
    layers = DynamicCache(config=config).layers
    if other := sorted({type(layer).__name__ for layer in layers if type(layer) not in (*HOLD, *HOLD_NONE)}):
        raise Unsupported(f"this model keeps {', '.join(other)}, which schemes do not support yet")
    own = config.get_text_config(decoder=True)
    if "chunked_attention" in get_layer_types_and_kwargs(own)[0]:  # kept as a sliding window is, and masked in another way
        raise Unsupported("this model attends within chunks of its text, which schemes do not support yet (only in sliding windows)")
    sharing = getattr(own, "num_kv_shared_layers", 0)  # older versions have only this number
    if sharing or "reuse" in (getattr(own, "kv_sharing_modes", None) or ()):
        raise Unsupported("layers of this model read the keys and values of others, which schemes do not support yet")
    held = [i for i, layer in enumerate(layers) if type(layer) in HOLD]
    if not held:
        raise Unsupported("no layer of this model keeps keys and values")
    return held


def _saved(layers: Sequence[Any]) -> list[int]:
    """The layers that hold keys and values, if they are all that a cache holds: the states of others are not saved yet."""
    if other := sorted({type(layer).__name__ for layer in layers if not isinstance(layer, (*HOLD, StoreLayer, *NO_ATTENTION))}):
        raise Unsupported(f"this model keeps {', '.join(other)} beside keys and values, which cannot be saved yet")
    return [i for i, layer in enumerate(layers) if isinstance(layer, (*HOLD, StoreLayer))]


def count_kv_layers(config: Any) -> int:
    """How many layers a scheme would replace; 0 for a model that schemes refuse."""
    try:
        return len(kv_layers(config))
    except Unsupported:
        return 0


class StoreLayer(CacheLayerMixin):
    """Hands new K and V to the store. The attention function finds the store on the key tensor."""

    is_compileable = False
    is_croppable = False

    def __init__(self, store: Store):
        super().__init__()
        self.store = store
        self.is_initialized = True
        self.is_sliding = store.layer.reach is not None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """The store sizes itself."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append; the engine gets everything only when its own attention is to read it."""
        del args, kwargs
        expected = (self.store.shape.kv_heads, self.store.shape.head_dim)
        if found := {(x.shape[1], x.shape[-1]) for x in (key_states, value_states)} - {expected}:
            sizes = " and ".join(f"{heads} × {size}" for heads, size in sorted(found))
            raise Unsupported(
                f"layer {self.store.layer.index} caches {sizes} values per token, which schemes do not support yet "
                f"(only KV heads × head_dim, {expected[0]} × {expected[1]})"
            )
        self.store.append(key_states, value_states)
        if self.store.through_engine:
            keys, values = self.store.visible()
            return keys, values
        tagged = key_states.view_as(key_states)
        tagged.tqbench_store = self.store  # type: ignore[attr-defined]
        return tagged, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        held, reach = self.store.tokens, self.store.layer.reach
        kept = held if reach is None else min(held, reach - 1)
        return kept + query_length, held - kept

    def get_seq_length(self) -> int:
        return self.store.tokens

    def get_max_length(self) -> int:
        return -1 if self.store.layer.reach is None else self.store.layer.reach

    def reset(self) -> None:
        raise Unsupported("a tqbench cache holds one sequence; make a new one")

    def crop(self, tokens_to_remove: int) -> None:  # noqa: ARG002
        raise Unsupported("a tqbench cache cannot forget tokens")
