"""Llama models of random weights, by their size alone: `random:512x4` has 512 channels and four layers, `random:8b` is shaped like a known
model. For speed; their text is noise."""

from __future__ import annotations

import re
from typing import Any

PREFIX = "random:"
HEAD_DIM, SHARING = 64, 4  # query heads per KV head, where there are so many
SHAPES: dict[str, dict[str, Any]] = {
    "8b": {  # of Llama 3.1 8B
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    },
}
FORM = (
    "random:HIDDENxLAYERS, with HIDDEN a multiple of 64 from 64 to 16384 and LAYERS from 1 to 128, as random:512x4, or "
    f"{', '.join(PREFIX + name for name in SHAPES)}"
)


def problem(name: str) -> str | None:
    """Why there is no such model."""
    if name.removeprefix(PREFIX) in SHAPES:
        return None
    size = _size(name)
    fits = size and size[0] % HEAD_DIM == 0 and 64 <= size[0] <= 1 << 14 and 1 <= size[1] <= 128
    return None if fits else f"unknown model {name!r}: a random model is {FORM}"


def config(name: str) -> dict[str, Any]:
    """Its configuration in the words of Hugging Face; `problem` has been asked before."""
    shape = SHAPES.get(name.removeprefix(PREFIX)) or _plain(*(_size(name) or (0, 0)))
    return {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 131072, **shape}


def _plain(hidden: int, layers: int) -> dict[str, Any]:
    heads = hidden // HEAD_DIM
    return {
        "hidden_size": hidden,
        "intermediate_size": -(-8 * hidden // 3 // 256) * 256,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // SHARING if heads % SHARING == 0 else 1,
        "head_dim": HEAD_DIM,
        "vocab_size": 32000,
        "tie_word_embeddings": True,
    }


def _size(name: str) -> tuple[int, int] | None:
    found = re.fullmatch(r"random:([0-9]{2,5})x([0-9]{1,3})", name)
    return (int(found[1]), int(found[2])) if found else None
