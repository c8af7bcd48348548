"""Wrappers around any codec: rotation and padding, centring, another channel order, and the two controls that skip the quantizer."""

from __future__ import annotations

from dataclasses import Field, dataclass, replace
from typing import Any, ClassVar, Self

from tqbench.codecs.blocks import rotations
from tqbench.codecs.blocks.rotations import Rotation
from tqbench.core.codec import Codec, Layout, Learned, Order, Packed, Part, Tags
from tqbench.core.errors import ConfigError, Unsupported
from tqbench.core.lazy import Tensor, torch

# How llama.cpp orders the two channels of a RoPE pair in its cache, by Hugging Face model type. Hugging Face itself keeps them half-split.
LLAMACPP_ORDER: dict[str, Order] = {
    **dict.fromkeys(("llama", "mistral", "mixtral", "granite"), "interleaved"),
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text", "phi3", "olmo2"), "half_split"),
    **dict.fromkeys(("qwen3_next",), "half_split"),  # the quarter of its channels that turns comes first in both
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
class Wrapper(Codec):
    """Does something invertible to vectors before the codec inside sees them: `forward`, and `backward` on the way out."""

    name: ClassVar[str] = "wrapper"
    source: ClassVar[str] = ""

    inner: Codec

    def forward(self, x: Tensor) -> Tensor:
        """What the codec inside gets."""
        return x

    def backward(self, y: Tensor, head_dim: int) -> Tensor:  # noqa: ARG002 - what pads must cut
        """Undo `forward`."""
        return y

    def inner_dim(self, head_dim: int) -> int:
        """The size of the vectors that reach the codec inside."""
        return head_dim

    @classmethod
    def parameters(cls) -> list[Field[Any]]:
        return [f for f in super().parameters() if f.name != "inner"]

    def data(self) -> dict[str, Any]:
        return {**self.inner.data(), **super().data()}

    @property
    def unit(self) -> int:
        return self.inner.unit

    @property
    def heads(self) -> int:
        return self.inner.heads

    def spanning(self, kv_heads: int) -> Self:
        return replace(self, inner=self.inner.spanning(kv_heads))

    @property
    def tags(self) -> Tags:
        return self.inner.tags

    @property
    def ready(self) -> bool:
        return self.inner.ready

    @property
    def plain(self) -> Codec:
        return self.inner.plain

    def check(self, head_dim: int) -> None:
        self.inner.check(self.inner_dim(head_dim))

    def layout(self, head_dim: int) -> Layout:
        return replace(self.inner.layout(self.inner_dim(head_dim)), heads=self.heads)

    def stored_dim(self, head_dim: int) -> int:
        return self.inner.stored_dim(self.inner_dim(head_dim))

    def transform(self, x: Tensor) -> Tensor:
        return self.inner.transform(self.forward(x))

    def inverse(self, y: Tensor, head_dim: int) -> Tensor:
        return self.backward(self.inner.inverse(y, self.inner_dim(head_dim)), head_dim)

    def calibrate(self, x: Tensor) -> Self:
        return replace(self, inner=self.inner.calibrate(self.forward(x)))

    def quantize(self, y: Tensor) -> Packed:
        return self.inner.quantize(y)

    def dequantize(self, packed: Packed, dtype: torch.dtype) -> Tensor:
        return self.inner.dequantize(packed, dtype)

    def to_blocks(self, packed: Packed) -> Tensor:
        return self.inner.to_blocks(packed)

    def from_blocks(self, blocks: Tensor, head_dim: int) -> Packed:
        return self.inner.from_blocks(blocks, self.inner_dim(head_dim))


@dataclass(frozen=True)
class Rotated(Wrapper):
    """Zero-pads vectors and rotates groups of their channels before the codec inside sees them.

    `rotation_group: n` is groups of n channels, or of the largest power of two below n that divides the vector; 0 is the whole vector.
    """

    rotation: Rotation = "none"
    rotation_group: int = 0
    seed: int = 42
    pad: int = 0  # to a multiple of this; 0 is no padding

    def __post_init__(self) -> None:
        if self.rotation_group < 0 or self.rotation_group & (self.rotation_group - 1):
            raise ConfigError(f"rotation_group must be 0 (the whole vector) or a power of two, got {self.rotation_group}")
        if not 0 <= self.seed < 1 << 32:
            raise ConfigError(f"seed must be a whole number from 0 to 2^32 − 1, got {self.seed}")
        if self.rotation == "none" and (self.rotation_group or self.seed != type(self).seed):
            raise ConfigError("rotation is none, so rotation_group and seed mean nothing")
        if not 0 <= self.pad <= 4096:
            raise ConfigError(f"pad must be a number of channels from 0 (no padding) to 4096, got {self.pad}")
        if self.rotation == "cross_head" and (self.rotation_group or self.pad):
            raise ConfigError("rotation cross_head takes eight whole heads: no rotation_group, no pad")

    @property
    def heads(self) -> int:
        return (8 if self.rotation == "cross_head" else 1) * self.inner.heads

    @property
    def tags(self) -> Tags:
        return self.inner.tags if self.rotation == "none" else replace(self.inner.tags, lossless_in=())

    def check(self, head_dim: int) -> None:
        group = self.group(head_dim)
        if self.rotation != "none" and group < min(self.rotation_group, 64):
            sizes = " or ".join(str(size) for size in sorted({64, self.rotation_group}, reverse=True) if size <= self.rotation_group)
            raise Unsupported(f"head_dim {head_dim} does not split into groups of {sizes} channels to rotate; set pad")
        try:
            rotations.check(self.rotation, group)
            self.inner.check(self.inner_dim(head_dim))
        except Unsupported as reason:
            raise Unsupported(f"head_dim {head_dim}: {reason}") from None

    def group(self, head_dim: int) -> int:
        """Channels that are rotated together."""
        size = self.inner_dim(head_dim)
        return min(self.rotation_group, size & -size) if self.rotation_group else size

    def inner_dim(self, head_dim: int) -> int:
        size = head_dim * (8 if self.rotation == "cross_head" else 1)
        return -(-size // self.pad) * self.pad if self.pad else size

    def forward(self, x: Tensor) -> Tensor:
        if self.rotation == "cross_head":
            return rotations.rotate(x.unflatten(1, (-1, 8)).transpose(2, 3).flatten(-2), self.rotation, 8 * x.shape[-1], self.seed)
        padded = torch.nn.functional.pad(x, (0, self.inner_dim(x.shape[-1]) - x.shape[-1]))
        return rotations.rotate(padded, self.rotation, self.group(x.shape[-1]), self.seed)

    def backward(self, y: Tensor, head_dim: int) -> Tensor:
        x = rotations.unrotate(y, self.rotation, self.group(head_dim), self.seed)
        if self.rotation == "cross_head":
            return x.unflatten(-1, (8, head_dim)).transpose(2, 3).flatten(1, 2)
        return x[..., :head_dim]


@dataclass(frozen=True)
class Centered(Wrapper):
    """Subtracts what each channel is on average, as calibration text shows it. On K a constant per channel changes no softmax, and it is
    what a bias of the key projection adds (llama.cpp #21385)."""

    center: bool = False

    @property
    def tags(self) -> Tags:
        return replace(self.inner.tags, lossless_in=(), calibrated=True)

    @property
    def ready(self) -> bool:
        return self.learned is not None and self.inner.ready

    def forward(self, x: Tensor) -> Tensor:
        return x - self._mean(x)

    def backward(self, y: Tensor, head_dim: int) -> Tensor:  # noqa: ARG002
        return y + self._mean(y)

    def calibrate(self, x: Tensor) -> Self:
        mean = x.mean(dim=(0, 2), keepdim=True)[0].to(torch.float32)  # [kv_heads, 1, head_dim]
        learned = replace(self, learned=Learned(mean=mean))
        return replace(learned, inner=self.inner.calibrate(learned.forward(x)))

    def _mean(self, like: Tensor) -> Tensor:
        if self.learned is None:
            raise Unsupported(f"codec {self.plain.name!r} with center: true must be calibrated before it can encode")
        return self.learned["mean"].to(like.device, like.dtype)


# What a side may add to any codec, innermost first. Their parameters are keys of the side.
WRAPPERS: tuple[type[Wrapper], ...] = (Rotated, Centered)


@dataclass(frozen=True)
class Interleaved(Wrapper):
    """RoPE pairs (i, i + d/2) stored as (2i, 2i + 1), so that a block groups the channels that llama.cpp's does."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)

    def backward(self, y: Tensor, head_dim: int) -> Tensor:  # noqa: ARG002
        return y.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)


@dataclass(frozen=True)
class Heads(Wrapper):
    """Some of the heads that a codec packs together, to be decoded by themselves."""

    name: ClassVar[str] = "heads"
    first: int = 0
    count: int = 1

    @classmethod
    def parameters(cls) -> list[Field[Any]]:
        return []  # which heads they are is no matter of the scheme

    def decode(self, packed: Packed, head_dim: int, dtype: torch.dtype) -> Tensor:
        return self.inner.decode_heads(packed, head_dim, dtype, slice(self.first, self.first + self.count))


@dataclass(frozen=True)
class Bridge(Wrapper):
    """The control that runs store, policy, channel order, rotation and padding, and skips the quantizer."""

    name: ClassVar[str] = "bridge"
    dtype: str = "float32"

    @property
    def tags(self) -> Tags:
        return Tags(lossless_in=("float16", "bfloat16", "float32", "float64"), calibrated=self.inner.tags.calibrated)

    def layout(self, head_dim: int) -> Layout:
        return Layout(self.unit, (Part("values", self.dtype, (self.unit, self.stored_dim(head_dim))),), self.heads)

    @property
    def ready(self) -> bool:
        return True

    def to_blocks(self, packed: Packed) -> Tensor:
        return Codec.to_blocks(self, packed)

    def from_blocks(self, blocks: Tensor, head_dim: int) -> Packed:
        return Codec.from_blocks(self, blocks, head_dim)

    def quantize(self, y: Tensor) -> Packed:
        return {"values": y.to(getattr(torch, self.dtype)).unflatten(-2, (-1, self.unit))}

    def dequantize(self, packed: Packed, dtype: torch.dtype) -> Tensor:
        return packed["values"].flatten(2, 3).to(dtype)


@dataclass(frozen=True)
class Identity(Bridge):
    """The control that runs store and policy only: what comes out is bit for bit what went in."""

    name: ClassVar[str] = "identity"

    @property
    def heads(self) -> int:
        return 1

    @property
    def tags(self) -> Tags:
        return replace(super().tags, calibrated=False, across_layers=False)  # nothing of the codec inside runs

    def stored_dim(self, head_dim: int) -> int:
        return head_dim

    def transform(self, x: Tensor) -> Tensor:
        return x

    def inverse(self, y: Tensor, head_dim: int) -> Tensor:  # noqa: ARG002
        return y
