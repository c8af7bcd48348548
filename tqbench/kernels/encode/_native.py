"""Six formats through the native library: one plan per codec and head_dim, one call per encode. `kvtc_lite` has stages instead."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_int64
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from tqbench.codecs.kvtc_lite import KvtcLite
from tqbench.core.codec import Codec, Packed
from tqbench.core.errors import EvidenceError
from tqbench.kernels import _sections, native
from tqbench.kernels.encode import _plan
from tqbench.kernels.encode._plan import TYPES, Input, Output, Plan

_TYPE_OF = {getattr(torch, name): i for i, name in enumerate(TYPES)}
_NOT_FINITE, _OVERFLOW, _NO_MEMORY = 2, 3, 4  # what tqbench_encode returns

Array = tuple[str, tuple[int, ...], torch.dtype, str, int]  # name, shape of one unit, dtype, the field of Output and the place in it


@dataclass(frozen=True)
class Ready:
    """A codec for one head_dim."""

    plan: Plan
    unit: int
    arrays: tuple[Array, ...]
    run: Any


def supports(codec: Codec) -> str | None:
    """Why this codec cannot be encoded natively, or None."""
    return None if type(codec) is KvtcLite else _plan.refuses(codec)


@cache
def _library() -> ctypes.CDLL:
    library = native.library()
    library.tqbench_encode_check.argtypes = [POINTER(Plan)]
    library.tqbench_encode.argtypes = [POINTER(Plan), POINTER(Input), POINTER(Output)]
    return library


@lru_cache(maxsize=512)
def _ready(codec: Codec, head_dim: int) -> Ready:
    plan, library = _plan.build(codec, head_dim), _library()
    if library.tqbench_encode_check(plan):
        raise EvidenceError(f"encode/native refuses the plan of codec {codec.plain.name!r} for head_dim {head_dim}")
    arrays, counts = [], {"planes": 0, "kept": 0, "": 0}
    for part in codec.layout(head_dim).parts:
        field = "" if part.name == "reserved" else "planes" if part.role == "payload" else "kept"
        arrays.append((part.name, part.shape, getattr(torch, part.dtype), field, counts[field]))
        counts[field] += 1
    return Ready(plan, codec.unit, tuple(arrays), library.tqbench_encode)


def encode(codec: Codec, x: Tensor) -> Packed:
    """Encode float32, bfloat16 or float16 vectors, as `supports` and the op record promise; x may be strided."""
    if x.dtype not in _TYPE_OF or x.device.type != "cpu" or x.dim() != 4:
        raise EvidenceError(f"encode/native takes {', '.join(TYPES)} on the CPU as [batch, kv_heads, tokens, head_dim], not {_describe(x)}")
    if isinstance(codec, KvtcLite):
        return _sections.encode(codec, x)
    if x.shape[2] % codec.unit or not codec.ready:
        return _refusal(codec, x)
    ready = _ready(codec, x.shape[3])
    lead = (*x.shape[:2], x.shape[2] // ready.unit)
    packed, output = {}, Output()
    for name, shape, dtype, field, place in ready.arrays:
        array = packed[name] = torch.empty(lead + shape, dtype=dtype) if field else torch.zeros(lead + shape, dtype=dtype)
        if field:
            getattr(output, field)[place] = array.data_ptr()
    given = Input(x.data_ptr(), _TYPE_OF[x.dtype], *x.shape[:3], (c_int64 * 4)(*x.stride()))
    status = ready.run(ready.plan, given, output)
    if status in (_NOT_FINITE, _OVERFLOW):
        return _refusal(codec, x)
    if status == _NO_MEMORY:
        raise EvidenceError("encode/native: out of memory")
    if status:
        raise EvidenceError(f"encode/native refused its arguments: {_describe(x)} for codec {codec.plain.name!r}")
    return packed


def _refusal(codec: Codec, x: Tensor) -> Packed:
    """What cannot be encoded is refused in the reference's words."""
    codec.encode(x)
    raise EvidenceError(f"encode/native cannot encode what the reference can: {_describe(x)} for codec {codec.plain.name!r}")


def _describe(x: Tensor) -> str:
    return f"{x.dtype} {list(x.shape)} on {x.device}"
