"""From a side of a scheme to the codec that runs on a model: channel order, keys before RoPE, calibration, controls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tqbench.cache.calibration import Calibration
from tqbench.cache.rope import Rope
from tqbench.codecs.blocks.wrap import Bridge, Identity, Interleaved, resolve_order
from tqbench.core.codec import Codec
from tqbench.core.errors import Unsupported
from tqbench.core.scheme import Scheme, Side


@dataclass(frozen=True)
class Shape:
    """What a store must know of the model."""

    architecture: str
    head_dim: int
    dtype: str  # of the model
    kv_heads: int = 2
    heads: int = 2
    rope: Rope | str = "this backend does not tell"  # or why it is not known

    @property
    def sharing(self) -> int:
        """Query heads per KV head."""
        return self.heads // self.kv_heads


@dataclass(frozen=True)
class Layer:
    """Which layer a store serves, and how far back its queries see."""

    index: int = 0  # in the model
    position: int = 0  # among the layers that hold K and V
    reach: int | None = None  # positions that a query sees, itself included, in a sliding window; None is all


def rope_of(side: Side, shape: Shape, bypass: str | None) -> Rope | None:
    """The embedding to take out of what this side stores."""
    if side.rope == "post" or bypass == "identity":
        return None
    if isinstance(shape.rope, str):
        needed = f"rope: pre needs the model's rotary frequencies, which are not known for architecture {shape.architecture!r} here"
        raise Unsupported(f"{needed}: {shape.rope}")
    return shape.rope


def build(scheme: Scheme, name: Literal["k", "v"], shape: Shape, layer: Layer, calibration: Calibration | None = None) -> Codec:
    """The codec that one side runs in this layer, calibrated."""
    side: Side = getattr(scheme, name)
    side.check(shape.head_dim, shape.kv_heads)
    order = resolve_order(side.order, shape.architecture)
    if scheme.bypass == "identity":
        return Identity(side.codec, shape.dtype)
    codec = (Interleaved(side.codec) if order == "interleaved" else side.codec).spanning(shape.kv_heads)
    if codec.tags.calibrated:
        if calibration is None:
            raise Unsupported(f"scheme {scheme.name!r} must be calibrated, and no calibration text was given")
        codec = calibration.fit(codec, name, layer.position, rope_of(side, shape, scheme.bypass), scheme.sinks)
    return Bridge(codec, shape.dtype) if scheme.bypass == "bridge" else codec
