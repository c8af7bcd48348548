"""Tiny random models, made on the spot: the same weights every time, and torch's own generator stays where it was."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, Lfm2Config, LlamaConfig, MistralConfig, Qwen2Config

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
K_BIAS = 30.0  # on two channels of each head, several times the size of the keys themselves, as in Qwen2.5


def llama(dtype: str = "float32", **changes: Any) -> Any:
    """Two layers, four heads over two KV heads of 64 channels."""
    return _make(LlamaConfig(**SHAPE | changes), dtype)


def qwen2(dtype: str = "float32", **changes: Any) -> Any:
    """The same with a bias on K that dwarfs the rest: what breaks few-bit keys in real models."""
    model = _make(Qwen2Config(**SHAPE | changes), dtype)
    for layer in model.model.layers:
        layer.self_attn.k_proj.bias.data.view(-1, 64)[:, [5, 60]] = K_BIAS
    return model


def sliding(dtype: str = "float32", **changes: Any) -> Any:
    """Layers that attend in a sliding window, which schemes refuse."""
    return _make(MistralConfig(sliding_window=16, **SHAPE | changes), dtype)


def hybrid(dtype: str = "float32", **changes: Any) -> Any:
    """Convolutions and full attention in turn: two of four layers hold K and V."""
    kinds = ["conv", "full_attention"] * 2
    return _make(Lfm2Config(layer_types=kinds, block_auto_adjust_ff_dim=False, **SHAPE | {"num_hidden_layers": 4} | changes), dtype)


def _make(config: Any, dtype: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.to(getattr(torch, dtype)).eval()
