"""llama.cpp's cache types (`-ctk`, `-ctv`), without the rotation that newer builds add by default. Keys in llama.cpp's channel order."""

from __future__ import annotations

from typing import Any


def _type(bits: int, note: str) -> dict[str, Any]:
    side = {"codec": "block", "bits": bits}
    return {
        "k": {**side, "order": "llamacpp"},
        "v": side,
        "source": "ggml-org/llama.cpp ggml/src/ggml-quants.c",
        "note": note,
    }


PRESETS = {
    "q8_0": _type(8, "8-bit blocks of 32 channels"),
    "q4_0": _type(4, "4-bit blocks of 32 channels, as with LLAMA_ATTN_ROT_DISABLE=1"),
}
