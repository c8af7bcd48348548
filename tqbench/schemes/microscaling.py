"""Block floating point: OCP's MX formats and NVIDIA's NVFP4."""

from __future__ import annotations

from typing import Any


def _both(note: str, **params: Any) -> dict[str, Any]:
    side = {"codec": "microscaling", **params}
    return {"k": side, "v": side, "source": "OCP Microscaling Formats (MX) v1.0; NVIDIA NVFP4; FlashInfer", "note": note}


ROTATION = {"rotation": "hadamard_signed", "rotation_group": 128}

PRESETS = {
    "mxfp4": _both("e2m1, a power of two per 32 channels", format="mxfp4"),
    "mxfp8": _both("e4m3, a power of two per 32 channels", format="mxfp8"),
    "nvfp4": _both("e2m1, an e4m3 scale per 16 channels; global scale 1, so values beyond 2688 saturate", format="nvfp4"),
    "nvfp4_static": _both("e2m1, an e4m3 scale per 16 channels; global scale from calibration text", format="nvfp4", calibrated=True),
    "mxfp4_rot": _both("mxfp4 of randomly rotated vectors", format="mxfp4", **ROTATION),
    "nvfp4_rot": _both("nvfp4 of randomly rotated vectors", format="nvfp4", **ROTATION),
}
