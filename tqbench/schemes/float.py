"""Floating-point caches: what engines keep when nothing is quantized, and the eight-bit floats of the serving stacks."""

from __future__ import annotations

from typing import Any


def _both(dtype: str, note: str) -> dict[str, Any]:
    side = {"codec": "cast", "dtype": dtype}
    return {"k": side, "v": side, "source": "the default caches of transformers, mlx-lm and llama.cpp", "note": note}


def _fp8(form: str, scale: str, note: str) -> dict[str, Any]:
    side = {"codec": "fp8", "format": form, "scale": scale}
    return {"k": side, "v": side, "source": "OCP OFP8; vllm-project/vllm kv_cache_dtype", "note": note}


PRESETS = {
    "f32": _both("float32", "exact for any model dtype up to float32"),
    "bf16": _both("bfloat16", "the usual cache of bf16 models"),
    "f16": _both("float16", "llama.cpp's default cache"),
    "fp8_e4m3": _fp8("e4m3", "none", "cast, values beyond 448 become 448: vLLM's fp8 without calibration"),
    "fp8_e5m2": _fp8("e5m2", "none", "cast, values beyond 57344 become that"),
    "fp8_e4m3_scaled": _fp8("e4m3", "token_head", "a scale per token and head: vLLM's fp8_per_token_head"),
    "fp8_e5m2_scaled": _fp8("e5m2", "token_head", "a scale per token and head"),
    "fp8_e4m3_static": _fp8("e4m3", "head", "a scale per head from calibration text; larger values saturate"),
}
