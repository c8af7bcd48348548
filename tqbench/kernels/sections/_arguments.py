"""What forms that read memory as it lies ask of their arguments."""

from __future__ import annotations

import torch
from torch import Tensor

from tqbench.core.errors import EvidenceError


def dense(form: str, codes: Tensor, minima: Tensor, steps: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Codes with their minima and steps without gaps; in other types or shapes than `quantize` gives they are refused."""
    kinds = (codes.dtype, minima.dtype, steps.dtype, dtype)
    if kinds != (torch.int32, torch.float16, torch.float16, torch.float32) or not minima.shape == steps.shape == codes.shape[:-1]:
        raise EvidenceError(f"sections/{form} takes int32 codes with fp16 minima and steps to float32, not {kinds} {list(codes.shape)}")
    return codes.contiguous(), minima.contiguous(), steps.contiguous()
