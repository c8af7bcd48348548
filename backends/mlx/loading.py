"""Weights of a Hugging Face directory in an mlx-lm model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.utils import load_config, load_model

from tqbench.core.errors import Unsupported


def load_weights(folder: Path, dtype: str, *, trust_remote_code: bool) -> Any:
    """The model, computing in `dtype`, on the device of the current stream."""
    config = load_config(folder)
    older = legacy_rope(config)
    if isinstance(text := config.get("text_config"), dict):
        older["text_config"] = {**text, **legacy_rope(text)}
    try:
        model, _ = load_model(folder, lazy=True, model_config=older, trust_remote_code=trust_remote_code)
    except (KeyError, TypeError, ValueError) as error:  # what its configuration classes raise
        reason = str(error).partition("\n")[0]  # the rest may be a list of all weights
        raise Unsupported(f"mlx-lm cannot load this model: {type(error).__name__}: {reason}") from error
    model.set_dtype(getattr(mx, dtype))
    mx.eval(model.parameters())
    return model


def legacy_rope(config: dict[str, Any]) -> dict[str, Any]:
    """The rotary settings under the names that all mlx-lm models read.

    transformers 5 writes them as `rope_parameters`; many mlx-lm models (llama among them) know only `rope_theta` and `rope_scaling`, and
    fall back to a base of 10000 without a word: on SmolLM2 that costs 2.3 ppl.
    """
    rope = dict(config.get("rope_parameters") or {})
    if "rope_theta" not in rope:  # there are none, or they differ by layer type: models that have those read `rope_parameters` themselves
        return {}
    older = {name: rope.pop(name) for name in ("rope_theta", "partial_rotary_factor") if name in rope}
    if rope.get("rope_type", "default") != "default":
        older["rope_scaling"] = {**rope, "type": rope["rope_type"]}
    return {name: value for name, value in older.items() if config.get(name) is None}
