"""The model's own cache as well as one can have it in a captured graph: K and V lie in buffers that are large enough from the start, a step
writes its token where it belongs, and the engine's own attention reads the buffers' beginning.

transformers' own either copies all of it for every token (`DynamicCache`) or masks a buffer of fixed size, which rules out the fast forms
of torch's attention (`StaticCache`). Neither would be a fair rival.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from backends.transformers.cache import BaselineCache
from tqbench.core.errors import EvidenceError, Unsupported


class InPlaceCache(BaselineCache):
    """What the model's own cache holds, with room for so many tokens more."""

    def __init__(self, config: Any, own: BaselineCache, more: int):
        super().__init__(config=config)
        if other := sorted({type(layer).__name__ for layer in own.layers if type(layer) is not DynamicLayer}):
            raise Unsupported(f"this model keeps {', '.join(other)}, and only layers of full attention are captured yet")
        self.layers = [InPlaceLayer(*own.piece(index)[:2], more) for index in range(len(own.layers))]

    def kv_bytes(self) -> int:
        """Bytes of the arrays that exist."""
        return sum(int(layer.keys.nbytes + layer.values.nbytes) for layer in self.layers)


class InPlaceLayer(CacheLayerMixin):
    """One layer of it."""

    is_compileable = False  # else transformers would make a mask for a single query
    is_croppable = False
    is_sliding = False

    def __init__(self, keys: Tensor, values: Tensor, more: int):
        super().__init__()
        self.tokens = int(keys.shape[2])
        self.keys, self.values = (_with_room(x, more) for x in (keys, values))
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """The buffers are there."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write, and give out the beginning."""
        del args, kwargs
        first, self.tokens = self.tokens, self.tokens + key_states.shape[2]
        if self.tokens > self.keys.shape[2]:
            raise EvidenceError(f"{self.tokens} tokens do not fit the {self.keys.shape[2]} that were reserved")
        self.keys[:, :, first : self.tokens] = key_states
        self.values[:, :, first : self.tokens] = value_states
        return self.keys[:, :, : self.tokens], self.values[:, :, : self.tokens]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.tokens + query_length, 0

    def get_seq_length(self) -> int:
        return self.tokens

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        raise Unsupported("this cache holds one sequence; make a new one")

    def crop(self, tokens_to_remove: int) -> None:  # noqa: ARG002
        raise Unsupported("this cache cannot forget tokens")


def _with_room(x: Tensor, more: int) -> Tensor:
    room = torch.zeros(*x.shape[:2], x.shape[2] + more, x.shape[3], dtype=x.dtype, device=x.device)
    room[:, :, : x.shape[2]] = x
    return room
