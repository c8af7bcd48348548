"""Codec `kvtc_lite` as its stages one after another, all in one form of their operations. Its native and Triton encode and decode are
these; in Triton's, projections are torch's matrix products on the device, and no stage waits for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tqbench.codecs.kvtc_lite import KvtcLite
from tqbench.core.codec import Packed
from tqbench.core.errors import EvidenceError
from tqbench.core.op import Op
from tqbench.kernels.packbits import PACK_MIXED, UNPACK_MIXED
from tqbench.kernels.project import PROJECT, UNPROJECT
from tqbench.kernels.sections import DEQUANTIZE, QUANTIZE
from tqbench.measure.stages import stage

FORMS = tuple(impl.name for impl in QUANTIZE.impls)


@dataclass(frozen=True)
class Stages:
    """The operations, each in the same form."""

    project: Callable[..., Any]
    quantize: Callable[..., Any]
    pack: Callable[..., Any]
    unpack: Callable[..., Any]
    dequantize: Callable[..., Any]
    unproject: Callable[..., Any]


@cache
def stages(form: str) -> Stages:
    """All stages in one of `FORMS`."""
    return Stages(*(_load(op, form) for op in (PROJECT, QUANTIZE, PACK_MIXED, UNPACK_MIXED, DEQUANTIZE, UNPROJECT)))


def _load(op: Op, form: str) -> Callable[..., Any]:
    found = {impl.name: impl for impl in op.impls}
    return found.get(form, found["torch"]).load()  # a matrix product has no form in Triton


def encode(codec: KvtcLite, x: Tensor, form: str = "native") -> Packed:
    """Project, quantize, pack. What cannot be encoded is refused in the reference's words."""
    if x.shape[2] % codec.section or not codec.ready:
        return _refusal(codec, x)
    run, head_dim, widths = stages(form), x.shape[3], codec.widths(x.shape[1])
    with stage("project"):
        rows = run.project(codec, x.float())
    if rows is None:
        return _refusal(codec, x)
    with stage("quantize"):
        codes, *ranges = run.quantize(rows, widths)
        minima, steps = (torch.nn.functional.pad(each, (0, codec.slots(head_dim) - codec.active())) for each in ranges)
        finite = form == "triton" or bool(torch.isfinite(minima).all() & torch.isfinite(steps).all())
    if not finite:
        return _refusal(codec, x)
    with stage("pack"):
        packed = run.pack(codes, widths, codec.code_bytes(head_dim))
    return {"codes": packed, "minima": minima, "steps": steps}


def decode(codec: KvtcLite, arrays: Packed, head_dim: int, form: str = "native") -> Tensor:
    """Unpack, dequantize, project back."""
    run, active = stages(form), codec.active()
    with stage("unpack"):
        codes = run.unpack(arrays["codes"], codec.widths(arrays["codes"].shape[1]), codec.section)
    with stage("dequantize"):
        rows = run.dequantize(codes, arrays["minima"][..., :active], arrays["steps"][..., :active], torch.float32)
    with stage("unproject"):
        return run.unproject(codec, rows, head_dim)


def _refusal(codec: KvtcLite, x: Tensor) -> Packed:
    codec.encode(x)
    raise EvidenceError(f"encode/native cannot encode what the reference can: {x.dtype} {list(x.shape)} for codec {codec.name!r}")
