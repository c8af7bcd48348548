"""Asymmetric uniform quantization, x ≈ code · scale + minimum, over groups of channels of a token or of tokens of a channel.

scale = (max − min) / (2^bits − 1); scale and minimum are kept in fp16 and the codes are taken against the kept values.
`axis: channel` is KIVI's form for keys: the outliers of K sit in fixed channels, so each channel gets its own range.
Source: KIVI, arXiv 2402.02750, jy-yuan/KIVI quant/new_pack.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tqbench.codecs.blocks.packing import pack, unpack
from tqbench.core.codec import Codec, Layout, Packed, Part
from tqbench.core.errors import Unsupported
from tqbench.core.lazy import Tensor, torch


@dataclass(frozen=True)
class Affine(Codec):
    """Unsigned codes with a scale and a minimum per group."""

    name: ClassVar[str] = "affine"
    source: ClassVar[str] = "arXiv 2402.02750; jy-yuan/KIVI"

    bits: Literal[2, 4, 8] = 4
    group_size: Literal[16, 32, 64, 128] = 32
    axis: Literal["token", "channel"] = "token"

    @property
    def unit(self) -> int:
        return self.group_size if self.axis == "channel" else 1

    def check(self, head_dim: int) -> None:
        if self.axis == "token" and head_dim % self.group_size:
            raise Unsupported(f"groups of {self.group_size} channels do not fit head_dim {head_dim}")

    def layout(self, head_dim: int) -> Layout:
        packed = self.bits * self.group_size // 8
        codes: tuple[int, ...]
        if self.axis == "channel":
            codes, ranges = (packed, head_dim), (head_dim,)
        else:
            codes, ranges = (head_dim // self.group_size * packed,), (head_dim // self.group_size,)
        return Layout(
            self.unit,
            (
                Part("codes", "uint8", codes),
                Part("scales", "float16", ranges, "metadata"),
                Part("minima", "float16", ranges, "metadata"),
            ),
        )

    def quantize(self, y: Tensor) -> Packed:
        # One group per row of `dim`: [.., units, group, head_dim] for channels, [.., tokens, groups, group] for tokens.
        dim = -2 if self.axis == "channel" else -1
        groups = y.unflatten(dim, (-1, self.group_size))
        low, high = groups.amin(dim, keepdim=True), groups.amax(dim, keepdim=True)
        minimum = low.to(torch.float16)
        scale = ((high - low) / (2**self.bits - 1)).to(torch.float16)
        step = torch.where(scale == 0, 1.0, scale.to(y.dtype))
        codes = ((groups - minimum.to(y.dtype)) / step).round().clamp(0, 2**self.bits - 1).to(torch.uint8)
        packed = pack(codes, self.bits, dim)
        return {
            "codes": packed if self.axis == "channel" else packed.flatten(-2),
            "scales": scale.squeeze(dim),
            "minima": minimum.squeeze(dim),
        }

    def dequantize(self, packed: Packed, dtype: torch.dtype) -> Tensor:
        dim = -2 if self.axis == "channel" else -1
        scales, minima = (packed[name].to(dtype).unsqueeze(dim) for name in ("scales", "minima"))
        rows = packed["codes"] if self.axis == "channel" else packed["codes"].unflatten(-1, (scales.shape[-2], -1))
        values = unpack(rows, self.bits, dim).to(dtype) * scales + minima
        return values.flatten(-3, -2) if self.axis == "channel" else values.flatten(-2)
