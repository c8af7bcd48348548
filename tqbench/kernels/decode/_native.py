"""Decode through the native library; rotation, padding and channel order are undone as the codec says."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from tqbench.codecs.kvtc_lite import KvtcLite
from tqbench.core.codec import Codec, Packed
from tqbench.core.errors import EvidenceError
from tqbench.kernels import _sections, native, packed


def refuses(codec: Codec, head_dim: int | None) -> str | None:
    """Why this codec cannot be decoded natively, or None."""
    return None if type(codec) is KvtcLite else packed.refuses(codec, head_dim)


def decode(codec: Codec, arrays: Packed, head_dim: int, like: Tensor) -> Tensor:  # noqa: ARG001 - always float32
    """Decode to float32, as the op record promises."""
    if isinstance(codec, KvtcLite):
        return _sections.decode(codec, arrays, head_dim)
    form = packed.describe(codec, head_dim)
    batch, heads, units = arrays[form.parts[0] or ""].shape[:3]
    out = torch.empty(batch, heads, units * codec.unit, form.fields.dim, dtype=torch.float32)
    if not form.takes(arrays, batch, heads):
        raise EvidenceError(f"decode/native refused its arguments: {packed.words(arrays)}")
    if out.numel():
        given, kept = form.packed(arrays)
        status = native.library().tqbench_decode(ctypes.byref(given), batch, heads, out.data_ptr(), out.numel())
        del kept
        if status:
            raise EvidenceError(f"decode/native refused its arguments: {packed.words(arrays)}")
    return codec.inverse(out, head_dim)
