"""KVTC: principal components of calibration text, keys before RoPE, bits by variance or measured error, sinks and a recent window exact.

Ratios in names are those of packed fp16 values to all bytes of the layout, scales included. Entropy coding, which the task `storage` adds,
changes no value and is not in them.
"""

from __future__ import annotations

from typing import Any

# --- kvtc_lite: OnlyTerp/kvtc, a small PCA per layer and head, 0 to 16 bits per component ---

POLICY: dict[str, Any] = {"sinks": 4, "window": 128}


def _lite(ratio: int, bits: float) -> dict[str, Any]:
    side = {"codec": "kvtc_lite", "bits": bits}
    return {
        "k": {**side, "rope": "pre"},
        "v": side,
        **POLICY,
        "source": "OnlyTerp/kvtc @ 79d2906; arXiv 2511.01815",
        "note": f"{ratio}× before entropy coding, scales included; one PCA per layer and head, sections of 128 tokens",
    }


LITE = {f"kvtc_lite_{ratio}x": _lite(ratio, bits) for ratio, bits in ((4, 3.75), (6, 2.4166), (8, 1.75))}


# --- kvtc_paper: arXiv 2511.01815 ---


def _paper(ratio: float, across: str = "model") -> dict[str, Any]:
    side = {"codec": "kvtc_paper", "ratio": float(ratio), "across": across, "window": 112, "flush": 16}
    vector = "all layers" if across == "model" else "each layer by itself"
    return {
        "k": {**side, "rope": "pre"},
        "v": side,
        "sinks": 4,
        "source": "arXiv 2511.01815",
        "note": f"at most 16 / {ratio} bits, scales included, before entropy coding; components over {vector}; window 112 to 127",
    }


PAPER = {f"kvtc_paper_{ratio}x": _paper(ratio) for ratio in (4, 6, 8, 12, 16)}
PAPER |= {f"kvtc_paper_{ratio}x_per_layer": _paper(ratio, "layer") for ratio in (4, 8, 16)}

PRESETS = {**LITE, **PAPER}
