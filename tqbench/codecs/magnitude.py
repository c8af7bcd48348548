"""The destructive control: keep the size of a vector and forget its direction. A run in which this does no harm measures nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tqbench.core.codec import Codec, Layout, Packed, Part, Tags
from tqbench.core.lazy import Tensor, torch


@dataclass(frozen=True)
class Magnitude(Codec):
    """Every coordinate becomes the root mean square of its vector."""

    name: ClassVar[str] = "magnitude"
    source: ClassVar[str] = "tqbench, as a positive control"

    @property
    def tags(self) -> Tags:
        return Tags(destructive=True)

    def layout(self, head_dim: int) -> Layout:  # noqa: ARG002
        return Layout(1, (Part("rms", "float16", (1,)),))

    def quantize(self, y: Tensor) -> Packed:
        return {"rms": y.square().mean(-1, keepdim=True).sqrt().to(torch.float16)}

    def dequantize(self, packed: Packed, dtype: torch.dtype) -> Tensor:
        return packed["rms"].to(dtype)

    def inverse(self, y: Tensor, head_dim: int) -> Tensor:
        return y.expand(*y.shape[:-1], head_dim).contiguous()
