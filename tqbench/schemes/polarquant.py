"""Two unrelated papers named PolarQuant. What the turbo fork calls PolarQuant has no polar coordinates: that is `turbo2` to `turbo4`."""

from __future__ import annotations

from typing import Any

_HAN = {"codec": "polar", "rotation": "haar"}
_WU = "arXiv 2502.00527; ericshwu/PolarQuant @ 7fc65d8f"
_PAIRS: dict[str, Any] = {"codec": "polar_pairs", "flush": 128}

PRESETS = {
    "polarquant_han": {
        "k": _HAN,
        "v": _HAN,
        "source": "arXiv 2502.02617",
        "note": "random rotation, recursive polar transform of 16 coordinates, angles of 4, 2, 2 and 2 bits: 3.875 bits",
    },
    "polarquant_wu": {
        "k": _PAIRS,
        "v": "bf16",
        "source": _WU,
        "note": "K only: RoPE pairs as radius and angle, 4 + 4 bits, ranges over 128 tokens: 4.25 bits; V stays bf16",
    },
    "polarquant_wu_v4": {
        "k": _PAIRS,
        "v": {"codec": "affine", "bits": 4, "group_size": 128, "axis": "token", "flush": 128},
        "source": _WU,
        "note": "the same with V in 4 bits over 128 channels, flushed every 128 tokens; head_dim 128 and its multiples",
    },
}
