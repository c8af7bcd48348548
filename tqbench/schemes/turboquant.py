"""TheTom's turbo2/3/4 (llama-cpp-turboquant). The plain names use groups that fit head_dim; `_pad128` is the fork's zero-padded form."""

from __future__ import annotations

from typing import Any

SOURCE = "TheTom/llama-cpp-turboquant ggml/src/ggml-turbo-quant.c @ 69d8e4be4; arXiv 2504.19874"


def _turbo(bits: int, note: str, **params: Any) -> dict[str, Any]:
    side = {
        "codec": "codebook",
        "bits": bits,
        "table": "turbo",
        "rotation": "hadamard_double_signed",
        "scale": "norm_corrected",
        **params,
    }
    return {"k": side, "v": side, "source": SOURCE, "note": note}


PRESETS = {
    "turbo2": _turbo(2, "groups of 128 or 64 channels"),
    "turbo3": _turbo(3, "groups of 128 or 64 channels"),
    "turbo4": _turbo(4, "groups of 128 or 64 channels; the corrected codebook"),
    "turbo2_pad128": _turbo(2, "zero-padded to 128 channels", pad=128),
    "turbo3_pad128": _turbo(3, "zero-padded to 128 channels", pad=128),
    "turbo4_pad128": _turbo(4, "zero-padded to 128 channels, 66 bytes per 128 values", pad=128),
    "turbo4_fork": _turbo(4, "the snapshot's uniterated codebook and 68 bytes per 128 values", pad=128, table="turbo_historic", reserved=2),
}
