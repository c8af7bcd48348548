"""Caches of other libraries, run by these libraries: what their users get, beside the same mathematics in our store.

Those of transformers attend the tokens of a forward call exact and quantize afterwards, so they have no `protocol: strict`. mlx-lm attends
what it has quantized; in `deploy` its first forward call is exact, as in `mlx_lm.generate --quantized-kv-start 0`. Bits are those of a
float16 model: scales follow the model's dtype, and the record counts the bytes that exist.
"""

from __future__ import annotations

from typing import Any

TRANSFORMERS = "huggingface/transformers src/transformers/cache_utils.py, QuantizedCache"
SOURCES = {
    "quanto": f"{TRANSFORMERS}; huggingface/optimum-quanto",
    "hqq": f"{TRANSFORMERS}; mobiusml/hqq",
    "fp8": TRANSFORMERS,
    "mlx": "ml-explore/mlx-lm mlx_lm/models/cache.py, QuantizedKVCache",
}


def _peer(library: str, note: str, **params: Any) -> dict[str, Any]:
    side = {"codec": "peer", "library": library, **params}
    return {"k": side, "v": side, "source": SOURCES[library], "note": note}


def _transformers(library: str, bits: int) -> dict[str, Any]:
    note = f"transformers with {library}, groups of 64 channels, up to 128 recent tokens exact"
    return _peer(library, note, bits=bits, group_size=64, residual=128)


PRESETS = {
    **{f"peer:quanto{bits}": _transformers("quanto", bits) for bits in (4, 2)},
    **{f"peer:hqq{bits}": _transformers("hqq", bits) for bits in (8, 4, 2)},
    "peer:fp8": _peer("fp8", "transformers, e4m3 with one scale per layer from the first forward call", bits=8, group_size=0),
    **{f"peer:mlx{bits}": _peer("mlx", "mlx-lm, groups of 64 channels", bits=bits, group_size=64) for bits in (8, 6, 5, 4, 3, 2)},
}
