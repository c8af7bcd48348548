"""A scheme that does nothing while it declares 4 bits: the bytes are as declared, the values come from a drawer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tqbench.core.codec import Codec, Layout, Packed, Part
from tqbench.core.lazy import Tensor, torch

DRAWER: dict[int, Tensor] = {}


@dataclass(frozen=True)
class Liar(Codec):
    """Packs the number of a drawer in which the original lies."""

    name: ClassVar[str] = "liar"
    source: ClassVar[str] = "tests/e2e"

    def layout(self, head_dim: int) -> Layout:
        return Layout(1, (Part("codes", "uint8", (head_dim // 2,)),))

    def quantize(self, y: Tensor) -> Packed:
        codes = torch.zeros(*y.shape[:-1], y.shape[-1] // 2, dtype=torch.uint8)
        for token in range(y.shape[2]):
            number = len(DRAWER)
            DRAWER[number] = y[:, :, token : token + 1].clone()
            for byte in range(4):
                codes[:, :, token, byte] = number >> 8 * byte & 255
        return {"codes": codes}

    def dequantize(self, packed: Packed, dtype: torch.dtype) -> Tensor:
        rows = packed["codes"][0, 0, :, :4].tolist()
        return torch.cat([DRAWER[sum(value << 8 * byte for byte, value in enumerate(row))] for row in rows], dim=2).to(dtype)
