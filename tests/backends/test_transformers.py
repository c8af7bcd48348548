"""What is special to transformers: masks and arguments that a model hands to its attention, and caches that schemes do not know."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import cache_utils

from backends.transformers import tiny
from backends.transformers.attention import _expected, _through
from backends.transformers.cache import kv_layers
from backends.transformers.session import TransformersSession
from tqbench.core.errors import Unsupported
from tqbench.core.presets import preset

TOKENS = np.arange(20)
ROPE = {"rope_type": "default", "rope_theta": 10000.0}


# --- masks


def test_a_mask_of_the_models_own_is_refused_not_ignored() -> None:
    session = TransformersSession(tiny.llama(), None, "tiny")
    cache = session.new_cache(preset("f32"))
    forward = session.model.forward

    def masked(**given: Any) -> Any:
        hidden = torch.ones(1, len(TOKENS), dtype=torch.long)
        hidden[0, 3] = 0  # the fourth token is nobody's to see
        return forward(attention_mask=hidden, **given)

    session.model.forward = masked
    try:
        with pytest.raises(Unsupported, match="masks keys in a way of its own"):
            session.forward(TOKENS, cache)
    finally:
        del session.model.forward
        session.close()


def band(queries: int, tokens: int, reach: int | None) -> torch.Tensor:
    """Query by query, key by key, over the keys that the engine's cache keeps."""
    oldest = 0 if reach is None else max(0, tokens - queries - reach + 1)
    rows = [[key <= at and (reach is None or at - key < reach) for key in range(oldest, tokens)] for at in range(tokens - queries, tokens)]
    return torch.tensor(rows)[None, None]


def additive(mask: torch.Tensor) -> torch.Tensor:
    return torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)


@pytest.mark.parametrize("form", [torch.Tensor.clone, additive])
@pytest.mark.parametrize(("queries", "tokens", "reach"), [(4, 10, None), (10, 10, None), (4, 10, 3), (10, 10, 3), (4, 10, 16), (1, 10, 3)])
def test_the_expected_mask_is_known_in_both_forms(queries: int, tokens: int, reach: int | None, form: Any) -> None:
    right = band(queries, tokens, reach)
    assert _expected(form(right), tokens, reach)
    for at in (0, queries - 1):
        for key in range(right.shape[-1]):
            wrong = right.clone()
            wrong[..., at, key] ^= True
            assert not _expected(form(wrong), tokens, reach)


def test_a_window_that_is_off_by_one_is_not_taken() -> None:
    """Neither as a mask of the right size, nor because the same mask was right for another window."""
    mask = band(4, 10, 5)
    assert _expected(mask, 10, 5)
    assert not any(_expected(mask, 10, reach) for reach in (4, 6, None))
    assert not _expected(band(4, 10, 4), 10, 5)
    assert not _expected(band(4, 10, None), 10, 5)
    assert _expected(mask, 10, 5)


# --- arguments


def asked(queries: int = 3, tokens: int = 3, reach: int | None = None, engine: str = "sdpa", causal: bool = True, **kwargs: Any) -> Any:
    """What reaches the store of an attention call without a mask."""
    answered: list[Any] = []

    def attend(q: torch.Tensor, *how: Any) -> torch.Tensor:
        answered.append(how)
        return q

    store = SimpleNamespace(tokens=tokens, layer=SimpleNamespace(index=0, reach=reach), attend=attend)
    module = SimpleNamespace(layer_idx=0, is_causal=causal)
    _through(store, module, torch.zeros(1, 2, queries, 4), None, kwargs, engine)
    return answered[0]


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"position_bias": torch.zeros(2), "scaling": 0.1}, "position_bias"),
        ({"s_aux": torch.zeros(2), "position_ids": None}, "s_aux"),
        ({"sliding_window": 128, "dropout": 0.1}, "sliding_window, dropout"),
        ({"reach": 16, "sliding_window": 15}, "sliding_window"),
    ],
)
def test_an_argument_that_attention_does_not_know_is_refused(kwargs: dict[str, Any], named: str) -> None:
    with pytest.raises(Unsupported, match=f"is given {named}, which schemes do not support yet"):
        asked(**kwargs)


def test_arguments_that_change_nothing_are_let_through() -> None:
    nothing = {"dropout": 0.0, "output_attentions": False, "s_aux": None, "position_ids": torch.zeros(1, 3)}
    assert asked(**nothing) == (0.5, None)  # 1 / √4
    assert asked(scaling=0.3, softcap=30.0) == (0.3, 30.0)
    assert asked(reach=16, sliding_window=16, scaling=0.3) == (0.3, None)


def test_without_a_mask_a_sliding_window_is_seen_only_where_it_cannot_matter() -> None:
    asked(queries=16, tokens=16, reach=16)
    asked(queries=1, tokens=40, reach=16)
    asked(queries=17, tokens=40, reach=16, engine="flash_attention_2", sliding_window=16)
    for engine, kwargs in (("sdpa", {}), ("sdpa", {"sliding_window": 16}), ("flash_attention_2", {})):
        with pytest.raises(Unsupported, match="masks keys in a way of its own"):
            asked(queries=17, tokens=17, reach=16, engine=engine, **kwargs)


def test_attention_to_later_tokens_is_refused() -> None:
    with pytest.raises(Unsupported, match="later tokens"):
        asked(causal=False)


# --- caches


class Unheard(cache_utils.LinearAttentionLayer):
    """A layer class that this project has not seen; who knows what it holds."""


class Grown(cache_utils.DynamicSlidingWindowLayer):
    """A known class with something added."""


@pytest.mark.parametrize(
    ("kind", "replaced", "make"),
    [("conv", Unheard, tiny.hybrid), ("full_attention", Grown, tiny.hybrid), ("sliding_attention", Grown, tiny.gemma3)],
)
def test_a_layer_of_an_unknown_class_refuses_the_model(kind: str, replaced: type, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers that are known are not compressed either: half a model would look like a whole one. The baseline runs."""

    def construct(**kwargs: Any) -> Any:
        return replaced(**{"sliding_window": 16} | kwargs)

    monkeypatch.setitem(cache_utils.DYNAMIC_LAYER_TYPE_MAPPING, kind, construct if replaced is Grown else replaced)
    with TransformersSession(make(), None, "tiny") as session:
        assert session.info.kv_layers == 0
        assert len(session.forward(TOKENS, session.new_cache(None))) == len(TOKENS)
        for refused in (lambda: session.new_cache(preset("f32")), lambda: session.calibrate([TOKENS])):
            with pytest.raises(Unsupported, match=f"this model keeps {replaced.__name__}, which schemes do not support yet"):
                refused()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("FalconH1Config", "keeps LinearAttentionAndFullAttentionLayer"),
        ("DeepseekV32Config", "keeps DynamicIndexedLayer"),
        ("Llama4TextConfig", "attends within chunks"),
        ("Gemma3nTextConfig", "read the keys and values of others"),
        ("MambaConfig", "no layer of this model keeps keys and values"),
    ],
)
def test_architectures_that_schemes_cannot_serve_are_refused_by_name(config: str, reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        kv_layers(getattr(transformers, config)())


@pytest.mark.parametrize(
    ("config", "held"),
    [("Qwen3NextConfig", [3, 7, 11]), ("NemotronHConfig", [2]), ("JambaConfig", [4, 12, 20]), ("Gemma2Config", [0, 1, 2])],
)
def test_in_hybrids_only_layers_with_keys_and_values_count(config: str, held: list[int]) -> None:
    assert kv_layers(getattr(transformers, config)())[:3] == held


def test_what_is_no_key_or_value_of_a_head_is_refused() -> None:
    """Multi-head latent attention keeps one vector for all heads, and the rotary part of the keys beside it."""
    shape = {"kv_lora_rank": 64, "q_lora_rank": None, "first_k_dense_replace": 2, "n_routed_experts": 4, "n_group": 1, "topk_group": 1}
    model = tiny.make(transformers.DeepseekV3Config(**tiny.SHAPE | {"num_key_value_heads": 4} | shape), "float32")
    with TransformersSession(model, None, "tiny") as session:
        assert len(session.forward(TOKENS, session.new_cache(None))) == len(TOKENS)
        with pytest.raises(Unsupported, match=r"layer 0 caches 1 × 64 values per token, .* \(only KV heads × head_dim, 4 × 64\)"):
            session.forward(TOKENS, session.new_cache(preset("f32")))


def test_a_model_without_transformers_interface_is_refused_at_once() -> None:
    model = tiny.llama()
    model._can_set_attn_implementation = lambda: False
    with pytest.raises(Unsupported, match="its own 'sdpa' attention, which cannot be wrapped"):
        TransformersSession(model, None, "tiny")


def test_learned_sinks_are_refused_by_their_name() -> None:
    config = transformers.GptOssConfig(**tiny.SHAPE | {"head_dim": 64, "num_local_experts": 4, "rope_parameters": ROPE})
    model = tiny.make(config, "float32")
    with TransformersSession(model, None, "tiny") as session:
        assert len(session.forward(TOKENS, session.new_cache(None))) == len(TOKENS)
        with pytest.raises(Unsupported, match="is given s_aux"):
            session.forward(TOKENS, session.new_cache(preset("f32")))


def test_a_capped_model_needs_its_cap() -> None:
    """The cap of the tiny model is low enough to matter; our attention applies it as the model's own does."""
    with (
        TransformersSession(tiny.gemma2(), None, "tiny") as session,
        TransformersSession(tiny.gemma2(attn_logit_softcapping=None), None, "tiny") as uncapped,
    ):
        capped, own = (session.forward(TOKENS, session.new_cache(scheme)) for scheme in (preset("f32"), None))
        assert (capped - own).abs().max() < 1e-4 < 1e-2 < (uncapped.forward(TOKENS, uncapped.new_cache(None)) - own).abs().max()
