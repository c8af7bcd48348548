"""llama.cpp's symmetric blocks: 32 channels of one token share one fp16 scale (q8_0, q4_0).

Source: ggml-quants.c; bit-exact with `gguf.quants`. q8_0: d = max|x| / 127, code = round(x / d), halves away from zero.
q4_0: d = x* / −8 with x* the value of largest magnitude, code = min(15, ⌊x / d + 8.5⌋), channel j of the block shares a byte with j + 16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tqbench.core.codec import Codec, Layout, Packed, Part, as_bytes
from tqbench.core.errors import Unsupported
from tqbench.core.lazy import Tensor, torch

BLOCK = 32


@dataclass(frozen=True)
class Block(Codec):
    """Signed codes of `bits` times a scale per 32 channels."""

    name: ClassVar[str] = "block"
    source: ClassVar[str] = "ggml-org/llama.cpp ggml/src/ggml-quants.c"

    bits: Literal[4, 8] = 8

    def check(self, head_dim: int) -> None:
        if head_dim % BLOCK:
            raise Unsupported(f"blocks of {BLOCK} channels do not fit head_dim {head_dim}")

    def layout(self, head_dim: int) -> Layout:
        blocks = head_dim // BLOCK
        codes = Part("codes", "int8", (head_dim,)) if self.bits == 8 else Part("codes", "uint8", (head_dim // 2,))
        return Layout(1, (codes, Part("scales", "float16", (blocks,), "metadata")))

    def quantize(self, y: Tensor) -> Packed:
        blocks = y.unflatten(-1, (-1, BLOCK))
        largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
        scale = largest.abs() / 127 if self.bits == 8 else largest / -8
        inverse = torch.where(scale == 0, 0.0, 1 / scale)
        if self.bits == 8:
            scaled = blocks * inverse
            up = scaled.frac().abs() >= 0.5  # not floor(|x| + 0.5): in float32 that sum rounds the largest value below a half up
            codes = (scaled.trunc() + torch.where(up, scaled.sign(), 0.0)).to(torch.int8).flatten(-2)
        else:
            nibbles = (blocks.double() * inverse.double() + 8.5).trunc().clamp(0, 15).to(torch.uint8)
            codes = (nibbles[..., : BLOCK // 2] | nibbles[..., BLOCK // 2 :] << 4).flatten(-2)
        return {"codes": codes, "scales": scale.squeeze(-1).to(torch.float16)}

    def dequantize(self, packed: Packed, dtype: torch.dtype) -> Tensor:
        if self.bits == 8:
            codes = packed["codes"].unflatten(-1, (-1, BLOCK)).to(dtype)
        else:
            pairs = packed["codes"].unflatten(-1, (-1, BLOCK // 2))
            codes = torch.cat([pairs & 15, pairs >> 4], dim=-1).to(dtype) - 8
        return (codes * packed["scales"].to(dtype).unsqueeze(-1)).flatten(-2)

    def to_blocks(self, packed: Packed) -> Tensor:
        """ggml's blocks: the scale, then the codes of its 32 channels."""
        scales = packed["scales"]
        codes = packed["codes"].unflatten(-1, (scales.shape[-1], -1)).view(torch.uint8)
        return torch.cat([scales.contiguous().unsqueeze(-1).view(torch.uint8), codes], dim=-1).flatten(-2)

    def from_blocks(self, blocks: Tensor, head_dim: int) -> Packed:
        rows = blocks.unflatten(-1, (head_dim // BLOCK, -1))
        codes = as_bytes(rows[..., 2:].flatten(-2))
        return {
            "codes": codes.view(torch.int8) if self.bits == 8 else codes,
            "scales": rows[..., :2].contiguous().view(torch.float16).squeeze(-1),
        }
