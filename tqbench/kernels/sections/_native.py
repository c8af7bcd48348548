"""Codes of sections through the native library."""

from __future__ import annotations

import ctypes
from ctypes import c_int64, c_void_p
from functools import cache

import torch
from torch import Tensor

from tqbench.codecs.blocks.packing import Widths
from tqbench.core.errors import EvidenceError
from tqbench.kernels import native
from tqbench.kernels.packbits._native import table
from tqbench.kernels.sections._arguments import dense

OVERFLOW = 3  # what tqbench_quantize_sections returns: infinity stands in what it has written


@cache
def _library() -> ctypes.CDLL:
    library = native.library()
    library.tqbench_quantize_sections.argtypes = [c_void_p] * 2 + [c_int64] * 5 + [c_void_p] * 3
    library.tqbench_dequantize_sections.argtypes = [c_void_p] * 3 + [c_int64] * 3 + [c_void_p]
    return library


def quantize(rows: Tensor, widths: Widths) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, minima and steps of float32 rows."""
    each, rows = table(widths), rows.contiguous()
    if rows.dtype != torch.float32 or rows.dim() != 5 or each.shape != (rows.shape[1], rows.shape[3]):
        raise EvidenceError(f"sections/native takes float32 rows of {list(each.shape)} widths, not {rows.dtype} {list(rows.shape)}")
    batch, heads, units, components, count = rows.shape
    codes = torch.empty(rows.shape, dtype=torch.int32)
    minima, steps = (torch.empty(rows.shape[:-1], dtype=torch.float16) for _ in range(2))
    sizes = (batch * heads * units, heads, units, components, count)
    out = (codes.data_ptr(), minima.data_ptr(), steps.data_ptr())
    if _library().tqbench_quantize_sections(rows.data_ptr(), each.data_ptr(), *sizes, *out) not in (0, OVERFLOW):
        raise EvidenceError(f"sections/native refused its arguments: {list(rows.shape)}")
    return codes, minima, steps


def dequantize(codes: Tensor, minima: Tensor, steps: Tensor, dtype: torch.dtype) -> Tensor:
    """Float32 rows."""
    codes, minima, steps = dense("native", codes, minima, steps, dtype)
    rows, count = torch.empty(codes.shape), codes.shape[-1]
    components = codes.shape[-2]
    sections = minima.numel() // components if components else 0
    given = (codes.data_ptr(), minima.data_ptr(), steps.data_ptr(), sections, components, count, rows.data_ptr())
    if _library().tqbench_dequantize_sections(*given):
        raise EvidenceError(f"sections/native refused its arguments: {list(codes.shape)}")
    return rows
