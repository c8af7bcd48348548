"""A model of random weights, the same on every device: they are drawn on the CPU, from one seed."""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig

from backends.transformers import tiny

WEIGHTS = "random, seed 0"


class Bytes:
    """A tokenizer whose tokens are bytes."""

    bos_token_id = None

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}


def model(config: dict[str, Any], dtype: str) -> Any:
    """The model, on the CPU."""
    return tiny.make(LlamaConfig(**{key: value for key, value in config.items() if key not in ("model_type", "architectures")}), dtype)
