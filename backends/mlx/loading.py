"""Weights of a Hugging Face directory in an mlx-lm model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.utils import load_config, load_model

from tqbench.core.errors import Unsupported

PATTERNED = ("gemma3_text", "cohere2")  # architectures whose mlx-lm form counts where full attention is


def load_weights(folder: Path, dtype: str, *, trust_remote_code: bool) -> Any:
    """The model, computing in `dtype`, on the device of the current stream."""
    config = load_config(folder)
    older = older_names(config)
    if isinstance(text := config.get("text_config"), dict):
        older["text_config"] = {**text, **older_names(text)}
    try:
        model, _ = load_model(folder, lazy=True, model_config=older, trust_remote_code=trust_remote_code)
    except (KeyError, TypeError, ValueError) as error:  # what its configuration classes raise
        reason = str(error).partition("\n")[0]  # the rest may be a list of all weights
        raise Unsupported(f"mlx-lm cannot load this model: {type(error).__name__}: {reason}") from error
    model.set_dtype(getattr(mx, dtype))
    mx.eval(model.parameters())
    return model


def older_names(config: dict[str, Any]) -> dict[str, Any]:
    """Settings that transformers 5 writes in a new form, under the names that mlx-lm's models read; where one is missing they fall back to
    a default without a word. What the configuration has already is left alone."""
    found = {**_rope(dict(config.get("rope_parameters") or {})), **_pattern(config)}
    return {name: value for name, value in found.items() if config.get(name) is None}


def _rope(rope: dict[str, Any]) -> dict[str, Any]:
    """The rotary settings: many models (llama among them) know only `rope_theta` and `rope_scaling`, and assume a base of 10000: on
    SmolLM2 that costs 2.3 ppl."""
    if "sliding_attention" in rope:  # a base for each kind of layer
        local = rope["sliding_attention"] or {}
        return {**_rope(rope.get("full_attention") or {}), **({"rope_local_base_freq": local["rope_theta"]} if local else {})}
    if "rope_theta" not in rope:
        return {}
    older: dict[str, Any] = {name: rope.pop(name) for name in ("rope_theta", "partial_rotary_factor") if name in rope}
    if rope.get("rope_type", "default") != "default":
        older["rope_scaling"] = {**rope, "type": rope["rope_type"]}
    return older


def _pattern(config: dict[str, Any]) -> dict[str, Any]:
    """Every n-th layer attends to everything, the others in a sliding window."""
    kinds = config.get("layer_types")
    if config.get("model_type") not in PATTERNED or not kinds or config.get("sliding_window_pattern") is not None:
        return {}
    n = kinds.index("full_attention") + 1 if "full_attention" in kinds else len(kinds) + 1
    if any((kind == "full_attention") != (i % n == 0) for i, kind in enumerate(kinds, 1)):
        raise Unsupported(f"mlx-lm has full attention in every n-th layer of {config['model_type']}, this model has it elsewhere")
    return {"sliding_window_pattern": n}
