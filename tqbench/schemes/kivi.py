"""KIVI: keys per channel over 32 tokens, flushed every 128; values per token; the last 128 tokens of V and the unflushed K exact.

The project packs after attention: the query that completes 128 keys still sees them exact there, and packed here under protocol strict.
"""

from __future__ import annotations

from typing import Any


def _kivi(bits: int) -> dict[str, Any]:
    return {
        "k": {"codec": "affine", "bits": bits, "group_size": 32, "axis": "channel", "flush": 128},
        "v": {"codec": "affine", "bits": bits, "group_size": 32, "axis": "token", "window": 128},
        "source": "arXiv 2402.02750; jy-yuan/KIVI",
        "note": "group 32, residual 128",
    }


PRESETS = {"kivi2": _kivi(2), "kivi4": _kivi(4)}
