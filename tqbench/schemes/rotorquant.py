"""RotorQuant's PlanarQuant and IsoQuant: pairs or fours of channels rotated by themselves, then a codebook, the norm as it is.

The project keeps exact keys during prefill; here every query reads quantized ones.
"""

from __future__ import annotations

from typing import Any

SOURCE = "scrya-com/rotorquant turboquant/planarquant.py, isoquant.py @ fcd7676"


def _rotor(rotation: str, bits: int, note: str) -> dict[str, Any]:
    table = {"table": "gaussian", "scale": "raw", "ties": "down", "group": 0, "planes": "stream"}
    side = {"codec": "codebook", "bits": bits, **table, "rotation": rotation, "seed": 42}
    return {"k": side, "v": side, "source": SOURCE, "note": note}


PRESETS = {
    "planar3": _rotor("planar", 3, "pairs by a random angle"),
    "planar4": _rotor("planar", 4, "pairs by a random angle"),
    "iso3": _rotor("iso", 3, "fours by two random quaternions"),
    "iso4": _rotor("iso", 4, "fours by two random quaternions"),
    "iso_fast3": _rotor("iso_fast", 3, "fours by one random quaternion"),
}
