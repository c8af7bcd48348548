"""vLLM's cache types: `turboquant_*`, and those with a scale per token and head. Its fp8 types are in the family `float`.

turboquant: K rotated by a plain Hadamard matrix and corrected at decode (`nc`), V a uniform quantizer of the unrotated head vector. The
first two and last two layers stay bf16 in dense models; in hybrid models vLLM quantizes all. `_signed` is K as it was before PR #40194,
with random signs (of one seed here; vLLM drew them for each layer).
"""

from __future__ import annotations

from typing import Any

SOURCE = "vllm-project/vllm vllm/model_executor/layers/quantization/turboquant (PR #38479, #40194)"
SCALED = "vllm-project/vllm vllm/v1/attention/ops (PR #38378, #40835, #45361)"


def _key(bits: int, **rotation: Any) -> dict[str, Any]:
    table = {"table": "vllm", "scale": "norm_corrected_at_decode", "group": 0, "planes": "stream"}
    return {"codec": "codebook", "bits": bits, **table, **(rotation or {"rotation": "hadamard"})}


def _value(bits: int) -> dict[str, Any]:
    return {"codec": "affine", "bits": bits, "group_size": 0, "encode_with": "exact", "rounding": "half_up"}


def _turboquant(k: dict[str, Any], v: dict[str, Any], note: str) -> dict[str, Any]:
    return {"k": k, "v": v, "protect": {"first": 2, "last": 2, "scheme": "bf16"}, "source": SOURCE, "note": note}


def _per_token_head(side: dict[str, Any], note: str) -> dict[str, Any]:
    return {"k": side, "v": side, "source": SCALED, "note": note}


PRESETS = {
    "vllm_k8v4": _turboquant({"codec": "fp8", "format": "e4m3", "scale": "none"}, _value(4), "turboquant_k8v4: K e4m3, unrotated"),
    "vllm_4bit_nc": _turboquant(_key(4), _value(4), "turboquant_4bit_nc"),
    "vllm_k3v4_nc": _turboquant(_key(3), _value(4), "turboquant_k3v4_nc"),
    "vllm_3bit_nc": _turboquant(_key(3), _value(3), "turboquant_3bit_nc"),
    "vllm_4bit_nc_signed": _turboquant(
        _key(4, rotation="hadamard_signed", seed=42), _value(4), "turboquant_4bit_nc before #40194: random signs"
    ),
    "vllm_int8_per_token_head": _per_token_head(
        {"codec": "affine", "form": "symmetric", "bits": 8, "group_size": 0, "kept": "float32"},
        "int8_per_token_head, rounded (#45361)",
    ),
    "vllm_int4_per_token_head": _per_token_head(
        {"codec": "affine", "bits": 4, "group_size": 0, "rotation": "hadamard_signed", "seed": 42},
        "int4_per_token_head: other signs, and a minimum where vLLM has a whole zero point; the same size",
    ),
}
