"""Numbers that a codec is made of, as tensors: made once for each device, because a copy to one makes the host wait for it."""

from __future__ import annotations

from functools import lru_cache

from tqbench.core.lazy import Tensor, torch


@lru_cache(maxsize=1024)
def constants(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """These numbers; nobody may write into them."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)
