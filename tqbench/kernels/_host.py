"""Codecs on MLX without an MLX form: the arrays cross to torch and back, and the record calls it `reference (host)`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tqbench.core.codec import Codec, Packed, compute_dtype


def to_torch(array: Any) -> Tensor:
    """An MLX array as a torch tensor on the host, in memory of its own."""
    import mlx.core as mx

    if array.dtype == mx.bfloat16:  # NumPy has none: the bits cross
        return to_torch(array.view(mx.uint16)).view(torch.bfloat16)
    return torch.from_numpy(np.array(array, order="C"))


def to_mlx(tensor: Tensor) -> Any:
    """A torch tensor as an MLX array."""
    import mlx.core as mx

    if tensor.dtype == torch.bfloat16:
        return to_mlx(tensor.view(torch.uint16)).view(mx.bfloat16)
    return mx.array(tensor.numpy(), dtype=getattr(mx, _name(tensor.dtype)))  # said, because MLX narrows float64 by itself


def encode(codec: Codec, x: Any) -> Packed:
    """Encode on the host; the arrays live on MLX."""
    return {name: to_mlx(array) for name, array in codec.encode(to_torch(x)).items()}


def decode(codec: Codec, packed: Packed, head_dim: int, like: Any) -> Any:
    """Decode on the host in the compute dtype of `like`, as the reference does."""
    dtype = compute_dtype(getattr(torch, _name(like.dtype)))
    return to_mlx(codec.decode({name: to_torch(array) for name, array in packed.items()}, head_dim, dtype))


def _name(dtype: Any) -> str:
    """`float32` for torch.float32 and for mlx.core.float32."""
    return str(dtype).rpartition(".")[2]
