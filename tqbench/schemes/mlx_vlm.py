"""mlx-vlm's TurboQuant cache: signed Hadamard, or a Haar matrix where head_dim is no power of two; its own tables, the norm as it is.

Its `bits` 2.5 and 3.5 mean two things: without explicit widths for K and V, K has the width below and V the one above; with explicit ones,
half of the channels have one more bit (`_split`). The split is calibrated here, and follows the first tokens there. There, too, a vector's
codes fill whole words of 32 bits.
"""

from __future__ import annotations

from typing import Any

SOURCE = "Blaizzy/mlx-vlm mlx_vlm/turboquant.py @ 9b13f522"


def _side(bits: int, seed: int) -> dict[str, Any]:
    table = {"table": "mlx_vlm", "scale": "raw", "ties": "down", "group": 0, "planes": "stream"}
    return {"codec": "codebook", "bits": bits, **table, "rotation": "hadamard_mlx_vlm", "seed": seed}


def _split(bits: int, seed: int) -> dict[str, Any]:
    table = {"table": "mlx_vlm", "ties": "down", "rotate": "hadamard_mlx_vlm", "rotate_seed": seed}
    return {"codec": "split", "outliers": 0.5, "outlier_bits": bits + 1, "bits": bits, **table}


def _scheme(k: dict[str, Any], v: dict[str, Any], note: str) -> dict[str, Any]:
    return {"k": k, "v": v, "source": SOURCE, "note": note}


PRESETS = {
    **{f"mlx_vlm{bits}": _scheme(_side(bits, 0), _side(bits, 1), f"{bits} bits") for bits in (2, 3, 4)},
    **{f"mlx_vlm_{bits}.5": _scheme(_side(bits, 0), _side(bits + 1, 1), f"K {bits} bits, V {bits + 1}") for bits in (2, 3)},
    **{
        f"mlx_vlm_{bits}.5_split": _scheme(_split(bits, 0), _split(bits, 1), f"half of the channels at {bits + 1} bits, half at {bits}")
        for bits in (2, 3)
    },
}
