"""Our attention, registered with transformers under a name of its own per engine implementation: `tqbench_sdpa`, `tqbench_eager` …

A key tensor that comes from a store is answered by the store; anything else goes to the engine's own implementation unchanged.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tqbench.core.errors import EvidenceError, Unsupported

UNSUPPORTED = ("softcap", "sliding_window", "s_aux", "position_bias")


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
            return _through(store, module, query, kwargs), None

        AttentionInterface.register(name, attention)
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[engine])
    return name


def _through(store: Any, module: Any, query: Tensor, kwargs: dict[str, Any]) -> Tensor:
    given = [key for key in UNSUPPORTED if kwargs.get(key) is not None]
    if given:
        raise Unsupported(f"this model's attention uses {', '.join(given)}, which schemes do not support yet")
    if store.index != module.layer_idx:
        raise EvidenceError(f"layer {module.layer_idx} was handed the store of layer {store.index}")
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    out: Tensor = store.attend(query, scale)
    return out.transpose(1, 2).contiguous()
