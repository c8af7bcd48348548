"""Bit streams through the native library."""

from __future__ import annotations

import ctypes
from ctypes import c_int, c_int64, c_void_p
from functools import cache, lru_cache

import torch
from torch import Tensor

from tqbench.codecs.blocks.packing import Widths
from tqbench.core.errors import EvidenceError
from tqbench.kernels import native


@cache
def _library() -> ctypes.CDLL:
    library = native.library()
    for name in ("tqbench_packbits", "tqbench_unpackbits"):
        getattr(library, name).argtypes = [c_void_p, c_void_p, c_int64, c_int]
    for name in ("tqbench_pack_mixed", "tqbench_unpack_mixed"):
        getattr(library, name).argtypes = [c_void_p, c_void_p, *(c_int64,) * 6, c_void_p]
    return library


def pack(codes: Tensor, bits: int, dim: int = -1) -> Tensor:
    """Pack codes along `dim`; their number must end on a byte."""
    codes = _rows(codes, bits, dim)
    if codes.shape[-1] * bits % 8:
        raise EvidenceError(f"packbits/native: {codes.shape[-1]} codes of {bits} bits do not end on a byte")
    return _run("tqbench_packbits", codes, codes.shape[-1] * bits // 8, bits, dim).contiguous()


def unpack(packed: Tensor, bits: int, dim: int = -1) -> Tensor:
    """Undo `pack`."""
    packed = _rows(packed, bits, dim)
    if packed.shape[-1] * 8 % bits:
        raise EvidenceError(f"packbits/native: {packed.shape[-1]} bytes are no whole number of codes of {bits} bits")
    return _run("tqbench_unpackbits", packed, packed.shape[-1] * 8 // bits, bits, dim)


def _rows(x: Tensor, bits: int, dim: int) -> Tensor:
    if x.dtype != torch.uint8 or x.device.type != "cpu" or not 1 <= bits <= 8:
        raise EvidenceError(f"packbits/native takes uint8 on the CPU and 1 to 8 bits, not {x.dtype} on {x.device} and {bits} bits")
    return x.movedim(dim, -1).contiguous()


def _run(name: str, x: Tensor, size: int, bits: int, dim: int) -> Tensor:
    """Rows end on bytes, so all of them are one stream."""
    out = torch.empty((*x.shape[:-1], size), dtype=torch.uint8)
    codes = x.numel() if name == "tqbench_packbits" else out.numel()
    if getattr(_library(), name)(x.data_ptr(), out.data_ptr(), codes, bits):
        raise EvidenceError(f"packbits/native refused its arguments: {list(x.shape)} of {bits} bits")
    return out.movedim(-1, dim)


@lru_cache(maxsize=1024)
def table(widths: Widths) -> Tensor:
    """Widths as bytes [heads, components]."""
    return torch.tensor(widths, dtype=torch.uint8)


def pack_mixed(codes: Tensor, widths: Widths, size: int) -> Tensor:
    """Pack each component with its own bits; zeros follow up to `size` bytes."""
    codes = codes.contiguous()
    out = torch.empty(*codes.shape[:3], size, dtype=torch.uint8)
    _mixed("tqbench_pack_mixed", codes, out, widths, out)
    return out


def unpack_mixed(packed: Tensor, widths: Widths, count: int) -> Tensor:
    """Undo `pack_mixed`."""
    packed = packed.contiguous()
    codes = torch.empty(*packed.shape[:3], len(widths[0]) if widths else 0, count, dtype=torch.int32)
    _mixed("tqbench_unpack_mixed", codes, packed, widths, codes)
    return codes


def _mixed(name: str, codes: Tensor, packed: Tensor, widths: Widths, out: Tensor) -> None:
    each, given = table(widths), packed if out is codes else codes
    kinds = (codes.dtype, packed.dtype, given.device.type)
    if kinds != (torch.int32, torch.uint8, "cpu") or codes.dim() != 5 or each.shape != (codes.shape[1], codes.shape[3]):
        raise EvidenceError(f"packbits/native takes int32 codes of {list(each.shape)} widths on the CPU, not {kinds} {list(codes.shape)}")
    batch, heads, units, components, count = codes.shape
    sizes = (batch * heads * units, heads, units, components, count, packed.shape[-1])
    if getattr(_library(), name)(given.data_ptr(), each.data_ptr(), *sizes, out.data_ptr()):
        raise EvidenceError(f"packbits/native refused its arguments: {list(codes.shape)} in {packed.shape[-1]} bytes")
