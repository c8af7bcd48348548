"""Sign or zero, times the mean magnitude of what is not zero: x ≈ s · t with t in {−1, 0, 1}, kept as two-bit codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tqbench.codecs.blocks.packing import pack, unpack
from tqbench.core.codec import Codec, Layout, Packed, Part
from tqbench.core.lazy import Tensor, torch


@dataclass(frozen=True)
class Ternary(Codec):
    """Two bits and one scale per vector."""

    name: ClassVar[str] = "ternary"
    source: ClassVar[str] = "tests/e2e"

    def layout(self, head_dim: int) -> Layout:
        return Layout(1, (Part("codes", "uint8", (head_dim // 4,)), Part("scale", "float16", (1,), "metadata")))

    def quantize(self, y: Tensor) -> Packed:
        size = y.abs()
        kept = size > 0.6 * size.mean(-1, keepdim=True)
        scale = (size * kept).sum(-1, keepdim=True) / kept.sum(-1, keepdim=True).clamp(min=1)
        return {"codes": pack((y.sign() * kept + 1).to(torch.uint8), 2), "scale": scale.to(torch.float16)}

    def dequantize(self, packed: Packed, dtype: torch.dtype) -> Tensor:
        return (unpack(packed["codes"], 2).to(dtype) - 1) * packed["scale"].to(dtype)
