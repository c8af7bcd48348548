"""Our attention, registered with transformers under a name of its own per engine implementation: `tqbench_sdpa`, `tqbench_eager` …

A key tensor that comes from a store is answered by the store; anything else goes to the engine's own implementation unchanged.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tqbench.core.errors import EvidenceError, Unsupported
from tqbench.measure.stages import stage

HARMLESS = {"scaling", "position_ids", "cache_position", "use_cache", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}


def register(model: Any) -> str:
    """Register our attention around the implementation that the model runs; the same name every time."""
    engine = model.config._attn_implementation
    name = f"tqbench_{engine}"
    if not model._can_set_attn_implementation() or engine not in (*ALL_ATTENTION_FUNCTIONS.valid_keys(), "eager"):
        raise Unsupported(f"this model runs its own {engine!r} attention, which cannot be wrapped; it has to use transformers' interface")
    if name not in ALL_ATTENTION_FUNCTIONS.valid_keys():

        def attention(
            module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
        ) -> tuple[Tensor, Any]:
            store = getattr(key, "tqbench_store", None)
            if store is None:
                if (read := getattr(key, "tqbench_read", None)) is not None:  # given out by another library's cache
                    read(module.layer_idx, query.shape[2])
                with stage("attend"):
                    result: tuple[Tensor, Any] = _own(engine, module)(module, query, key, value, attention_mask, **kwargs)
                return result
            return _through(store, module, query, attention_mask, kwargs, engine), None

        AttentionInterface.register(name, attention)
        own: Any = ALL_MASK_ATTENTION_FUNCTIONS[engine]
        AttentionMaskInterface.register(name, partial(_masked, own) if engine == "sdpa" else own)
    return name


def _masked(own: Any, **call: Any) -> Tensor | None:
    """The engine's mask; none for a single query that sees all keys. transformers says so, too, but some versions make one nevertheless
    while a graph is captured, which rules out the fast forms of torch's attention, and which we would have to read."""
    alone = call["q_length"] == 1 and call.get("attention_mask") is None and call.get("allow_is_causal_skip", False)
    local = call.get("local_size")
    found: Tensor | None = None if alone and (local is None or call["kv_length"] < local) else own(**call)
    return found


def _own(engine: str, module: Any) -> Any:
    """The engine's implementation; every model file brings an eager one of its own."""
    return sys.modules[type(module).__module__].eager_attention_forward if engine == "eager" else ALL_ATTENTION_FUNCTIONS[engine]


def _through(store: Any, module: Any, query: Tensor, mask: Tensor | None, kwargs: dict[str, Any], engine: str) -> Tensor:
    known = HARMLESS | {"softcap"} | ({"sliding_window"} if kwargs.get("sliding_window") == store.layer.reach else set())
    given = [key for key, value in kwargs.items() if key not in known and value is not None and (isinstance(value, Tensor) or value)]
    if given:
        raise Unsupported(f"this model's attention is given {', '.join(given)}, which schemes do not support yet")
    if not getattr(module, "is_causal", True):
        raise Unsupported("this model attends to later tokens too, which schemes do not support")
    queries, reach = query.shape[2], store.layer.reach
    if mask is None:  # everything up to itself; beyond a sliding window, several queries need a mask, or an engine that makes its own
        makes_its_own = engine not in ("sdpa", "eager") and kwargs.get("sliding_window") == reach
        seen = reach is None or queries == 1 or store.tokens <= reach or makes_its_own
    else:
        seen = _expected(mask, store.tokens, reach)
    if not seen:
        raise Unsupported("this model masks keys in a way of its own, which schemes do not support yet")
    if store.layer.index != module.layer_idx:
        raise EvidenceError(f"layer {module.layer_idx} was handed the store of layer {store.layer.index}")
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    out: Tensor = store.attend(query, scale, kwargs.get("softcap"))
    return out.transpose(1, 2).contiguous()


def _expected(mask: Any, tokens: int, reach: int | None) -> bool:
    """Whether a mask lets each of the last queries see everything up to itself, in its sliding window, and nothing else. The layers of a
    forward call share a mask, so the answer is noted on it."""
    if getattr(mask, "tqbench_expected", None) == (tokens, reach):
        return True
    seen = mask if mask.dtype == torch.bool else mask == 0
    queries, keys = mask.shape[-2:]
    at = torch.arange(tokens - queries, tokens, device=mask.device)[:, None]
    keys_at = torch.arange(tokens - keys, tokens, device=mask.device)
    expected = keys_at <= at if reach is None else (keys_at <= at) & (keys_at > at - reach)
    accepted = keys == (tokens if reach is None else min(tokens, reach - 1 + queries)) and bool((seen == expected).all())
    if accepted:
        mask.tqbench_expected = (tokens, reach)
    return accepted
