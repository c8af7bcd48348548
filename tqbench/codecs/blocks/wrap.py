"""Wrappers around any codec: another channel order, and the two controls that skip the quantizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tqbench.core.codec import Codec, Layout, Order, Packed, Part, Tags
from tqbench.core.errors import Unsupported
from tqbench.core.lazy import Tensor, torch

# How llama.cpp orders the two channels of a RoPE pair in its cache, by Hugging Face model type. Hugging Face itself keeps them half-split.
LLAMACPP_ORDER: dict[str, Order] = {
    **dict.fromkeys(("llama", "mistral", "mixtral", "granite"), "interleaved"),
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text", "phi3", "olmo2"), "half_split"),
}


def resolve_order(order: Order, architecture: str) -> Order:
    """`native`, `half_split` or `interleaved` for this architecture. Those listed here are half-split in Hugging Face; what an order means
    for another is not known, so only `native` is taken there."""
    if order == "native":
        return order
    if architecture not in LLAMACPP_ORDER:
        known = ", ".join(sorted(LLAMACPP_ORDER))
        raise Unsupported(f"order {order}: how architecture {architecture!r} orders its key channels is not known here (known: {known})")
    return LLAMACPP_ORDER[architecture] if order == "llamacpp" else order


@dataclass(frozen=True)
class _Wrapper(Codec):
    """Forwards everything to the codec inside."""

    name: ClassVar[str] = "wrapper"
    source: ClassVar[str] = ""
    inner: Codec

    @property
    def unit(self) -> int:
        return self.inner.unit

    @property
    def tags(self) -> Tags:
        return self.inner.tags

    def check(self, head_dim: int) -> None:
        self.inner.check(head_dim)

    def layout(self, head_dim: int) -> Layout:
        return self.inner.layout(head_dim)

    def stored_dim(self, head_dim: int) -> int:
        return self.inner.stored_dim(head_dim)

    def transform(self, x: Tensor) -> Tensor:
        return self.inner.transform(x)

    def inverse(self, y: Tensor, head_dim: int) -> Tensor:
        return self.inner.inverse(y, head_dim)

    def quantize(self, y: Tensor) -> Packed:
        return self.inner.quantize(y)

    def dequantize(self, packed: Packed, dtype: torch.dtype) -> Tensor:
        return self.inner.dequantize(packed, dtype)


@dataclass(frozen=True)
class Interleaved(_Wrapper):
    """RoPE pairs (i, i + d/2) stored as (2i, 2i + 1), so that a block groups the channels that llama.cpp's does."""

    def transform(self, x: Tensor) -> Tensor:
        return self.inner.transform(x.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2))

    def inverse(self, y: Tensor, head_dim: int) -> Tensor:
        return self.inner.inverse(y, head_dim).unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)

    def to_blocks(self, packed: Packed) -> Tensor:
        return self.inner.to_blocks(packed)

    def from_blocks(self, blocks: Tensor, head_dim: int) -> Packed:
        return self.inner.from_blocks(blocks, head_dim)


@dataclass(frozen=True)
class Bridge(_Wrapper):
    """The control that runs store, policy, channel order, rotation and padding, and skips the quantizer."""

    name: ClassVar[str] = "bridge"
    dtype: str = "float32"

    @property
    def tags(self) -> Tags:
        return Tags(lossless_in=("float16", "bfloat16", "float32", "float64"))

    def layout(self, head_dim: int) -> Layout:
        return Layout(self.unit, (Part("values", self.dtype, (self.unit, self.stored_dim(head_dim))),))

    def quantize(self, y: Tensor) -> Packed:
        return {"values": y.to(getattr(torch, self.dtype)).unflatten(-2, (-1, self.unit))}

    def dequantize(self, packed: Packed, dtype: torch.dtype) -> Tensor:
        return packed["values"].flatten(2, 3).to(dtype)


@dataclass(frozen=True)
class Identity(Bridge):
    """The control that runs store and policy only: what comes out is bit for bit what went in."""

    name: ClassVar[str] = "identity"

    def stored_dim(self, head_dim: int) -> int:
        return head_dim

    def transform(self, x: Tensor) -> Tensor:
        return x

    def inverse(self, y: Tensor, head_dim: int) -> Tensor:  # noqa: ARG002
        return y
