"""PolarQuant (Wu et al.): each RoPE pair of a key as a radius and an angle, both uniform over 128 tokens of that pair.

Channels (i, i + d/2) = (a, b) become ρ = √(a² + b²) and θ = atan2(b, a) ∈ [0, 2π). RoPE only turns a pair, so a channel that is large on
average gives a large radius of small range. Per pair and 128 tokens: step = (max − min) / 2^b (not 2^b − 1), code = ⌊(v − min) / step⌋,
and back (code + ½) · step + min. Steps and minima are kept in fp16 and the codes are taken against the kept values.
Source: arXiv 2502.00527; ericshwu/PolarQuant models/modeling_llama_polar.py @ 7fc65d8f. Unrelated to codec `polar`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from tqbench.codecs.blocks.packing import pack, unpack
from tqbench.core.codec import Codec, Layout, Packed, Part
from tqbench.core.errors import ConfigError, Unsupported
from tqbench.core.lazy import Tensor, torch

GROUP = 128  # tokens that share a range


@dataclass(frozen=True)
class PolarPairs(Codec):
    """One code per pair, the radius above the angle, and a step and a minimum of both per pair and 128 tokens."""

    name: ClassVar[str] = "polar_pairs"
    source: ClassVar[str] = "arXiv 2502.00527; ericshwu/PolarQuant @ 7fc65d8f"

    radius_bits: Literal[2, 3, 4, 5] = 4
    angle_bits: Literal[2, 3, 4, 5] = 4

    def __post_init__(self) -> None:
        if self.radius_bits + self.angle_bits > 8:
            raise ConfigError(f"radius_bits and angle_bits share a byte, so they are 8 at most, got {self.radius_bits} + {self.angle_bits}")

    @property
    def unit(self) -> int:
        return GROUP

    def check(self, head_dim: int) -> None:
        if head_dim % 16:
            raise Unsupported(f"head_dim {head_dim} is no multiple of 16, so its codes of pairs do not end on a byte")

    def layout(self, head_dim: int) -> Layout:
        pairs = head_dim // 2
        ranges = tuple(
            Part(f"{what}_{part}", "float16", (pairs,), "metadata") for what in ("radius", "angle") for part in ("steps", "minima")
        )
        return Layout(GROUP, (Part("codes", "uint8", (GROUP, pairs * (self.radius_bits + self.angle_bits) // 8)), *ranges))

    def quantize(self, y: Tensor) -> Packed:
        a, b = y.unflatten(-2, (-1, GROUP)).unflatten(-1, (2, -1)).unbind(-2)  # the halves: [.., units, tokens, pairs]
        theta = torch.atan2(b, a)
        theta = torch.where(theta < 0, theta + 2 * math.pi, theta)
        radii, radius_step, radius_min = _floor(torch.hypot(a, b), self.radius_bits)
        angles, angle_step, angle_min = _floor(theta, self.angle_bits)
        return {
            "codes": pack(radii << self.angle_bits | angles, self.radius_bits + self.angle_bits),
            "radius_steps": radius_step,
            "radius_minima": radius_min,
            "angle_steps": angle_step,
            "angle_minima": angle_min,
        }

    def dequantize(self, packed: Packed, dtype: torch.dtype) -> Tensor:
        codes = unpack(packed["codes"], self.radius_bits + self.angle_bits)

        def middle(code: Tensor, what: str) -> Tensor:
            step, low = (packed[f"{what}_{part}"].to(dtype).unsqueeze(-2) for part in ("steps", "minima"))
            return (code.to(dtype) + 0.5) * step + low

        rho, theta = middle(codes >> self.angle_bits, "radius"), middle(codes & 2**self.angle_bits - 1, "angle")
        return torch.cat([rho * theta.cos(), rho * theta.sin()], -1).flatten(-3, -2)


def _floor(values: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, step and minimum over the tokens of a group."""
    low, high = values.amin(-2), values.amax(-2)
    step, minimum = ((high - low) / 2**bits).to(torch.float16), low.to(torch.float16)
    divisor = torch.where(step == 0, 1.0, step.to(values.dtype)).unsqueeze(-2)
    codes = ((values - minimum.to(values.dtype).unsqueeze(-2)) / divisor).floor().clamp(0, 2**bits - 1)
    return codes.to(torch.uint8), step, minimum
