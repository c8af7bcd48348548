"""Decode in Triton: one program for each tile of tokens; rotation, padding and channel order are undone as the codec says."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tqbench.codecs.kvtc_lite import KvtcLite
from tqbench.codecs.kvtc_paper import KvtcPaper
from tqbench.core.codec import Codec, Packed
from tqbench.core.errors import EvidenceError
from tqbench.kernels import _sections, packed
from tqbench.kernels.packed import _triton as tiles
from tqbench.kernels.runs import _triton as runs

TOKENS = 64  # of a tile


@triton.jit(do_not_specialize=["tokens"])
def _unpack(a, out, tokens, heads, f: tl.constexpr, size: tl.constexpr):
    pair = tl.program_id(0)
    token = tl.program_id(1) * size + tl.arange(0, size)
    seen = token < tokens
    x = tiles.vectors(a, f, pair // heads, pair % heads, token, seen)
    for p in tl.static_range(tl.constexpr(f.parts)):
        c = tiles.columns(f, p)
        here = out + (pair.to(tl.int64) * tokens + token)[:, None] * f.dim + c[None, :]
        tl.store(here, x[p].to(tl.float32), mask=seen[:, None] & (c < f.dim)[None, :])


def refuses(codec: Codec, head_dim: int | None) -> str | None:
    """Why this codec cannot be decoded in Triton, or None."""
    if type(codec.plain) is KvtcPaper:
        return runs.refuses(codec)
    return None if type(codec) is KvtcLite else packed.refuses(codec, head_dim)


def decode(codec: Codec, arrays: Packed, head_dim: int, like: Tensor) -> Tensor:  # noqa: ARG001 - always float32
    """Decode to float32, as the op record promises."""
    if isinstance(codec, KvtcLite):
        return _sections.decode(codec, arrays, head_dim, "triton")
    if isinstance(codec.plain, KvtcPaper):
        return runs.decode(codec, arrays, head_dim)
    form = packed.describe(codec, head_dim)
    found = arrays[form.parts[0] or ""]
    batch, heads, units = found.shape[:3]
    if not form.takes(arrays, batch, heads):
        raise EvidenceError(f"decode/triton refused its arguments: {packed.words(arrays)}")
    made, stored = tiles.arrays(codec, head_dim, arrays)
    out = torch.empty(batch, heads, units * codec.unit, made.dim, dtype=torch.float32, device=found.device)
    if out.numel():
        tokens = out.shape[2]
        _unpack[(batch * heads, triton.cdiv(tokens, TOKENS))](stored, out, tokens, heads, made, TOKENS)
    return codec.inverse(out, head_dim)
