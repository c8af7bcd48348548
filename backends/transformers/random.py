"""A model of random weights, drawn from one seed. On the CPU, so that they are the same on every device; a large model's on the device
itself and in its own dtype, because eight billion would take a CPU a minute and 32 GB. Those differ between devices."""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from backends.transformers import tiny

LARGE = 2_000_000_000  # parameters


class Bytes:
    """A tokenizer whose tokens are bytes."""

    bos_token_id = None

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}


def model(config: dict[str, Any], device: str, dtype: str) -> tuple[Any, str]:
    """The model on its device, and where its weights come from."""
    made = LlamaConfig(**{key: value for key, value in config.items() if key not in ("model_type", "architectures")})
    if device == "cpu" or parameters(made) < LARGE:
        return tiny.make(made, dtype).to(device), "random, seed 0"
    return _there(made, device, dtype), f"random, seed 0, drawn on {torch.device(device).type}"


def parameters(config: Any) -> int:
    """How many a configuration asks for, without making them."""
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    return sum(math.prod(x.shape) for x in empty.parameters())


def _there(config: Any, device: str, dtype: str) -> Any:
    others = [device] if device.startswith("cuda") else []  # whose generator is to stay where it was
    with torch.random.fork_rng(devices=others), torch.device(device):
        torch.manual_seed(0)
        drawn = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    return drawn.to(device).eval()
