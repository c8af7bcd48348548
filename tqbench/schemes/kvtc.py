"""KVTC: principal components, bits where they lower the error most, sinks and a recent window exact."""

from __future__ import annotations

from typing import Any

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

PRESETS = {**PAPER}
