"""Codecs on MLX without an MLX form: the arrays cross to torch and back, and the record calls it `reference (host)`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tqbench.core.codec import Codec, Packed


def to_torch(array: Any) -> Tensor:
    """An MLX array as a torch tensor on the host."""
    return (
        torch.utils.dlpack.from_dlpack(array)
        if array.size
        else torch.empty(array.shape, dtype=getattr(torch, str(array.dtype).rpartition(".")[2]))
    )


def to_mlx(tensor: Tensor) -> Any:
    """A torch tensor as an MLX array."""
    import mlx.core as mx

    if tensor.dtype == torch.bfloat16:
        return mx.array(tensor.float().numpy()).astype(mx.bfloat16)
    return mx.array(tensor.contiguous().numpy())


def encode(codec: Codec, x: Any) -> Packed:
    """Encode on the host; the arrays live on MLX."""
    return {name: to_mlx(array) for name, array in codec.encode(to_torch(x)).items()}


def decode(codec: Codec, packed: Packed, head_dim: int, like: Any) -> Any:
    """Decode on the host to an MLX array of the dtype of `like`."""
    dtype = to_torch(like[..., :0]).dtype
    return to_mlx(codec.decode({name: to_torch(array) for name, array in packed.items()}, head_dim, dtype))
