"""Tiny random models, made on the spot: the same weights every time, and torch's own generator stays where it was."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

# Weights larger than the usual start, so that two layers attend to something and quantization shows.
SHAPE = {
    "vocab_size": 256,
    "hidden_size": 256,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.05,
}
K_BIAS = 30.0  # on two channels of each head: several times the size of the keys themselves, as in Qwen2.5
WINDOW = 16  # of sliding attention: shorter than the texts of the backend checks, longer than their shortest chunks


def llama(dtype: str = "float32", **changes: Any) -> Any:
    """Two layers, four heads over two KV heads of 64 channels; `head_dim` makes them wider or narrower."""
    return make(LlamaConfig(**SHAPE | changes), dtype)


def mha(dtype: str = "float32", **changes: Any) -> Any:
    """The same with a KV head for each head."""
    return llama(dtype, **{"num_key_value_heads": SHAPE["num_attention_heads"]} | changes)


def qwen2(dtype: str = "float32", bias: float = K_BIAS, **changes: Any) -> Any:
    """The same with a bias on K that dwarfs the rest: what breaks few-bit keys in real models."""
    model = make(Qwen2Config(**SHAPE | changes), dtype)
    for layer in model.model.layers:
        layer.self_attn.k_proj.bias.data.view(-1, layer.self_attn.head_dim)[:, [5, -4]] = bias
    return model


def qwen3(dtype: str = "float32", **changes: Any) -> Any:
    """Queries and keys normalized per head, and a head_dim that is not the hidden size over the heads."""
    return make(Qwen3Config(**SHAPE | {"head_dim": 128} | changes), dtype)


def sliding(dtype: str = "float32", **changes: Any) -> Any:
    """Every layer attends in a sliding window (Mistral)."""
    return make(MistralConfig(**SHAPE | {"sliding_window": WINDOW} | changes), dtype)


def gemma2(dtype: str = "float32", **changes: Any) -> Any:
    """Sliding and full attention in turn, and logits that are capped softly."""
    return _gemma(Gemma2Config, dtype, {"attn_logit_softcapping": 2.0} | changes)


def gemma3(dtype: str = "float32", **changes: Any) -> Any:
    """Sliding and full attention in turn, normalized keys, a rotary base for each kind."""
    return _gemma(Gemma3TextConfig, dtype, changes)


def hybrid(dtype: str = "float32", **changes: Any) -> Any:
    """Convolutions and full attention in turn: two of four layers hold K and V."""
    kinds = ["conv", "full_attention"] * 2
    return make(Lfm2Config(layer_types=kinds, block_auto_adjust_ff_dim=False, **SHAPE | {"num_hidden_layers": 4} | changes), dtype)


def _gemma(config: Any, dtype: str, changes: dict[str, Any]) -> Any:
    """head_dim and scaling are settings of their own there."""
    own = {"head_dim": 128, "query_pre_attn_scalar": 32, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
    return make(config(**SHAPE | own | changes), dtype)


def make(config: Any, dtype: str) -> Any:
    """The model of a configuration."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.to(getattr(torch, dtype)).eval()
