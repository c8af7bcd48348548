"""RotorQuant's PlanarQuant and IsoQuant: pairs or fours of channels rotated by themselves, then a codebook.

`planar3`, `iso3`, `planar4`, `iso4` are its llama.cpp cache types: blocks of 128, turbo's printed tables (at 4 bits the uniterated one),
the corrected norm, one quaternion. `planarquant*` and `isoquant*` are its Python classes: the norm as it is, a converged table, two
quaternions unless `_fast`. The angles are those of the Python class (torch seed 42) in both; the types tabulate others. The project keeps
exact keys during prefill; here every query reads quantized ones.
"""

from __future__ import annotations

from typing import Any

PYTHON = "scrya-com/rotorquant turboquant/planarquant.py, isoquant.py @ fcd7676"
TYPES = "scrya-com/rotorquant README @ fcd7676; read in ports of its llama.cpp branch"


def _scheme(side: dict[str, Any], source: str, note: str) -> dict[str, Any]:
    side = {"codec": "codebook", "ties": "down", **side}
    return {"k": side, "v": side, "source": source, "note": note}


def _python(rotation: str, bits: int, note: str) -> dict[str, Any]:
    side = {"bits": bits, "table": "gaussian", "scale": "raw", "group": 0, "planes": "stream", "rotation": rotation, "seed": 42}
    return _scheme(side, PYTHON, note)


def _type(rotation: str, bits: int, note: str) -> dict[str, Any]:
    table = "turbo" if bits == 3 else "turbo_historic"
    layout = {"group": 128, "planes": "split", "rotation_group": 128}
    return _scheme({"bits": bits, "table": table, "scale": "norm_corrected", "rotation": rotation, "seed": 42, **layout}, TYPES, note)


PRESETS = {
    "planar3": _type("planar", 3, "the cache type: pairs by an angle"),
    "planar4": _type("planar", 4, "the cache type: pairs by an angle"),
    "iso3": _type("iso_fast", 3, "the cache type: fours by one quaternion"),
    "iso4": _type("iso_fast", 4, "the cache type: fours by one quaternion"),
    "planarquant3": _python("planar", 3, "the Python class: pairs by a random angle"),
    "planarquant4": _python("planar", 4, "the Python class: pairs by a random angle"),
    "isoquant3": _python("iso", 3, "the Python class: fours by two random quaternions"),
    "isoquant4": _python("iso", 4, "the Python class: fours by two random quaternions"),
    "isoquant_fast3": _python("iso_fast", 3, "the Python class: fours by one random quaternion"),
}
