"""TheTom's turbo2/3/4 (llama-cpp-turboquant). The plain names use groups that fit head_dim; `_pad128` is the fork's zero-padded form.

`_mode<n>` are its TURBO_LAYER_ADAPTIVE, counted here over the layers that hold K and V. Modes 5 to 7 leave K as it is; the fork turns 7 on
by itself when V is turbo2. `turbo4` has the converged table; that of the fork's correction (PR #197) is said to end at .2402 for .2415, as
after 100 iterations. `_auto` is what it makes of one type for K and V when a KV head serves six query heads or more.
"""

from __future__ import annotations

from typing import Any

SOURCE = "TheTom/llama-cpp-turboquant ggml/src/ggml-turbo-quant.c @ 69d8e4be4; arXiv 2504.19874"
POLICY = "TheTom/llama-cpp-turboquant src/llama-kv-cache.cpp @ 69d8e4be4"


def _turbo(bits: int, note: str, **params: Any) -> dict[str, Any]:
    side = {
        "codec": "codebook",
        "bits": bits,
        "table": "turbo",
        "scale": "norm_corrected",
        "planes": "split",
        "rotation": "hadamard_double_signed",
        "rotation_group": 128,
        **params,
    }
    return {"k": side, "v": side, "source": SOURCE, "note": note}


def _layers(k: str, v: str, note: str, scheme: str, **which: int) -> dict[str, Any]:
    return {"k": k, "v": v, "layers": {**which, "scheme": scheme}, "source": POLICY, "note": note}


def _auto(name: str) -> dict[str, Any]:
    gqa = {"at_least": 6, "scheme": f"q8_0/{name}"}
    return {"k": name, "v": name, "gqa": gqa, "source": POLICY, "note": "K q8_0 where a KV head serves 6 query heads or more"}


PRESETS = {
    "turbo2": _turbo(2, "groups of 128 or 64 channels"),
    "turbo3": _turbo(3, "groups of 128 or 64 channels"),
    "turbo4": _turbo(4, "groups of 128 or 64 channels; the corrected codebook"),
    "turbo2_pad128": _turbo(2, "zero-padded to 128 channels", pad=128),
    "turbo3_pad128": _turbo(3, "zero-padded to 128 channels", pad=128),
    "turbo4_pad128": _turbo(4, "zero-padded to 128 channels, 66 bytes per 128 values", pad=128),
    "turbo4_fork": _turbo(4, "the snapshot's uniterated codebook and 68 bytes per 128 values", pad=128, table="turbo_historic", reserved=2),
    "turbo3_mode1": _layers("turbo3", "turbo3", "K and V q8_0 in the first 4 and last 4 layers", "q8_0", first=4, last=4),
    "turbo3_mode2": _layers("turbo3", "turbo3", "K and V q8_0 in the last 8 layers", "q8_0", last=8),
    "turbo2_mode5": _layers("turbo2", "turbo2", "V turbo4 in the first 2 and last 2 layers", "turbo2/turbo4", first=2, last=2),
    "turbo2_mode6": _layers("turbo2", "turbo2", "V turbo4 in the last 8 layers", "turbo2/turbo4", last=8),
    "turbo2_mode7": _layers("turbo2", "turbo2", "V q8_0 in the first 2 and last 2 layers", "turbo2/q8_0", first=2, last=2),
    "q8_0_turbo2_mode7": _layers("q8_0", "turbo2", "K q8_0; V q8_0 in the first 2 and last 2 layers", "q8_0", first=2, last=2),
    "turbo3_auto": _auto("turbo3"),
    "turbo4_auto": _auto("turbo4"),
}

REFUSED = {
    "tq3_1s": "TQ3_1S is the fork's format for weights, blocks of 32 with two scales that are searched for",
    "tq4_1s": "TQ4_1S is the fork's format for weights, blocks of 32 with two scales that are searched for",
}
