"""Floating-point caches: what engines keep when nothing is quantized."""

from __future__ import annotations

from typing import Any


def _both(dtype: str, note: str) -> dict[str, Any]:
    side = {"codec": "cast", "dtype": dtype}
    return {"k": side, "v": side, "source": "the default caches of transformers, mlx-lm and llama.cpp", "note": note}


PRESETS = {
    "f32": _both("float32", "exact for any model dtype up to float32"),
    "bf16": _both("bfloat16", "the usual cache of bf16 models"),
    "f16": _both("float16", "llama.cpp's default cache"),
}
