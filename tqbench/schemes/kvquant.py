"""KVQuant: codebooks from calibration text; keys per channel before RoPE, values per token, 1 % outliers, the first token exact."""

from __future__ import annotations

from typing import Any


def _kvquant(bits: int) -> dict[str, Any]:
    side = {"codec": "nonuniform", "bits": bits, "outliers": 0.01}
    return {
        "k": {**side, "axis": "channel", "rope": "pre"},
        "v": {**side, "axis": "token"},
        "sinks": 1,
        "source": "arXiv 2401.18079; SqueezeAILab/KVQuant @ 57a23835",
        "note": f"nuq{bits}-1% per head, where the project takes V's range over all heads; no Fisher weights; outliers counted",
    }


PRESETS = {f"kvquant{bits}": _kvquant(bits) for bits in (2, 3, 4)}
