"""Encode and decode of codec `kvtc_lite` natively: its stages one after another, each of which is an operation of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from tqbench.codecs.kvtc_lite import KvtcLite
from tqbench.core.codec import Packed
from tqbench.core.errors import EvidenceError
from tqbench.kernels.packbits import _native as packbits
from tqbench.kernels.project import _native as projection
from tqbench.kernels.sections import _native as sections
from tqbench.measure.stages import stage


def encode(codec: KvtcLite, x: Tensor) -> Packed:
    """Project, quantize, pack. What cannot be encoded is refused in the reference's words."""
    if x.shape[2] % codec.section or not codec.ready:
        return _refusal(codec, x)
    head_dim, active = x.shape[3], codec.active()
    with stage("project"):
        rows = projection.project(codec, x.float())
    if rows is None:
        return _refusal(codec, x)
    widths = codec.widths(x.shape[1])
    with stage("quantize"):
        codes, *ranges = sections.quantize(rows, widths)
        minima, steps = (torch.nn.functional.pad(each, (0, codec.slots(head_dim) - active)) for each in ranges)
    if not bool(torch.isfinite(minima).all() & torch.isfinite(steps).all()):
        return _refusal(codec, x)
    with stage("pack"):
        packed = packbits.pack_mixed(codes, widths, codec.code_bytes(head_dim))
    return {"codes": packed, "minima": minima, "steps": steps}


def decode(codec: KvtcLite, arrays: Packed, head_dim: int) -> Tensor:
    """Unpack, dequantize, project back."""
    active = codec.active()
    with stage("unpack"):
        codes = packbits.unpack_mixed(arrays["codes"], codec.widths(arrays["codes"].shape[1]), codec.section)
    with stage("dequantize"):
        rows = sections.dequantize(codes, arrays["minima"][..., :active], arrays["steps"][..., :active], torch.float32)
    with stage("unproject"):
        return projection.unproject(codec, rows, head_dim)


def _refusal(codec: KvtcLite, x: Tensor) -> Packed:
    codec.encode(x)
    raise EvidenceError(f"encode/native cannot encode what the reference can: {x.dtype} {list(x.shape)} for codec {codec.name!r}")
