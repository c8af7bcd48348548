"""KVTC: principal components of calibration text, keys before RoPE, bits by variance, four sinks and the last 128 tokens exact.

`kvtc_lite` is the small PCA per layer and head of OnlyTerp/kvtc, without its entropy coding, which the task `storage` adds. The ratio in
a name is that of packed fp16 values to all bytes of the layout, minima and steps included, at section 128: 0.25 bits per value are theirs.
"""

from __future__ import annotations

from typing import Any

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


PRESETS = {f"kvtc_lite_{ratio}x": _lite(ratio, bits) for ratio, bits in ((4, 3.75), (6, 2.4166), (8, 1.75))}
