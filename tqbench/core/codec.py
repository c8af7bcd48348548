"""What every codec is: a tensor in, named arrays out, and a layout that says beforehand how many bytes that takes.

Shapes are always [batch, kv_heads, tokens, head_dim]. A codec encodes `unit` tokens (and, rarely, several heads) together; its arrays have
the shape [batch, kv_heads / heads, units, *part.shape], so a store can append units in place and count every byte.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, replace
from functools import cached_property
from math import prod
from typing import Any, ClassVar, Literal, Self

from tqbench.core.errors import Unsupported
from tqbench.core.lazy import Tensor, torch
from tqbench.core.sound import require

ITEMSIZE = {"uint8": 1, "int8": 1, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True)
class Part:
    """One array of a layout: its name, element type, shape for one unit of one head, and what it counts as."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    role: Literal["payload", "metadata"] = "payload"

    @property
    def nbytes(self) -> int:
        """Bytes of this array for one unit of one head."""
        return ITEMSIZE[self.dtype] * prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """The resident bytes of one unit: `unit` tokens of one KV head, or of `heads` KV heads that are encoded together."""

    unit: int
    parts: tuple[Part, ...]
    heads: int = 1

    @property
    def nbytes(self) -> int:
        """Bytes of one unit."""
        return sum(part.nbytes for part in self.parts)

    def bits(self, head_dim: int) -> float:
        """Bits per value, scales and norms included."""
        return 8 * self.nbytes / (self.unit * self.heads * head_dim)


Order = Literal["native", "half_split", "interleaved", "llamacpp"]  # of the channels of a RoPE pair


@dataclass(frozen=True)
class Tags:
    """What a codec declares about itself; checks and audits choose by these."""

    lossless_in: tuple[str, ...] = ()  # model dtypes that survive encode and decode bit for bit
    destructive: bool = False  # a control that must ruin the model
    calibrated: bool = False  # must `learn` from other text before it can encode
    peer: bool = False  # another library's cache: it runs by itself, and our store and kernels do not
    backend: str | None = None  # the only one that it runs on
    deploy_only: bool = False  # attends what a forward call brings exact, so there is no `protocol: strict`
    learned_layout: bool = False  # how many bytes it takes is learned too; before, `layout` says how many at most
    learns_packed: bool = False  # from calibration tokens that a store would pack: sinks are left out
    across_layers: bool = False  # a token's vectors of all layers are packed together


Packed = dict[str, Any]  # part name -> array [batch, kv_heads / heads, units, *part.shape]; a torch or an MLX array


class Learned(dict[str, Any]):
    """What a codec has learned from calibration text: arrays by name. It is as equal as its bytes are."""

    @cached_property
    def sha256(self) -> str:
        """The hash of all arrays."""
        digest = hashlib.sha256()
        for name, array in sorted(self.items()):
            digest.update(f"{name} {tuple(array.shape)} {array.dtype} ".encode() + array.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def made(self) -> dict[Any, Any]:
        """What kernels have made of it, such as copies on a device: it lives no longer than this does."""
        return {}

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(self.sha256)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Learned) and self.sha256 == other.sha256


def nbytes(packed: Mapping[str, Any]) -> int:
    """Bytes of the arrays that exist."""
    return sum(int(array.nbytes) for array in packed.values())


@dataclass(frozen=True)
class Codec(ABC):
    """One way to store a K or V tensor. Subclasses hold the mathematics and nothing else.

    `transform` is the exactly invertible part (rotation, padding, channel order), `quantize` the lossy part; `encode` and `decode`
    compose them. The `bridge` control runs everything but the lossy part.
    """

    name: ClassVar[str]
    source: ClassVar[str]

    learned: Learned | None = field(default=None, kw_only=True, repr=False)

    @classmethod
    def parameters(cls) -> list[Field[Any]]:
        """What a user may set."""
        return [f for f in fields(cls) if f.name != "learned"]

    def data(self) -> dict[str, Any]:
        """What a user must set to get this codec: its parameters that are not the default."""
        return {f.name: getattr(self, f.name) for f in self.parameters() if getattr(self, f.name) != f.default}

    @property
    def unit(self) -> int:
        """Tokens that are encoded together."""
        return 1

    @property
    def heads(self) -> int:
        """KV heads that are encoded together."""
        return 1

    def spanning(self, kv_heads: int) -> Self:  # noqa: ARG002 - most codecs have their own number, or one
        """This codec where that many KV heads are at hand: one that packs all of them together now knows how many they are."""
        return self

    @property
    def tags(self) -> Tags:
        """What this codec declares about itself."""
        return Tags()

    @property
    def ready(self) -> bool:
        """Whether it can encode: what must be learned has been."""
        return not self.tags.calibrated or self.learned is not None

    @property
    def plain(self) -> Codec:
        """The codec without what is wrapped around it."""
        return self

    def check(self, head_dim: int) -> None:  # noqa: B027 - most codecs take every head_dim
        """Raise Unsupported if this codec cannot store vectors of this size."""

    @abstractmethod
    def layout(self, head_dim: int) -> Layout:
        """The resident bytes of one unit."""

    def listed_bits(self, head_dim: int) -> float:
        """Bits per value, scales included; the most that it may be where the layout is learned."""
        return self.layout(head_dim).bits(head_dim)

    def stored_dim(self, head_dim: int) -> int:
        """Values per vector after `transform` (padding makes it larger)."""
        return head_dim

    def transform(self, x: Tensor) -> Tensor:
        """The invertible part."""
        return x

    def inverse(self, y: Tensor, head_dim: int) -> Tensor:  # noqa: ARG002 - padded codecs cut back to it
        """Undo `transform`."""
        return y

    @abstractmethod
    def quantize(self, y: Tensor) -> Packed:
        """The lossy part."""

    @abstractmethod
    def dequantize(self, packed: Packed, dtype: torch.dtype) -> Tensor:
        """The values that `quantize` kept."""

    def learn(self, y: Tensor) -> Mapping[str, Tensor]:
        """What to keep from calibration vectors [1, kv_heads, tokens, head_dim] that have been transformed; tables per head have the
        heads first."""
        raise NotImplementedError(f"codec {self.name!r} is not calibrated")

    def calibrate(self, x: Tensor) -> Self:
        """This codec after it has seen calibration vectors of its layer and side."""
        if not self.tags.calibrated:
            return self
        return replace(self, learned=Learned(self.learn(self.transform(x.to(compute_dtype(x.dtype))))))

    def encode(self, x: Tensor) -> Packed:
        """Pack [batch, kv_heads, tokens, head_dim]; tokens must be a multiple of `unit`."""
        if x.shape[-2] % self.unit:
            raise Unsupported(f"codec {self.plain.name!r} encodes {self.unit} tokens together, got {x.shape[-2]}")
        if not self.ready:
            raise Unsupported(f"codec {self.plain.name!r} must be calibrated before it can encode")
        who = f"codec {self.plain.name!r}"
        require(torch.isfinite(x).all(), f"{who}: keys or values contain NaN or infinity")
        packed = self.quantize(self.transform(x.to(compute_dtype(x.dtype))))
        for name, array in packed.items():
            if array.is_floating_point():
                over = f"overflow its {array.dtype} {name}"
                require(torch.isfinite(array).all(), f"{who}: values {over}", lambda over=over: f"{who}: values up to {_largest(x)} {over}")  # type: ignore[misc]
        return packed

    def decode(self, packed: Packed, head_dim: int, dtype: torch.dtype) -> Tensor:
        """Unpack to [batch, kv_heads, tokens, head_dim]."""
        return self.inverse(self.dequantize(packed, dtype), head_dim)

    def decode_heads(self, packed: Packed, head_dim: int, dtype: torch.dtype, heads: slice) -> Tensor:
        """Some of the heads of `decode`; whoever packs many together need not unpack them all."""
        return self.decode(packed, head_dim, dtype)[:, heads]

    def to_blocks(self, packed: Packed) -> Tensor:
        """The bytes [batch, kv_heads, units, bytes] of the project that the format comes from; by default the parts one after another."""
        return torch.cat([as_bytes(packed[part]) for part in packed], dim=-1)

    def from_blocks(self, blocks: Tensor, head_dim: int) -> Packed:
        """Undo `to_blocks`."""
        packed, start = {}, 0
        for part in self.layout(head_dim).parts:
            raw = blocks[..., start : start + part.nbytes].contiguous()
            packed[part.name] = raw.view(getattr(torch, part.dtype)).reshape(*raw.shape[:3], *part.shape)
            start += part.nbytes
        return packed


def _largest(x: Tensor) -> str:
    return f"{float(x.abs().max()):.3g}"


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Codecs compute in float32, and in float64 when the model does (the oracle)."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def as_bytes(array: Tensor) -> Tensor:
    """One unit's values as a flat run of bytes: [batch, kv_heads, units, bytes]."""
    return array.contiguous().view(torch.uint8).reshape(*array.shape[:3], -1)
