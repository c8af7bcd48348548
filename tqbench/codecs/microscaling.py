"""Block floating point: small blocks of channels of one token share a scale of eight bits.

mxfp4, mxfp8 (OCP MX): 32 elements of e2m1 or e4m3, scale 2^e with e = ⌊log₂ max|x|⌋ − emax, emax being the exponent of the element type's
largest value (2; 8); stored is the byte e + 127. Values beyond the largest element saturate.
nvfp4: 16 elements of e2m1, scale s = e4m3(max|x| / (6 g)), and one fp32 factor g over all blocks: x ≈ g · s · element. NVIDIA takes g from
the largest value of a whole tensor, g = max|x| / (6 · 448); a cache never has the whole, so g is a parameter, 1 as engines have it without
calibration, or `calibrated`: that of the calibration text, per layer and side.
Elements are rounded to the nearest value, ties to the even mantissa. Channel 2j is the low half of a byte of e2m1, 2j + 1 the high half.
Sources: OCP Microscaling Formats v1.0; NVIDIA's NVFP4, FlashInfer nvfp4_kv_quantize.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import frexp, inf
from typing import ClassVar, Literal

from tqbench.codecs.blocks.constants import constants
from tqbench.codecs.blocks.minifloat import LARGEST, Format, decode, encode
from tqbench.codecs.blocks.packing import pack, unpack
from tqbench.core.codec import Codec, Layout, Packed, Part, Tags
from tqbench.core.errors import ConfigError, Unsupported
from tqbench.core.lazy import Tensor, torch

ELEMENT: dict[str, Format] = {"mxfp4": "e2m1", "mxfp8": "e4m3", "nvfp4": "e2m1"}
BIAS = 127  # of e8m0
POWERS = tuple(2.0 ** (byte - BIAS) for byte in range(255))


@dataclass(frozen=True)
class Microscaling(Codec):
    """Elements of four or eight bits with a scale of eight bits per block."""

    name: ClassVar[str] = "microscaling"
    source: ClassVar[str] = "OCP Microscaling Formats (MX) v1.0; NVIDIA NVFP4"

    format: Literal["mxfp4", "mxfp8", "nvfp4"] = "mxfp4"
    global_scale: float = 1.0
    calibrated: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.global_scale < inf:
            raise ConfigError(f"global_scale must be a number above 0, got {self.global_scale}")
        for field, given in (("global_scale", self.global_scale != 1), ("calibrated", self.calibrated)):
            if given and self.format != "nvfp4":
                raise ConfigError(f"{field} belongs to nvfp4; {self.format} has no global scale")
        if self.calibrated and self.global_scale != 1:
            raise ConfigError("global_scale is either given or calibrated, not both")

    @property
    def tags(self) -> Tags:
        return Tags(calibrated=self.calibrated)

    @property
    def block(self) -> int:
        """Channels that share a scale."""
        return 16 if self.format == "nvfp4" else 32

    def check(self, head_dim: int) -> None:
        if head_dim % self.block:
            raise Unsupported(f"blocks of {self.block} channels do not fit head_dim {head_dim}")

    def layout(self, head_dim: int) -> Layout:
        codes = Part("codes", "uint8", (head_dim if self.format == "mxfp8" else head_dim // 2,))
        return Layout(1, (codes, Part("scales", "uint8", (head_dim // self.block,), "metadata")))

    def learn(self, y: Tensor) -> Mapping[str, Tensor]:
        return {"global_scale": (y.abs().amax() / (LARGEST["e2m1"] * LARGEST["e4m3"])).reshape(1)}

    def quantize(self, y: Tensor) -> Packed:
        blocks = y.unflatten(-1, (-1, self.block))
        scales = self._scales(blocks.abs().amax(-1))
        step = self._step(scales, y.dtype).unsqueeze(-1)
        codes = encode(blocks / torch.where(step == 0, 1.0, step), ELEMENT[self.format]).flatten(-2)
        return {"codes": codes if self.format == "mxfp8" else pack(codes, 4), "scales": scales}

    def dequantize(self, packed: Packed, dtype: torch.dtype) -> Tensor:
        codes = packed["codes"] if self.format == "mxfp8" else unpack(packed["codes"], 4)
        elements = decode(codes, ELEMENT[self.format], dtype).unflatten(-1, (-1, self.block))
        return (elements * self._step(packed["scales"], dtype).unsqueeze(-1)).flatten(-2)

    def _scales(self, amax: Tensor) -> Tensor:
        """The stored bytes of the scales."""
        if self.format == "nvfp4":
            return encode(amax / (LARGEST["e2m1"] * self._global(amax)), "e4m3")
        emax = frexp(LARGEST[ELEMENT[self.format]])[1]  # like torch.frexp, one above ⌊log₂⌋
        exponent = (torch.frexp(amax).exponent - emax).clamp(-BIAS, BIAS)
        return torch.where(amax > 0, exponent + BIAS, 0).to(torch.uint8).contiguous()

    def _step(self, scales: Tensor, dtype: torch.dtype) -> Tensor:
        """What an element of 1 is worth."""
        if self.format == "nvfp4":
            values = decode(scales, "e4m3", dtype)
            return values * self._global(values)
        return constants(POWERS, dtype, scales.device)[scales.long()]

    def _global(self, like: Tensor) -> Tensor | float:
        if not self.calibrated:
            return self.global_scale
        if self.learned is None:
            raise Unsupported("codec 'microscaling' with calibrated: true must be calibrated first")
        learned: Tensor = self.learned["global_scale"]
        return learned.to(like.device, like.dtype)
