"""sanctum-mlx's rotated affine cache: keys rotated and quantized with one range per vector, values as `mx.quantize` does.

Its public page describes it in words; signs, widths and group are not given there. Here: mlx-vlm's signs on K and V, groups of 64 for V.
Later versions of the project keep keys as they are.
"""

from __future__ import annotations

from typing import Any


def _sanctum(bits: int) -> dict[str, Any]:
    rotation = {"rotation": "hadamard_mlx_vlm"}
    return {
        "k": {"codec": "affine", "bits": bits, "group_size": 0, **rotation},
        "v": {"codec": "mlx_affine", "bits": bits, "group_size": 64, **rotation},
        "source": "sanctum-docs.pages.dev, TurboQuant KV compression (in words); ml-explore/mlx mx.quantize",
        "note": "rotated; K one range per vector, V groups of 64; a reading of the public description",
    }


PRESETS = {"sanctum3": _sanctum(3), "sanctum4": _sanctum(4)}
