"""Projection through the native library; the matrices are laid out once for a codec."""

from __future__ import annotations

import ctypes
from ctypes import c_int64, c_void_p
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from tqbench.codecs.kvtc_lite import KvtcLite
from tqbench.core.errors import EvidenceError
from tqbench.kernels import native

TILE, CHANNELS = 8, 32  # kTile and kChannels of project.hpp
NOT_FINITE, NO_MEMORY = 2, 3  # what tqbench_project returns


@cache
def _library() -> ctypes.CDLL:
    library = native.library()
    library.tqbench_project.argtypes = [c_void_p] * 6
    library.tqbench_unproject.argtypes = [c_void_p] * 5
    return library


@lru_cache(maxsize=512)
def _there(codec: KvtcLite, heads: int) -> tuple[Tensor, Tensor]:
    """Mean and matrix on the way in: tiles of eight components, channel after channel."""
    mean, basis = (codec.table(name, torch.empty(1, heads)).cpu() for name in ("mean", "basis"))
    basis = basis[..., : codec.active()]
    tiles = torch.nn.functional.pad(basis, (0, -basis.shape[-1] % TILE)).unflatten(-1, (-(-basis.shape[-1] // TILE), TILE))
    return mean.contiguous(), tiles.transpose(1, 2).contiguous()


@lru_cache(maxsize=512)
def _back(codec: KvtcLite, heads: int) -> tuple[Tensor, Tensor]:
    """The same on the way back, in float32: panels of 32 channels, component after component."""
    mean, basis = (codec.table(name, torch.empty(1, heads)).float().cpu() for name in ("mean", "basis"))
    panels = torch.nn.functional.pad(basis[..., : codec.active()].mT, (0, -basis.shape[1] % CHANNELS))
    panels = panels.unflatten(-1, (panels.shape[-1] // CHANNELS, CHANNELS))
    return mean.contiguous(), panels.transpose(1, 2).contiguous()


def project(codec: KvtcLite, x: Tensor) -> Tensor | None:
    """Rows of float32 vectors; None if x is not finite."""
    if x.dtype != torch.float32 or x.device.type != "cpu" or x.dim() != 4 or x.shape[2] % codec.section:
        raise EvidenceError(f"project/native takes float32 on the CPU, {codec.section} tokens together, not {x.dtype} {list(x.shape)}")
    if x.stride(3) != 1:
        x = x.contiguous()
    batch, heads, tokens, head_dim = x.shape
    mean, tiles = _there(codec, heads)
    if (len(mean), mean.shape[-1]) != (heads, head_dim):
        raise EvidenceError(f"project/native: learned for {list(mean.shape)}, given {list(x.shape)}")
    rows = torch.empty(batch, heads, tokens // codec.section, codec.active(), codec.section)
    given = (_array(*x.stride()[:3]), _sizes(rows, head_dim))
    status = _library().tqbench_project(x.data_ptr(), *given, mean.data_ptr(), tiles.data_ptr(), rows.data_ptr())
    if status == NOT_FINITE:
        return None
    if status:
        raise EvidenceError(_refusal(status, x))
    return rows


def unproject(codec: KvtcLite, rows: Tensor, head_dim: int) -> Tensor:
    """Vectors of float32 rows."""
    rows = rows.contiguous()
    batch, heads, units, active, section = rows.shape
    mean, panels = _back(codec, heads)
    if rows.dtype != torch.float32 or (len(mean), mean.shape[-1], codec.active()) != (heads, head_dim, active):
        raise EvidenceError(f"project/native: learned for {list(mean.shape)}, given {rows.dtype} {list(rows.shape)} of {head_dim} channels")
    x = torch.empty(batch, heads, units * section, head_dim)
    status = _library().tqbench_unproject(rows.data_ptr(), _sizes(rows, head_dim), mean.data_ptr(), panels.data_ptr(), x.data_ptr())
    if status:
        raise EvidenceError(_refusal(status, rows))
    return x


def _refusal(status: int, x: Tensor) -> str:
    return f"project/native {'is out of memory for' if status == NO_MEMORY else 'refused its arguments:'} {list(x.shape)}"


def _sizes(rows: Tensor, head_dim: int) -> Any:
    batch, heads, units, active, section = rows.shape
    return _array(batch, heads, units, section, head_dim, active)


def _array(*numbers: int) -> Any:
    return (c_int64 * len(numbers))(*numbers)
