"""llama.cpp's cache types (`-ctk`, `-ctv`). Keys in llama.cpp's channel order.

The plain names are without the rotation that llama.cpp adds by default since #21038 (LLAMA_ATTN_ROT_DISABLE=1); `_rot` are with it: a
Hadamard matrix without signs on what RoPE gave, when the type is quantized and 64 divides head_dim. K is rotated in groups of the largest
power of two that divides head_dim, V in groups of 64.
"""

from __future__ import annotations

from typing import Any

TYPES: dict[str, tuple[dict[str, Any], str]] = {
    "q8_0": ({"bits": 8}, "8-bit blocks of 32 channels"),
    "q5_1": ({"bits": 5, "form": "affine"}, "5-bit blocks of 32 channels with a minimum"),
    "q5_0": ({"bits": 5}, "5-bit blocks of 32 channels"),
    "q4_1": ({"bits": 4, "form": "affine"}, "4-bit blocks of 32 channels with a minimum"),
    "q4_0": ({"bits": 4}, "4-bit blocks of 32 channels, as with LLAMA_ATTN_ROT_DISABLE=1"),
    "iq4_nl": ({"bits": 4, "form": "nonlinear"}, "blocks of 32 channels on 16 uneven levels"),
}


def _type(params: dict[str, Any], note: str) -> dict[str, Any]:
    side = {"codec": "block", **params}
    return {"k": {**side, "order": "llamacpp"}, "v": side, "source": "ggml-org/llama.cpp ggml/src/ggml-quants.c", "note": note}


def _rotated(name: str) -> dict[str, Any]:
    plain = _type(*TYPES[name])
    return {
        "k": {**plain["k"], "rotation": "hadamard", "rotation_group": 512},
        "v": {**plain["v"], "rotation": "hadamard", "rotation_group": 64},
        "source": "ggml-org/llama.cpp ggml/src/ggml-quants.c, src/llama-kv-cache.cpp (#21038)",
        "note": f"{name} as llama.cpp stores it by default: rotated",
    }


PRESETS = {name: _type(*of) for name, of in TYPES.items()} | {f"{name}_rot": _rotated(name) for name in TYPES}
