"""mlx-lm's quantized cache: `mx.quantize` in affine mode, groups of consecutive channels of one token, x ≈ scale · code + bias.

scale = max((max − min) / (2^bits − 1), 10⁻⁷), negative if max is the larger edge in magnitude; edge = that edge, n = round(edge / scale).
If n ≠ 0 then scale = edge / n and bias = edge, so that zero is a level of its own; else bias = 0. code = round((x − bias) / scale), halves
to even, clamped. Codes are taken with the exact scale and bias; these are kept in the model's dtype. Codes are one stream of bits, least
significant first: the uint32 words of MLX in memory. Bit-exact with `mx.quantize` of mlx 0.32.
Source: ml-explore/mlx mlx/backend/cpu/quantized.cpp; ml-explore/mlx-lm mlx_lm/models/cache.py, QuantizedKVCache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tqbench.codecs.blocks.packing import pack, unpack
from tqbench.core.codec import Codec, Layout, Packed, Part
from tqbench.core.errors import Unsupported
from tqbench.core.lazy import Tensor, torch


@dataclass(frozen=True)
class MlxAffine(Codec):
    """Unsigned codes with a signed scale and a bias per group of channels."""

    name: ClassVar[str] = "mlx_affine"
    source: ClassVar[str] = "ml-explore/mlx mx.quantize; ml-explore/mlx-lm QuantizedKVCache"

    bits: Literal[2, 3, 4, 5, 6, 8] = 8
    group_size: Literal[32, 64, 128] = 64
    kept: Literal["float16", "bfloat16", "float32"] = "float16"  # a real cache keeps the model's dtype

    def check(self, head_dim: int) -> None:
        if head_dim % self.group_size:
            raise Unsupported(f"groups of {self.group_size} channels do not fit head_dim {head_dim}")

    def layout(self, head_dim: int) -> Layout:
        words = Part("words", "uint8", (head_dim * self.bits // 8,))
        groups = (head_dim // self.group_size,)
        return Layout(1, (words, Part("scales", self.kept, groups, "metadata"), Part("biases", self.kept, groups, "metadata")))

    def quantize(self, y: Tensor) -> Packed:
        groups = y.unflatten(-1, (-1, self.group_size))
        low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
        width = ((high - low) / (2**self.bits - 1)).clamp_min(1e-7)
        below = low.abs() > high.abs()
        edge, scale = torch.where(below, low, high), torch.where(below, width, -width)
        n = (edge / scale).round()
        scale = torch.where(n == 0, scale, edge / n)
        bias = torch.where(n == 0, 0.0, edge)
        codes = ((groups - bias) / scale).round().clamp(0, 2**self.bits - 1).to(torch.uint8)
        kept = getattr(torch, self.kept)
        return {
            "words": pack(codes.flatten(-2), self.bits),
            "scales": scale.squeeze(-1).to(kept).contiguous(),
            "biases": bias.squeeze(-1).to(kept).contiguous(),
        }

    def dequantize(self, packed: Packed, dtype: torch.dtype) -> Tensor:
        scale, bias = (packed[name].to(dtype).unsqueeze(-1) for name in ("scales", "biases"))
        codes = unpack(packed["words"], self.bits).to(dtype).unflatten(-1, (-1, self.group_size))
        return (codes * scale + bias).flatten(-2)
