"""mlx-lm's quantized cache (`--kv-bits`, `--kv-group-size`) from the first token on: `--quantized-kv-start 0`, not the default."""

from __future__ import annotations

from typing import Any


def _affine(bits: int, group_size: int) -> dict[str, Any]:
    side = {"codec": "mlx_affine", "bits": bits, "group_size": group_size}
    return {
        "k": side,
        "v": side,
        "source": "ml-explore/mlx-lm mlx_lm/models/cache.py, QuantizedKVCache; ml-explore/mlx mx.quantize",
        "note": f"groups of {group_size} channels, scale and bias in fp16",
    }


PRESETS = {f"mlx{bits}_g{group_size}": _affine(bits, group_size) for bits in (2, 3, 4, 5, 6, 8) for group_size in (32, 64, 128)}
