"""KVQuant's non-uniform quantization: codes into a codebook of the layer, ranges that outliers do not stretch, outliers kept apart.

z = (x − center) / reach, code = the nearest level of z. The 2^bits levels of a layer and side are the k-means centroids of the z ∈ [−1, 1]
of calibration text. `axis: channel` (keys before RoPE) takes center and reach from the same text: the middle and half the width of what
lies between two quantiles of each channel, which leave out `outliers`. `axis: token` (values) finds them in each vector: the range of
what is left without its outliers, in fp16. Both store a token by itself.
Outliers keep their fp16 value and a 16-bit channel. Every vector has ⌈outliers · head_dim⌉ slots for them: with `token` the values
farthest from its median, with `channel` those that lie farthest outside their range, the rest of the slots stay empty (0xFFFF) and what
finds no slot takes the nearest level. The project takes ranges and 1 % of outliers over all heads of a token, and so comes to
0.32 bits for these; a range and whole slots per head make it 0.5 more at head_dim 64 and 128, with a smaller error where heads differ.
Source: arXiv 2401.18079; SqueezeAILab/KVQuant quant/kvquant/simquant_module_quantizer.py @ 57a23835. Its k-means weighs values by Fisher
information; gradients are not at hand here, so all weigh the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from tqbench.codecs.blocks.lloyd import kmeans
from tqbench.codecs.blocks.packing import pack, unpack
from tqbench.core.codec import Codec, Layout, Learned, Packed, Part, Tags
from tqbench.core.errors import ConfigError, Unsupported
from tqbench.core.lazy import Tensor, torch

EMPTY = 0xFFFF  # the channel of a slot without an outlier


@dataclass(frozen=True)
class Nonuniform(Codec):
    """Codes, the range of a vector where calibration does not give it, and slots for outliers."""

    name: ClassVar[str] = "nonuniform"
    source: ClassVar[str] = "arXiv 2401.18079; SqueezeAILab/KVQuant @ 57a23835"

    bits: Literal[2, 3, 4] = 4
    axis: Literal["channel", "token"] = "token"
    outliers: float = 0.01  # of the values

    def __post_init__(self) -> None:
        if not 0 <= self.outliers <= 0.1:
            raise ConfigError(f"outliers must be a share of the values from 0 to 0.1, got {self.outliers}")

    @property
    def tags(self) -> Tags:
        return Tags(calibrated=True)

    def check(self, head_dim: int) -> None:
        if head_dim % 8:
            raise Unsupported(f"head_dim {head_dim} is no multiple of 8, so codes of {self.bits} bits do not end on a byte")

    def slots(self, head_dim: int) -> int:
        """Outliers that a vector has room for."""
        return math.ceil(self.outliers * head_dim)

    def layout(self, head_dim: int) -> Layout:
        parts, slots = [Part("codes", "uint8", (head_dim * self.bits // 8,))], self.slots(head_dim)
        if self.axis == "token":
            parts += [Part("centers", "float16", (1,), "metadata"), Part("reaches", "float16", (1,), "metadata")]
        if slots:
            parts += [Part("outliers", "float16", (slots,)), Part("outlier_channels", "uint8", (slots, 2), "metadata")]
        return Layout(1, tuple(parts))

    def learn(self, y: Tensor) -> dict[str, Tensor]:
        if self.axis == "token":
            center, reach, apart = self._ranges_of_tokens(y)
            kept = torch.ones_like(y, dtype=torch.bool).scatter(-1, apart, False)
            return {"levels": self._levels(_normalized(y, center, reach)[kept])}
        tails = np.quantile(y[0].cpu().numpy(), [self.outliers / 2, 1 - self.outliers / 2], axis=1, keepdims=True)
        low, high = torch.from_numpy(tails).to(y.device, y.dtype)
        center, reach = (high + low) / 2, (high - low) / 2  # [kv_heads, 1, head_dim]
        z = _normalized(y, center, reach)
        return {"levels": self._levels(z[z.abs() <= 1]), "centers": center.to(torch.float32), "reaches": reach.to(torch.float32)}

    def _levels(self, z: Tensor) -> Tensor:
        levels = kmeans(np.sort(z.cpu().numpy(), axis=None), 2**self.bits)
        return torch.from_numpy(levels).to(z.device, torch.float32)

    def quantize(self, y: Tensor) -> Packed:
        center, reach, apart = self._ranges_of_channels(y) if self.axis == "channel" else self._ranges_of_tokens(y)
        z, levels = _normalized(y, center, reach), self._learned("levels", y)
        codes = torch.bucketize(z.contiguous(), (levels[1:] + levels[:-1]) / 2, right=True)
        packed = {"codes": pack(codes.to(torch.uint8), self.bits)}
        if self.axis == "token":
            packed |= {"centers": center.to(torch.float16), "reaches": reach.to(torch.float16)}
        if apart.shape[-1]:
            filled = torch.ones_like(apart, dtype=torch.bool) if self.axis == "token" else z.gather(-1, apart).abs() > 1
            channels = torch.where(filled, apart, EMPTY)
            packed["outliers"] = torch.where(filled, y.gather(-1, apart), 0.0).to(torch.float16)
            packed["outlier_channels"] = torch.stack([channels & 255, channels >> 8], -1).to(torch.uint8)
        return packed

    def dequantize(self, packed: Packed, dtype: torch.dtype) -> Tensor:
        levels = self._learned("levels", packed["codes"]).to(dtype)
        if self.axis == "token":
            center, reach = packed["centers"].to(dtype), packed["reaches"].to(dtype)
        else:
            center, reach = (self._learned(name, levels) for name in ("centers", "reaches"))
        y = center + reach * levels[unpack(packed["codes"], self.bits).to(torch.int64)]
        if "outliers" not in packed:
            return y
        low, high = packed["outlier_channels"].to(torch.int64).unbind(-1)
        room = torch.nn.functional.pad(y, (0, 1))  # where empty slots write
        return room.scatter(-1, (low | high << 8).clamp(max=y.shape[-1]), packed["outliers"].to(dtype))[..., :-1]

    def _ranges_of_tokens(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Center and reach of each vector without its outliers, as fp16 keeps them, and the channels of these."""
        apart = self._farthest((y - y.median(-1, keepdim=True).values).abs())
        low = y.scatter(-1, apart, math.inf).amin(-1, keepdim=True)
        high = y.scatter(-1, apart, -math.inf).amax(-1, keepdim=True)
        center, reach = (part.to(torch.float16).to(y.dtype) for part in ((high + low) / 2, (high - low) / 2))
        return center, reach, apart

    def _ranges_of_channels(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Center and reach of each channel, and the channels of each vector that come to lie farthest out."""
        center, reach = (self._learned(name, y) for name in ("centers", "reaches"))
        return center, reach, self._farthest(_normalized(y, center, reach).abs())

    def _farthest(self, distance: Tensor) -> Tensor:
        return distance.argsort(dim=-1, descending=True, stable=True)[..., : self.slots(distance.shape[-1])]

    def _learned(self, name: str, like: Tensor) -> Tensor:
        dtype = like.dtype if like.is_floating_point() else torch.float32
        return (self.learned or Learned())[name].to(like.device, dtype)


def _normalized(y: Tensor, center: Tensor, reach: Tensor) -> Tensor:
    """(y − center) / reach; where all values were the same, the difference itself."""
    return (y - center) / torch.where(reach == 0, 1.0, reach)
