"""PolarQuant (Han et al.): a vector as the radii of blocks of 16 coordinates and the angles of a recursive polar transform.

Level 1 takes neighbours (a, b) to ψ = atan2(b, a) ∈ [0, 2π) and r = √(a² + b²); levels 2 to 4 do the same to neighbouring radii, where
ψ ∈ [0, π/2]. The side's `rotation` makes coordinates nearly Gaussian. Then all angles are independent and those of level l have a density
proportional to sin^(2^(l−1) − 1)(2ψ): uniform at level 1, ever narrower around π/4 above. Each level has the Lloyd–Max codebook of its own.
Bits of 16 coordinates: 8·4 + (4 + 2 + 1)·2 + 16 of the radius = 62, or 3.875 each.
Source: arXiv 2502.02617. Unrelated to codec `polar_pairs`, and to the fork's norm and Hadamard transform of the same name.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal

import numpy as np

from tqbench.codecs.blocks.constants import constants
from tqbench.codecs.blocks.lloyd import lloyd_max
from tqbench.codecs.blocks.packing import pack, unpack
from tqbench.core.codec import Codec, Layout, Packed, Part
from tqbench.core.errors import Unsupported
from tqbench.core.lazy import Tensor, torch

BLOCK, LEVELS = 16, 4
UPPER = (4, 2, 1)  # angles of a block at levels 2, 3 and 4


@cache
def codebook(level: int, bits: int) -> tuple[float, ...]:
    """The 2**bits angles that stand for those of a level."""
    if level == 1:
        return tuple(((np.arange(2**bits) + 0.5) * 2 * np.pi / 2**bits).tolist())
    power = 2 ** (level - 1) - 1
    away = lloyd_max(lambda t: np.maximum(np.cos(2 * t), 0) ** power, np.pi / 4, bits)  # from π/4, where the density is symmetric
    return tuple((np.pi / 4 + np.concatenate([-away[::-1], away])).tolist())


@dataclass(frozen=True)
class Polar(Codec):
    """Codes of the 15 angles and the fp16 radius of every 16 coordinates."""

    name: ClassVar[str] = "polar"
    source: ClassVar[str] = "arXiv 2502.02617"

    first_bits: Literal[2, 4, 8] = 4  # per angle of level 1
    upper_bits: Literal[1, 2, 4] = 2  # per angle of levels 2 to 4

    def check(self, head_dim: int) -> None:
        whole = BLOCK * 8 // self.upper_bits
        if head_dim % whole:
            raise Unsupported(
                f"head_dim {head_dim} is no multiple of {whole}, where angles of {self.upper_bits} bits end on a byte; set pad"
            )

    def layout(self, head_dim: int) -> Layout:
        blocks = head_dim // BLOCK
        return Layout(
            1,
            (
                Part("radii", "float16", (blocks,), "metadata"),
                Part("first", "uint8", (blocks * self.first_bits,)),
                Part("upper", "uint8", (blocks * sum(UPPER) * self.upper_bits // 8,)),
            ),
        )

    def quantize(self, y: Tensor) -> Packed:
        radius, codes = y.unflatten(-1, (-1, BLOCK)), []
        for level in range(1, LEVELS + 1):
            a, b = radius[..., 0::2], radius[..., 1::2]
            codes.append(self._nearest(torch.atan2(b, a), level))
            radius = torch.hypot(a, b)
        return {
            "radii": radius.squeeze(-1).to(torch.float16),
            "first": pack(codes[0].flatten(-2), self.first_bits),
            "upper": pack(torch.cat(codes[1:], -1).flatten(-2), self.upper_bits),
        }

    def dequantize(self, packed: Packed, dtype: torch.dtype) -> Tensor:
        radius = packed["radii"].to(dtype).unsqueeze(-1)
        upper = unpack(packed["upper"], self.upper_bits).unflatten(-1, (-1, sum(UPPER))).split(UPPER, -1)
        first = unpack(packed["first"], self.first_bits).unflatten(-1, (-1, BLOCK // 2))
        for level, codes in reversed(list(enumerate((first, *upper), 1))):
            psi = self._angles(level, radius)[codes.to(torch.int64)]
            radius = torch.stack([radius * psi.cos(), radius * psi.sin()], -1).flatten(-2)
        return radius.flatten(-2)

    def _nearest(self, psi: Tensor, level: int) -> Tensor:
        if level == 1:
            cells = 2**self.first_bits
            return (psi * (cells / (2 * np.pi))).floor().remainder(cells).to(torch.uint8)
        angles = self._angles(level, psi)
        return torch.bucketize(psi.contiguous(), (angles[1:] + angles[:-1]) / 2, right=True).to(torch.uint8)

    def _angles(self, level: int, like: Tensor) -> Tensor:
        angles = codebook(level, self.first_bits if level == 1 else self.upper_bits)
        return constants(angles, like.dtype, like.device)
