"""The codec's own mathematics."""

from __future__ import annotations

from torch import Tensor

from tqbench.core.codec import Codec, Packed


def encode(codec: Codec, x: Tensor) -> Packed:
    """Encode in the compute dtype of x."""
    return codec.encode(x)
