"""8-bit blocks through the native library."""

from __future__ import annotations

import torch
from torch import Tensor

from tqbench.codecs.block import BLOCK, Block
from tqbench.codecs.blocks.wrap import Bridge
from tqbench.core.codec import Codec, Packed
from tqbench.core.errors import EvidenceError
from tqbench.kernels import native


def supports(codec: Codec) -> str | None:
    """Why this codec cannot be decoded natively, or None."""
    if isinstance(codec, Bridge):
        return "a control that skips the quantizer has no codes"
    plain = codec.plain
    served = isinstance(plain, Block) and plain.bits == 8
    return None if served else f"codec {plain.name!r} has no native decode yet (only 8-bit blocks have)"


def decode(codec: Codec, packed: Packed, head_dim: int, like: Tensor) -> Tensor:  # noqa: ARG001 - always float32
    """Decode to float32, as `supports` and the op record promise."""
    codes, scales = packed["codes"].contiguous(), packed["scales"].contiguous()
    if codes.numel() != scales.numel() * BLOCK:
        raise EvidenceError(f"decode/native: {codes.numel()} codes do not match {scales.numel()} scales")
    out = torch.empty(codes.shape, dtype=torch.float32)
    status = native.library().tqbench_decode_block8(codes.data_ptr(), scales.data_ptr(), out.data_ptr(), scales.numel())
    if status:
        raise EvidenceError(f"decode/native refused its arguments (status {status})")
    return codec.inverse(out, head_dim)
