"""The TurboQuant paper: a Haar rotation per quantizer, tables for the exact distribution of a coordinate, the norm as it is.

The paper leaves open how norms are stored (fp16 here), which quantizer serves K and which V, how outlier channels are found (calibrated
here), and how 3.5 bits are split: half and half here, 3.75 bits with the norms. Its own sum for 2.5 bits comes to 2.25; two fp16 norms
happen to make it 2.5 at head_dim 128.
"""

from __future__ import annotations

from typing import Any

SOURCE = "arXiv 2504.19874"


def _mse(bits: int, seed: int) -> dict[str, Any]:
    table = {"table": "sphere", "scale": "raw", "group": 0, "planes": "stream"}
    return {"codec": "codebook", "bits": bits, **table, "rotation": "haar", "seed": seed}


def _split(bits: int, outliers: float, seed: int) -> dict[str, Any]:
    return {"codec": "split", "outliers": outliers, "outlier_bits": bits + 1, "bits": bits, "rotate": "haar", "rotate_seed": seed}


def _scheme(k: dict[str, Any], v: dict[str, Any], note: str) -> dict[str, Any]:
    return {"k": k, "v": v, "source": SOURCE, "note": note}


def _product(bits: int) -> dict[str, Any]:
    k = {"codec": "product", "bits": bits, "residual": "qjl", "table": "sphere", "rotation": "haar", "seed": 42}
    return _scheme(
        k, _mse(bits, 43), f"K: {bits - 1} bits and the sign of a Gaussian projection of what they leave; V: {bits} bits for squared error"
    )


PRESETS = {
    **{f"turboquant_mse{bits}": _scheme(_mse(bits, 42), _mse(bits, 43), f"{bits} bits for squared error") for bits in (1, 2, 3, 4)},
    **{f"turboquant_prod{bits}": _product(bits) for bits in (2, 3, 4)},
    "turboquant_2.5": _scheme(_split(2, 0.25, 42), _split(2, 0.25, 43), "a quarter of the channels at 3 bits, the others at 2"),
    "turboquant_3.5": _scheme(_split(3, 0.5, 42), _split(3, 0.5, 43), "half of the channels at 4 bits, half at 3"),
}
