"""What one could run instead of a native encode: plain torch in float32, as its users would write it to be fast."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from tqbench.codecs.blocks import codebooks, packing, rotations
from tqbench.codecs.blocks.wrap import Rotated
from tqbench.codecs.codebook import Codebook
from tqbench.core.codec import Codec, Packed

EAGER = "torch eager"
EAGER_WORDS = "torch eager in float32: a matrix product for the rotation, bucketize, lengths, bytes by shifts"


def eager(codec: Codec, head_dim: int) -> Callable[[Tensor], Packed] | None:
    """Encode of a codebook, rotated or not, with its matrix and tables made once; None for other codecs."""
    plain, turn = codec.plain, None
    if type(plain) is not Codebook or (codec is not plain and (type(codec) is not Rotated or codec.inner is not plain)):
        return None
    if isinstance(codec, Rotated) and codec.rotation != "none":
        if codec.rotation == "cross_head":
            return None
        turn = rotations.matrix(codec.rotation, codec.group(head_dim), codec.seed, torch.float64, "cpu").float().T.contiguous()
    dim = codec.stored_dim(head_dim)
    channels = plain.channels(dim)
    tables = (torch.tensor(table(plain.table, plain.bits, channels)) for table in (codebooks.boundaries, codebooks.levels))
    return partial(_codebook, plain, dim, turn, *tables)


def _codebook(codec: Codebook, dim: int, turn: Tensor | None, edges: Tensor, levels: Tensor, x: Tensor) -> Packed:
    y = pad(x.float(), (0, dim - x.shape[-1])) if dim > x.shape[-1] else x.float()
    if turn is not None:
        y = (y.unflatten(-1, (-1, len(turn))) @ turn).flatten(-2)
    groups = y.unflatten(-1, (-1, codec.channels(dim)))
    length = codec._outermost(groups) if codec.scale == "max_abs" else groups.norm(dim=-1, keepdim=True)
    length = torch.where(length > 1e-10, length, 0.0)
    u = torch.where(length > 0, groups / length, 0.0) * groups.shape[-1] ** 0.5
    index = torch.bucketize(u, edges, right=codec.ties == "up", out_int32=True)
    codes, kept = index.to(torch.uint8), codec._stored(length, u, levels[index])
    spare = {"reserved": codes.new_zeros(*codes.shape[:-1], codec.reserved)} if codec.reserved else {}
    planes = {name: _bytes(codes >> shift & 2**bits - 1, bits) for name, bits, shift in codec._planes()}
    return {"norms": kept.squeeze(-1).half(), **spare, **planes}


def _bytes(codes: Tensor, bits: int) -> Tensor:
    if 8 % bits:
        return packing.pack(codes, bits)
    per = 8 // bits
    out = codes[..., ::per].clone()
    for i in range(1, per):
        out |= codes[..., i::per] << bits * i
    return out
