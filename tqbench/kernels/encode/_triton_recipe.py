"""What a kernel is compiled for and reads, made of a codec."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from tqbench.codecs.affine import Affine
from tqbench.codecs.block import BLOCK, NONLINEAR, Block
from tqbench.codecs.blocks import codebooks
from tqbench.codecs.blocks.minifloat import LARGEST
from tqbench.codecs.codebook import Codebook
from tqbench.codecs.fp8 import SMALLEST, Fp8
from tqbench.codecs.mlx_affine import MlxAffine
from tqbench.core.codec import Codec


class Recipe(NamedTuple):
    """What a kernel is compiled for."""

    kind: str  # one of `KINDS`
    head_dim: int
    dim: int
    width: int
    group: int
    lanes: int  # the same, up to the next power of two
    root: float  # of the group
    bits: int
    halves: bool = False  # as in `Form`
    high: int = 0
    rule: str = ""  # which length a codebook keeps; how an affine code is rounded
    up: bool = True  # a value on a boundary goes up
    kept: bool = False  # codes are taken with the scale that is kept, not with the exact one
    smallest: float = 0.0  # of a scale
    largest: float = 0.0  # outermost level of a codebook; largest value of an eight-bit float
    lowest: int = 0  # exponent of the smallest normal eight-bit float
    mantissa: int = 0  # and its bits
    scaled: bool = True
    by_head: bool = False
    turned: bool = False
    moved: bool = False


class Tables(NamedTuple):
    """What a kernel reads beside x."""

    turn: Tensor | None = None  # Aᵀ [head_dim, width], columns as the codes lie
    gain: float = 1.0  # what it is to be multiplied with
    offset: Tensor | None = None  # a [kv_heads, width]
    edges: Tensor | None = None
    levels: Tensor | None = None
    head_scale: Tensor | None = None


@lru_cache(maxsize=512)
def ready(codec: Codec, head_dim: int, heads: int, dtype: torch.dtype, device: str) -> tuple[Recipe, Tables]:
    """A codec for one shape."""
    dim = codec.stored_dim(head_dim)
    width = triton.next_power_of_2(dim)
    fields, tables = KINDS[type(codec.plain)](codec.plain, dim)
    places = torch.arange(dim)
    if fields.get("halves"):  # as `channel` of packed/_triton.py
        places = places // 32 * 32 + places % 32 // 2 + places % 2 * 16
    units = torch.cat([torch.zeros(1, head_dim, dtype=torch.float64), torch.eye(head_dim, dtype=torch.float64)])
    sent = codec.transform(units.expand(1, heads, -1, -1))[0]
    offset, turn = sent[:, 0], (sent[:, 1:] - sent[:, :1])[0]
    plain = dim == head_dim and bool(torch.equal(turn, torch.eye(dim, dtype=torch.float64)))
    gain, kind = _signs(turn, dtype)
    shape = {"head_dim": head_dim, "dim": dim, "width": width, "lanes": triton.next_power_of_2(fields["group"])}
    recipe = Recipe(**shape, root=fields["group"] ** 0.5, turned=not plain, moved=bool(offset.any()), **fields)
    laid = {
        "turn": None if plain else torch.nn.functional.pad(turn[:, places] / gain, (0, width - dim)).to(kind),
        "offset": torch.nn.functional.pad(offset[:, places], (0, width - dim)).float() if recipe.moved else None,
        **{name: torch.as_tensor(x).float() for name, x in tables.items()},
    }
    return recipe, Tables(
        gain=1.0 if plain else gain, **{name: None if x is None else x.to(device).contiguous() for name, x in laid.items()}
    )


def of_channels(codec: Codec, head_dim: int) -> Recipe:
    """A codec whose groups are tokens of a channel."""
    group = codec.unit
    fields = KINDS[type(codec.plain)](codec.plain, group)[0]
    return Recipe(head_dim=head_dim, dim=group, width=group, lanes=group, root=group**0.5, **fields)


def _signs(turn: Tensor, dtype: torch.dtype) -> tuple[float, torch.dtype]:
    """The factor without which a matrix is one of signs and zeros, and the type to multiply in."""
    largest = float(turn.abs().max())
    signs = turn.abs() > largest / 2
    if dtype != torch.float32 and bool(((turn.abs() - largest).abs()[signs] < 1e-9 * largest).all() and (turn[~signs] == 0).all()):
        return largest, dtype
    return 1.0, torch.float32


Fields = tuple[dict[str, Any], dict[str, Any]]


def _codebook(codec: Codebook, dim: int) -> Fields:
    group = codec.channels(dim)
    levels = codebooks.levels(codec.table, codec.bits, group)
    split = codec.bits == 3 and codec.planes == "split"
    rule = "raw" if codec.scale == "norm_corrected_at_decode" else codec.scale
    recipe = {"kind": "codebook", "group": group, "bits": codec.bits, "high": 2 * split, "rule": rule, "up": codec.ties == "up"}
    return recipe | {"largest": levels[-1]}, {"edges": codebooks.boundaries(codec.table, codec.bits, group), "levels": levels}


def _block(codec: Block, dim: int) -> Fields:  # noqa: ARG001
    recipe = {
        "kind": codec.form,
        "group": BLOCK,
        "bits": codec.bits,
        "halves": codec.bits < 8,
        "high": 4 * (codec.bits == 5),
        "rule": "ggml",
    }
    if codec.form != "nonlinear":
        return recipe, {}
    edges = [(below + above) / 2 for below, above in pairwise(NONLINEAR)]
    return recipe | {"largest": float(NONLINEAR[0]), "smallest": 1e-15}, {"edges": edges, "levels": NONLINEAR}


def _mlx_affine(codec: MlxAffine, dim: int) -> Fields:  # noqa: ARG001
    return {"kind": "signed_affine", "group": codec.group_size, "bits": codec.bits, "smallest": 1e-7}, {}


def _affine_fields(codec: Affine, dim: int) -> Fields:
    return {
        "kind": codec.form,
        "group": codec.group_size or dim,
        "bits": codec.bits,
        "up": codec.rounding == "half_up",
        "kept": codec.encode_with == "kept" and codec.kept == "float16",
        "smallest": 1e-6 if codec.form == "symmetric" else 1e-8 if codec.encode_with == "exact" else 0.0,
    }, {}


def _fp8(codec: Fp8, dim: int) -> Fields:
    learned = {} if codec.learned is None else {"head_scale": codec.learned["scale"].flatten()}
    return {
        "kind": "fp8",
        "group": dim,
        "bits": 8,
        "largest": LARGEST[codec.format],
        "lowest": {"e4m3": -6, "e5m2": -14}[codec.format],
        "mantissa": {"e4m3": 3, "e5m2": 2}[codec.format],
        "smallest": SMALLEST,
        "scaled": codec.scale == "token_head",
        "by_head": codec.scale == "head",
    }, learned


KINDS: dict[type[Codec], Callable[[Any, int], Fields]] = {
    Codebook: _codebook,
    Block: _block,
    Affine: _affine_fields,
    MlxAffine: _mlx_affine,
    Fp8: _fp8,
}
