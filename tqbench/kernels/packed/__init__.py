"""What native and Triton kernels must know of a codec: how its codes lie, what they stand for, and what is done to vectors around it.

A `Format` is the quantizer alone; `Basis` is everything around it (rotation, padding, centring, channel order), which is an affine map,
x = Bᵀ y + c, whatever the wrappers are called: B and c are read off by sending unit vectors through `Codec.inverse`.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from functools import lru_cache
from math import e
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tqbench.codecs.affine import Affine
from tqbench.codecs.block import BLOCK, NONLINEAR, Block
from tqbench.codecs.blocks import codebooks, minifloat
from tqbench.codecs.blocks.wrap import Bridge
from tqbench.codecs.cast import Cast
from tqbench.codecs.codebook import Codebook
from tqbench.codecs.fp8 import Fp8
from tqbench.codecs.microscaling import BIAS, ELEMENT, Microscaling
from tqbench.codecs.mlx_affine import MlxAffine
from tqbench.core.codec import Codec, Packed

STREAM, HALVES, FIFTH, SPLIT, FLOATS = range(5)
TABLE, LINEAR, E4M3, E5M2 = range(4)
NUMBERS = {"none": 0, "float32": 1, "float16": 2, "bfloat16": 3, "byte": 4}
MOST_CHANNELS = 512
MOST_LEVEL, MOST_SQUARED = 32767, 11585  # the second: of a format whose levels are squared and summed up, sixteen at a time
# What integer levels up to 1 would cost the integers they are multiplied with, as a relative error, where the sums of the products must
# stay below 2³¹; rounding costs a step / √12. Queries: sixteen Gaussian values sum up to 12.8 σ. Weights: 64 values e^N(0, 1), whose root
# mean square is √e times their mean.
QUERY, WEIGHT = 12.8 / 12**0.5, 64 / 12**0.5 / e**0.5


class CFormat(ctypes.Structure):
    """`Format` of packed/format.hpp."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("arrangement", "bits", "dim", "group", "unit", "value", "flip", "bias", "scale", "minimum")),
        *((name, ctypes.c_int32) for name in ("number", "normalized")),
        ("level_unit", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("levels", "values", "scale_table")),
    ]


class CArray(ctypes.Structure):
    """`Array` of packed/format.hpp."""

    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("batch", "head", "unit", "size"))]


class CPacked(ctypes.Structure):
    """`Packed` of packed/format.hpp."""

    _fields_ = [
        ("format", CFormat),
        *((name, CArray) for name in ("codes", "high", "scales", "minima")),
        ("units", ctypes.c_int64),
        ("head_scale", ctypes.c_void_p),
        ("head_scales", ctypes.c_int64),
    ]


class CExact(ctypes.Structure):
    """`Exact` of packed/format.hpp."""

    _fields_ = [("rows", CArray), ("count", ctypes.c_int64), ("number", ctypes.c_int32)]


STRUCTURES = (CFormat, CArray, CPacked, CExact)  # that the library is handed
Parts = tuple[str, str | None, str | None, str | None]
Stored = dict[str, tuple[torch.dtype, tuple[int, ...]]]  # an array's type, and its shape for one unit of one head


@dataclass(frozen=True)
class Format:
    """A codec as the native kernels see it. `parts` names its arrays in the order codes, high, scales, minima; None is none."""

    parts: Parts
    fields: CFormat
    kept: tuple[Any, ...]  # what the pointers of `fields` point to
    head_scale: Tensor | None = None
    stored: Stored | None = None

    def takes(self, arrays: Packed, batch: int, heads: int) -> bool:
        """Whether these are arrays of this format for so many sequences and KV heads: the library sees addresses, not types and shapes."""
        used = [arrays[part] for part in self.parts if part is not None and arrays]
        expected = [(self.stored or {})[part] for part in self.parts if part is not None]
        return all(
            x.dtype == dtype and x.shape == (batch, heads, used[0].shape[2], *shape)
            for x, (dtype, shape) in zip(used, expected[: len(used)], strict=True)
        )

    def packed(self, arrays: Packed) -> tuple[CPacked, Any]:
        """These arrays in this format, and what must live as long as it is used. Without arrays nothing is packed."""
        found, kept = CPacked(format=self.fields), []
        for name, part in zip(("codes", "high", "scales", "minima"), self.parts, strict=True):
            if part is not None and arrays:
                kept.append(together(arrays[part], 3))
                setattr(found, name, array(kept[-1]))
                found.units = kept[-1].shape[2]
        if self.head_scale is not None:
            found.head_scale, found.head_scales = self.head_scale.data_ptr(), self.head_scale.numel()
        return found, kept


@dataclass(frozen=True)
class Basis:
    """x = Bᵀ y + c: B [stored, head_dim], c [kv_heads, head_dim]; None where it is the identity, or zero."""

    rows: Tensor | None
    columns: Tensor | None  # the same turned over
    offset: Tensor | None


def refuses(codec: Codec, head_dim: int | None = None) -> str | None:
    """Why the native kernels cannot read what this codec stores, or None."""
    plain = codec.plain
    if codec.heads > 1:
        return f"codec {plain.name!r} packs several heads together"
    if head_dim is not None and codec.stored_dim(head_dim) > MOST_CHANNELS:
        return f"{codec.stored_dim(head_dim)} values per vector are more than {MOST_CHANNELS}"
    if isinstance(codec, Bridge):
        return None if codec.unit == 1 and codec.dtype in NUMBERS else "this control keeps values in a form of its own"
    if type(plain) not in DESCRIBE:
        return f"codec {plain.name!r} has no native form"
    return None if codec.ready else f"codec {plain.name!r} has not been calibrated"


def refuses_fast(codec: Codec, head_dim: int | None = None) -> str | None:
    """Why the fast form of a kernel, which multiplies levels of 8 bits, cannot read what this codec stores, or None."""
    if (reason := refuses(codec, head_dim)) is not None:
        return reason
    plain = codec.plain
    if isinstance(codec, Bridge) or not isinstance(plain, Codebook | Block | Affine | MlxAffine | Microscaling) or codec.unit > 1:
        return f"codec {plain.name!r} has no levels of 8 bits"
    if isinstance(plain, Codebook | Affine | MlxAffine) and plain.bits in (6, 7, *([8] if isinstance(plain, Codebook) else [])):
        return f"codes of {plain.bits} bits are multiplied in float32"
    if isinstance(plain, Codebook) and 0 < plain.group < 16:
        return f"groups of {plain.group} channels are multiplied in float32"
    if isinstance(plain, Microscaling) and plain.format == "mxfp8":
        return "values of mxfp8 are no levels of 8 bits"
    if isinstance(plain, Codebook) and plain.scale == "norm_corrected_at_decode":
        return f"codec {plain.name!r} scales vectors by their exact length when they are decoded"
    return None


def words(arrays: Packed) -> str:
    """What these arrays are, for errors."""
    return ", ".join(f"{name} {str(x.dtype).removeprefix('torch.')} {list(x.shape)}" for name, x in arrays.items())


def together(x: Tensor, leading: int) -> Tensor:
    """The tensor, copied if its dimensions after the first `leading` do not lie together."""
    expected = 1
    for size, stride in zip(reversed(x.shape[leading:]), reversed(x.stride()[leading:]), strict=True):
        if size != 1 and stride != expected:
            return x.contiguous()
        expected *= size
    return x


def array(x: Tensor) -> CArray:
    """Where a tensor lies, as `together` left it."""
    item, storage = x.element_size(), x.untyped_storage()
    strides = [stride * item for stride in x.stride()[:3]]
    return CArray(x.data_ptr(), *strides, storage.nbytes() - x.storage_offset() * item)


def exact(x: Tensor | None) -> tuple[CExact, Any]:
    """Vectors in a floating-point type, or none, and what must live as long as they are used."""
    if x is None or not x.shape[2]:
        return CExact(), None
    rows = together(x, 3)
    return CExact(array(rows), rows.shape[2], NUMBERS[str(rows.dtype).removeprefix("torch.")]), rows


@lru_cache(maxsize=512)
def describe(codec: Codec, head_dim: int, *, keys: bool = True) -> Format:
    """The codec's format, with levels for the sums that keys or values are in; `refuses` has been asked before."""
    made = _format(codec.stored_dim(head_dim), QUERY if keys else WEIGHT, **spell(codec, head_dim))
    stored = {part.name: (getattr(torch, part.dtype), part.shape) for part in codec.layout(head_dim).parts}
    return replace(made, stored=stored)


def spell(codec: Codec, head_dim: int) -> dict[str, Any]:
    """The fields of the codec's format that are not the default, its tables as sequences, and its arrays as `parts`."""
    if isinstance(codec, Bridge):
        return _of(("values", None, None, None), arrangement=FLOATS, number=NUMBERS[codec.dtype])
    return dict(DESCRIBE[type(codec.plain)](codec.plain, codec.stored_dim(head_dim)))


def _of(parts: Parts, **fields: Any) -> dict[str, Any]:
    """The arrays of a format and the fields that it sets."""
    return {"parts": parts, **fields}


@lru_cache(maxsize=512)
def basis(codec: Codec, head_dim: int, kv_heads: int) -> Basis:
    """What lies between vectors and what is quantized."""
    dim = codec.stored_dim(head_dim)
    units = torch.cat([torch.zeros(1, dim, dtype=torch.float64), torch.eye(dim, dtype=torch.float64)])
    sent = codec.inverse(units.expand(1, kv_heads, -1, -1), head_dim)[0]
    offset, rows = sent[:, 0], sent[:, 1:] - sent[:, :1]
    plain = dim == head_dim and bool(torch.equal(rows[0], torch.eye(dim, dtype=torch.float64)))
    turned = None if plain else rows[0].float().contiguous()
    columns = None if turned is None else turned.T.contiguous()
    return Basis(turned, columns, offset.float().contiguous() if bool(offset.any()) else None)


def _format(dim: int, cost: float = QUERY, *, parts: Parts, **fields: Any) -> Format:
    """The fields that every format has, and those that this one sets; levels and tables are given as sequences."""
    kept: list[Any] = []

    def pointer(values: Any, dtype: Any) -> int | None:
        if values is None:
            return None
        kept.append(np.ascontiguousarray(values, dtype=dtype))
        return int(kept[-1].ctypes.data)

    levels, values, table = (fields.pop(name, None) for name in ("levels", "values", "scale_table"))
    head_scale = fields.pop("head_scale", None)
    numbers = {"bits": 8, "dim": dim, "group": dim, "unit": 1, "level_unit": 1.0} | fields
    unit, bits = numbers["level_unit"], numbers["bits"]
    if values is not None and bits <= 5:
        most = MOST_SQUARED if fields.get("normalized") else MOST_LEVEL
        whole, unit = _whole(np.asarray(values[: 2**bits], dtype=np.float64), cost, most)
        levels = np.resize(whole, 32)
    numbers["level_unit"] = unit
    pointers = {
        "levels": pointer(levels, np.int16),
        "values": None if values is None else pointer(np.resize(values, 256), np.float32),
        "scale_table": pointer(table, np.float32),
    }
    return Format(parts, CFormat(**numbers, **pointers), tuple(kept), head_scale)


def _whole(levels: Any, cost: float, limit: int) -> tuple[Any, float]:
    """Levels as integers times a unit. Large ones round less, and leave less room for what they are multiplied with: the best of both."""
    top = np.abs(levels).max()
    most = np.arange(1, limit + 1)[:, None]
    rounded = np.round(levels * most / top)
    wrong = ((rounded * top / most - levels) ** 2).mean(1) / (levels**2).mean()
    best = int(np.argmin(wrong + (cost * most[:, 0] / 2**31) ** 2))
    return rounded[best], float(top / most[best, 0])


def _linear(bits: int, flip: int = 0, bias: int = 0) -> dict[str, Any]:
    codes = np.arange(2 ** min(bits, 5)) ^ flip
    return {"value": LINEAR, "flip": flip, "bias": bias, "levels": np.resize(codes + bias, 32) if bits <= 5 else None}


def _codebook(codec: Codebook, dim: int) -> dict[str, Any]:
    group = codec.channels(dim)
    split = codec.bits == 3 and codec.planes == "split"
    root = 1.0 if codec.scale == "norm_corrected_at_decode" else group**-0.5
    return _of(
        ("low", "high", "norms", None) if split else ("codes", None, "norms", None),
        arrangement=SPLIT if split else STREAM,
        bits=codec.bits,
        group=group,
        value=TABLE,
        values=np.array(codebooks.levels(codec.table, codec.bits, group)) * root,
        scale=NUMBERS["float16"],
        normalized=int(codec.scale == "norm_corrected_at_decode"),
    )


def _block(codec: Block, dim: int) -> dict[str, Any]:  # noqa: ARG001
    arrangement = {8: STREAM, 5: FIFTH, 4: HALVES}[codec.bits]
    affine = codec.form == "affine"
    if codec.form == "nonlinear":
        values: dict[str, Any] = {"value": TABLE, "values": np.array(NONLINEAR, dtype=np.float64)}
    elif codec.bits == 8:
        values = _linear(8, 128, -128)
    else:
        values = _linear(codec.bits, 0, 0 if affine else -(2 ** (codec.bits - 1)))
    parts = ("codes", "high" if codec.bits == 5 else None, "scales", "minima" if affine else None)
    minimum = NUMBERS["float16" if affine else "none"]
    return _of(parts, arrangement=arrangement, bits=codec.bits, group=BLOCK, scale=NUMBERS["float16"], minimum=minimum, **values)


def _affine(codec: Affine, dim: int) -> dict[str, Any]:
    symmetric = codec.form == "symmetric"
    half = 2 ** (codec.bits - 1) if symmetric else 0
    return _of(
        ("codes", None, "scales", None if symmetric else "minima"),
        bits=codec.bits,
        group=dim if codec.axis == "channel" else codec.group_size or dim,
        unit=codec.unit,
        scale=NUMBERS[codec.kept],
        minimum=NUMBERS["none" if symmetric else codec.kept],
        **_linear(codec.bits, half, -half),
    )


def _mlx_affine(codec: MlxAffine, dim: int) -> dict[str, Any]:  # noqa: ARG001
    kept = NUMBERS[codec.kept]
    parts = ("words", None, "scales", "biases")
    return _of(parts, bits=codec.bits, group=codec.group_size, scale=kept, minimum=kept, **_linear(codec.bits))


def _fp8(codec: Fp8, dim: int) -> dict[str, Any]:  # noqa: ARG001
    scaled = codec.scale == "token_head"
    head_scale = codec.learned["scale"].float().contiguous() if codec.learned is not None else None
    return _of(
        ("codes", None, "scales" if scaled else None, None),
        value={"e4m3": E4M3, "e5m2": E5M2}[codec.format],
        scale=NUMBERS["float32" if scaled else "none"],
        head_scale=head_scale,
    )


def _microscaling(codec: Microscaling, dim: int) -> dict[str, Any]:  # noqa: ARG001
    codes = torch.arange(256, dtype=torch.uint8)
    if codec.format == "nvfp4":
        factor = codec.global_scale if codec.learned is None else float(codec.learned["global_scale"])
        steps = minifloat.decode(codes, "e4m3", torch.float64).nan_to_num() * factor
    else:
        steps = 2.0 ** (torch.arange(256, dtype=torch.float64) - BIAS).clamp(max=127)
    form: dict[str, Any] = {"value": E4M3}
    if codec.format != "mxfp8":
        form = {"bits": 4, "value": TABLE, "values": minifloat.decode(codes[:16], ELEMENT[codec.format], torch.float64).numpy()}
    parts = ("codes", None, "scales", None)
    return _of(parts, group=codec.block, scale=NUMBERS["byte"], scale_table=steps.numpy(), **form)


def _cast(codec: Cast, dim: int) -> dict[str, Any]:  # noqa: ARG001
    return _of(("values", None, None, None), arrangement=FLOATS, number=NUMBERS[codec.dtype])


DESCRIBE: dict[type[Codec], Any] = {
    Codebook: _codebook,
    Block: _block,
    Affine: _affine,
    MlxAffine: _mlx_affine,
    Fp8: _fp8,
    Microscaling: _microscaling,
    Cast: _cast,
}
