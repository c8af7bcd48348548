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
    given = [key for key, value in kwargs.items() if key not in HARMLESS and value is not None and value is not False and value != 0]
    if given:
        raise Unsupported(f"this model's attention is given {', '.join(given)}, which schemes do not support yet")
    if mask is not None and not _is_causal(mask, store.tokens):
        raise Unsupported("this model masks keys in a way of its own, which schemes do not support yet")
    if store.index != module.layer_idx:
        raise EvidenceError(f"layer {module.layer_idx} was handed the store of layer {store.index}")
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    out: Tensor = store.attend(query, scale)
    return out.transpose(1, 2).contiguous()


def _is_causal(mask: Tensor, keys: int) -> bool:
    """Whether a mask lets each of the last queries see everything up to itself, and nothing else."""
    seen = mask if mask.dtype == torch.bool else mask == 0
    queries = mask.shape[-2]
    causal = torch.ones(queries, keys, dtype=torch.bool, device=mask.device).tril(keys - queries)
    return mask.shape[-1] == keys and bool((seen == causal).all())
