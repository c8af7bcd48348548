"""AmesianX's tbq and tbqp (TurboQuant for llama.cpp): signed Hadamard over the head vector, the norm as it is, no head_dim 80 or 96.

`tbqp` has the product form for K and the plain one for V. The project always multiplies the attention logits by a factor at head_dim 64 and
from 256 on, which is no quantization: the plain names leave it out, `_alpha64` and `_alpha256` have it.
"""

from __future__ import annotations

from typing import Any

SOURCE = "AmesianX/TurboQuant ggml/src/ggml-cuda/cpy-utils.cuh @ cb3c258c6"
ROTATION = {"rotation": "hadamard_amesianx"}
# The factor on the logits: 1 + c √ln N at head_dim 256, s / (s + √(ln N / ln 2048)) at 64.
ALPHA = {"tbq3": (0.00579, 7.80), "tbq4": (0.00326, 14.05), "tbqp3": (0.01304, 3.45), "tbqp4": (0.00724, 6.13)}


def _plain(bits: int) -> dict[str, Any]:
    # At head_dim 512 the rotation spans the vector and each 256 channels have a norm.
    return {"codec": "codebook", "bits": bits, "table": "gaussian", "scale": "raw", "group": 256, "planes": "stream", **ROTATION}


def _product(bits: int) -> dict[str, Any]:
    return {"codec": "product", "bits": bits, "residual": "amesianx", "table": "gaussian", **ROTATION}


SCHEMES = {
    "tbq3": (_plain(3), _plain(3), "3 bits"),
    "tbq4": (_plain(4), _plain(4), "4 bits"),
    "tbqp3": (_product(3), _plain(3), "K: 2 bits and a sign of the residual; V: 3 bits"),
    "tbqp4": (_product(4), _plain(4), "K: 3 bits and a sign of the residual; V: 4 bits"),
}


def _scheme(name: str, alpha: str = "", **logits: Any) -> dict[str, Any]:
    k, v, note = SCHEMES[name]
    return {"k": k, "v": v, **logits, "source": SOURCE, "note": note + alpha}


PRESETS = {
    **{name: _scheme(name) for name in SCHEMES},
    **{
        f"{name}_alpha256": _scheme(name, "; logits as for head_dim 256", logits={"form": "grow", "value": ALPHA[name][0]})
        for name in SCHEMES
    },
    **{
        f"{name}_alpha64": _scheme(name, "; logits as for head_dim 64", logits={"form": "shrink", "value": ALPHA[name][1]})
        for name in SCHEMES
    },
}
