"""A plain cast to another floating-point type: the f32, bf16 and f16 caches of every engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tqbench.core.codec import Codec, Layout, Packed, Part, Tags
from tqbench.core.lazy import Tensor, torch


@dataclass(frozen=True)
class Cast(Codec):
    """x as `dtype`."""

    name: ClassVar[str] = "cast"
    source: ClassVar[str] = "IEEE 754; bfloat16 as torch defines it"

    dtype: Literal["float32", "bfloat16", "float16"] = "float16"

    @property
    def tags(self) -> Tags:
        wider = {"float32": ("float32", "float16", "bfloat16")}
        return Tags(lossless_in=wider.get(self.dtype, (self.dtype,)))

    def layout(self, head_dim: int) -> Layout:
        return Layout(1, (Part("values", self.dtype, (head_dim,)),))

    def quantize(self, y: Tensor) -> Packed:
        return {"values": y.to(getattr(torch, self.dtype))}

    def dequantize(self, packed: Packed, dtype: torch.dtype) -> Tensor:
        return packed["values"].to(dtype)
