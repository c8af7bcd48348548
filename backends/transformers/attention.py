"""Our attention, registered with transformers under a name of its own per engine implementation: `tqbench_sdpa`, `tqbench_eager` …

A key tensor that comes from a store is answered by the store; anything else goes to the engine's own implementation unchanged.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tqbench.core.errors import EvidenceError, Unsupported

HARMLESS = {"scaling", "position_ids", "cache_position", "use_cache", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}


def register(engine: str) -> str:
    """Register our attention around an engine implementation; the same name every time."""
    name = f"tqbench_{engine}"
    if engine not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        raise Unsupported(f"this model runs its own {engine!r} attention, which cannot be wrapped; it has to support sdpa")
    if name not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        own = ALL_ATTENTION_FUNCTIONS[engine]

        def attention(
            module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
        ) -> tuple[Tensor, Any]:
            store = getattr(key, "tqbench_store", None)
            if store is None:
                return own(module, query, key, value, attention_mask, **kwargs)
            return _through(store, module, query, attention_mask, kwargs), None

        AttentionInterface.register(name, attention)
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[engine])
    return name


def _through(store: Any, module: Any, query: Tensor, mask: Tensor | None, kwargs: dict[str, Any]) -> Tensor:
    known = HARMLESS | ({"sliding_window"} if kwargs.get("sliding_window") == store.layer.reach else set())
    given = [key for key, value in kwargs.items() if key not in known and value is not None and value is not False and value != 0]
    if given:
        raise Unsupported(f"this model's attention is given {', '.join(given)}, which schemes do not support yet")
    if mask is not None and not _expected(mask, store.tokens, store.layer.reach):
        raise Unsupported("this model masks keys in a way of its own, which schemes do not support yet")
    if store.layer.index != module.layer_idx:
        raise EvidenceError(f"layer {module.layer_idx} was handed the store of layer {store.layer.index}")
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    out: Tensor = store.attend(query, scale)
    return out.transpose(1, 2).contiguous()


_ACCEPTED: list[Any] = []  # the last mask that was compared, with what it was compared for: the layers of a forward call share one


def _expected(mask: Tensor, tokens: int, reach: int | None) -> bool:
    """Whether a mask lets each of the last queries see everything up to itself, in its sliding window, and nothing else."""
    if _ACCEPTED and _ACCEPTED[0] is mask and _ACCEPTED[1:] == [tokens, reach]:
        return True
    seen = mask if mask.dtype == torch.bool else mask == 0
    queries, keys = mask.shape[-2:]
    at = torch.arange(tokens - queries, tokens, device=mask.device)[:, None]
    keys_at = torch.arange(tokens - keys, tokens, device=mask.device)
    expected = keys_at <= at if reach is None else (keys_at <= at) & (keys_at > at - reach)
    accepted = keys == (tokens if reach is None else min(tokens, reach - 1 + queries)) and bool((seen == expected).all())
    _ACCEPTED[:] = [mask, tokens, reach] if accepted else []
    return accepted
