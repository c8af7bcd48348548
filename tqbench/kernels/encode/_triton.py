"""Encode in Triton: rotate, quantize and pack in one kernel, for one token as for a long prompt.

Vectors go into the codec's basis by a matrix product, y = A x + a, whatever the wrappers are called; where x has 16 bits and A is a
Hadamard matrix up to a factor, in 16 bits too, because its entries are then ±1 and all products exact. What is left is one of six
arithmetics (`KINDS`) and one way to pack; groups of tokens of a channel are the vectors of a kernel of their own. Nothing waits for the
device: a NaN or an infinity makes the scale that is kept NaN or infinite, and is found where it is attended.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from tqbench.codecs.kvtc_lite import KvtcLite
from tqbench.codecs.kvtc_paper import KvtcPaper
from tqbench.core.codec import Codec, Packed
from tqbench.core.errors import EvidenceError, Unsupported
from tqbench.kernels import _sections
from tqbench.kernels.encode import _triton_kernels as kernels
from tqbench.kernels.encode._triton_recipe import KINDS, of_channels, ready
from tqbench.kernels.runs import _triton as runs
from tqbench.kernels.triton import operand

TOKENS, FEW = 32, 8  # of a tile; where sums are in float64


def refuses(codec: Codec) -> str | None:
    """Why this codec has no Triton encoder, or None."""
    plain = codec.plain
    if type(plain) is KvtcPaper:
        return runs.refuses(codec)
    if type(codec) is KvtcLite:
        return None
    if codec.heads > 1:
        return f"codec {plain.name!r} packs several heads together"
    if type(plain) not in KINDS or codec.name == "bridge":
        return f"codec {plain.name!r}{' in this control' if codec.name == 'bridge' else ''} has no Triton encoder"
    if codec.unit > 1 and codec is not plain:
        return f"codec {plain.name!r} packs tokens of a channel together, in Triton only with nothing wrapped around it"
    return None if codec.ready else f"codec {plain.name!r} has not been calibrated"


def encode(codec: Codec, x: Tensor, room: Packed | None = None) -> Packed:
    """Encode float32, bfloat16 or float16 vectors, token by token into the arrays that are given."""
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16) or x.dim() != 4:
        raise EvidenceError(f"encode/triton takes [batch, kv_heads, tokens, head_dim] in up to float32, not {x.dtype} {list(x.shape)}")
    if isinstance(codec, KvtcLite):
        return _sections.encode(codec, x, "triton")
    if isinstance(codec.plain, KvtcPaper):
        return runs.encode(codec.plain, x)
    if codec.unit > 1:
        return _by_channel(codec, x)
    batch, heads, tokens, head_dim = x.shape
    recipe, tables = ready(codec, head_dim, heads, operand(x.dtype), str(x.device))
    packed = _room(codec, x) if room is None else room
    if "reserved" in packed:
        packed["reserved"].zero_()
    if x.numel():
        arrays, size = _arrays(packed), FEW if recipe.kind == "nonlinear" else TOKENS
        between = next(each.stride(1) // each.stride(2) for each in packed.values())  # tokens that a head has room for
        grid = (batch * heads, triton.cdiv(tokens, size))
        fused = recipe.turned  # else codes are the reference's to the bit, whose products are rounded before something is added
        kernels.encode[grid](x, *x.stride(), *arrays, between, tables, tokens, heads, recipe, size, enable_fp_fusion=fused)
    return packed


def _room(codec: Codec, x: Tensor) -> Packed:
    lead, parts = (*x.shape[:2], x.shape[2] // codec.unit), codec.layout(x.shape[3]).parts
    return {p.name: torch.empty(*lead, *p.shape, dtype=getattr(torch, p.dtype), device=x.device) for p in parts}


def _by_channel(codec: Codec, x: Tensor) -> Packed:
    """Groups of tokens of each channel."""
    (batch, heads, tokens, head_dim), group = x.shape, codec.unit
    if tokens % group:
        raise Unsupported(f"codec {codec.plain.name!r} encodes {group} tokens together, got {tokens}")
    units, packed = tokens // group, _room(codec, x)
    if x.numel():
        codes, _, scales, minima = _arrays(packed)
        grid = (batch * heads * units, triton.cdiv(head_dim, TOKENS))
        kernels.encode_channels[grid](
            x, *x.stride(), codes, scales, minima, units, heads, of_channels(codec, head_dim), TOKENS, enable_fp_fusion=False
        )
    return packed


def _arrays(packed: Packed) -> tuple[Tensor | None, ...]:
    """Codes or their low plane, the high plane, scales, minima."""
    names = (("codes", "low", "words"), ("high",), ("norms", "scales"), ("minima", "biases"))
    return tuple(next((packed[name] for name in either if name in packed), None) for either in names)
