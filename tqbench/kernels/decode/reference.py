"""The codec's own mathematics."""

from __future__ import annotations

from torch import Tensor

from tqbench.core.codec import Codec, Packed, compute_dtype


def decode(codec: Codec, packed: Packed, head_dim: int, like: Tensor) -> Tensor:
    """Decode in the compute dtype of `like`."""
    return codec.decode(packed, head_dim, compute_dtype(like.dtype))
