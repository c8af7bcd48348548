"""The butterfly through the native library."""

from __future__ import annotations

import ctypes
from ctypes import c_int64, c_void_p
from functools import cache

import torch
from torch import Tensor

from tqbench.codecs.blocks import rotations
from tqbench.core.errors import EvidenceError
from tqbench.kernels import native


@cache
def _library() -> ctypes.CDLL:
    library = native.library()
    for name in ("tqbench_hadamard_float32", "tqbench_hadamard_float64"):
        getattr(library, name).argtypes = [c_void_p, c_void_p, c_int64, c_int64]
    return library


def hadamard(x: Tensor) -> Tensor:
    """H x / √n in the dtype of x, float32 or float64, n up to 4096."""
    if x.dtype not in (torch.float32, torch.float64) or x.device.type != "cpu" or not x.dim():
        raise EvidenceError(f"hadamard/native takes float32 or float64 on the CPU, not {x.dtype} {list(x.shape)} on {x.device}")
    n = x.shape[-1]
    rotations.check("hadamard", n)
    x = x.contiguous()
    out = torch.empty_like(x)
    run = _library().tqbench_hadamard_float32 if x.dtype == torch.float32 else _library().tqbench_hadamard_float64
    if run(x.data_ptr(), out.data_ptr(), x.numel() // n if n else 0, n):
        raise EvidenceError(f"hadamard/native refused its arguments: {list(x.shape)}")
    return out
