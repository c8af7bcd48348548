"""What the native encoder is told about a codec and a call: the structures of plan.hpp, and how each codec and wrapper fills a plan.

A plan depends on the codec and head_dim alone. Wrappers come from the outside in: a mean to subtract, an order of the channels, then one
rotation with its padding. Signs, orders, paddings and tables are data; only the arithmetic of a format is code.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import POINTER, Structure, c_double, c_float, c_int32, c_int64, c_void_p
from typing import Any

import numpy as np
import torch

from tqbench.codecs.affine import Affine
from tqbench.codecs.block import BLOCK, NONLINEAR, Block
from tqbench.codecs.blocks import codebooks, rotations
from tqbench.codecs.blocks.minifloat import LARGEST
from tqbench.codecs.blocks.wrap import Bridge, Centered, Interleaved, Rotated, Wrapper
from tqbench.codecs.cast import Cast
from tqbench.codecs.codebook import Codebook
from tqbench.codecs.fp8 import SMALLEST, Fp8
from tqbench.codecs.mlx_affine import MlxAffine
from tqbench.core.codec import Codec

FORMATS = ("codebook", "block_symmetric", "block_affine", "block_nonlinear", "affine", "symmetric", "mlx_affine", "fp8", "cast")
SCALES = ("raw", "norm_corrected", "least_squares", "unbiased", "max_abs")  # what `norm_corrected_at_decode` keeps is raw
TYPES = ("float32", "float16", "bfloat16")
NO_TURN, HADAMARD, DENSE = range(3)
_INTS, _FLOATS, _DOUBLES = POINTER(c_int32), POINTER(c_float), POINTER(c_double)
_POINTERS: dict[Any, Any] = {np.int32: _INTS, np.float32: _FLOATS, np.float64: _DOUBLES}


class Plane(Structure):
    """Some bits of every code as one stream per vector."""

    _fields_ = [("bits", c_int32), ("shift", c_int32), ("order", _INTS)]


class Plan(Structure):
    """The format and its constants. `arrays` keeps alive what the pointers point to."""

    arrays: list[np.ndarray]
    _fields_ = [
        *((name, c_int32) for name in ("format", "head_dim", "dim", "bits", "group", "unit", "scale", "kept", "kept_count")),
        *((name, c_int32) for name in ("exact", "half_up", "mantissa", "lowest")),
        *((name, c_float) for name in ("largest", "smallest", "outermost")),
        *((name, _FLOATS) for name in ("edges", "levels")),
        ("channel", _INTS),
        *((name, _FLOATS) for name in ("mean", "head_scale")),
        *((name, c_int32) for name in ("heads", "turn", "turned")),
        *((name, _DOUBLES) for name in ("before", "after", "matrices")),
        ("matrix_count", c_int32),
        ("natural", _INTS),
        ("planes", c_int32),
        ("plane", Plane * 2),
    ]

    def point(self, values: Any, dtype: Any) -> Any:
        """A pointer to these values, which live as long as the plan."""
        array: np.ndarray = np.ascontiguousarray(values, dtype)
        self.arrays.append(array)
        return array.ctypes.data_as(_POINTERS[dtype])

    def stream(self, index: int, bits: int, shift: int = 0, order: Any = None) -> None:
        """Declare a plane; the next one is not there yet."""
        self.plane[index] = Plane(bits, shift, self.natural if order is None else self.point(order, np.int32))
        self.planes = index + 1


class Input(Structure):
    """x, and where its elements lie."""

    _fields_ = [("x", c_void_p), ("type", c_int32), *((name, c_int64) for name in ("batch", "heads", "tokens")), ("stride", c_int64 * 4)]


class Output(Structure):
    """The arrays to fill."""

    _fields_ = [("planes", c_void_p * 2), ("kept", c_void_p * 2)]


STRUCTURES = (Plane, Plan, Input, Output)  # that the library is handed


def refuses(codec: Codec) -> str | None:
    """Why this codec cannot be encoded natively, or None."""
    turned = False
    while isinstance(codec, Wrapper):
        if isinstance(codec, Bridge):
            return "a control that skips the quantizer has no codes"
        if type(codec) not in (Rotated, Centered, Interleaved) or turned:
            return f"wrapper {type(codec).__name__!r} has no native encode here"
        if isinstance(codec, Rotated):
            turned = True
            if codec.rotation == "cross_head":
                return "rotation cross_head takes several heads, native encode one at a time"
        codec = codec.inner
    return (
        None
        if type(codec) in _FILL
        else f"codec {codec.name!r} has no native encode (codebook, block, affine, mlx_affine, fp8, cast and, unwrapped, kvtc_lite have)"
    )


def build(codec: Codec, head_dim: int) -> Plan:
    """The plan of a codec that is not refused."""
    codec.check(head_dim)
    plan = Plan(head_dim=head_dim, dim=_inner_dim(codec, head_dim), unit=codec.unit)
    plan.arrays = []
    plan.natural = plan.point(range(max(plan.dim, plan.unit)), np.int32)
    _wrappers(plan, codec)
    _FILL[type(codec.plain)](plan, codec.plain)
    return plan


def _inner_dim(codec: Codec, head_dim: int) -> int:
    while isinstance(codec, Wrapper):
        head_dim, codec = codec.inner_dim(head_dim), codec.inner
    return head_dim


def _wrappers(plan: Plan, codec: Codec) -> None:
    place = np.arange(plan.head_dim)  # where each channel of x has gone
    while isinstance(codec, Wrapper):
        if isinstance(codec, Interleaved):
            place = _interleaved(plan.head_dim)[place]
        elif isinstance(codec, Centered):
            _mean(plan, codec, place)
        elif isinstance(codec, Rotated) and codec.rotation != "none":
            _turn(plan, codec)
        codec = codec.inner
    if (place != np.arange(plan.head_dim)).any():
        plan.channel = plan.point(place, np.int32)


def _interleaved(head_dim: int) -> np.ndarray:
    """Channel i goes to 2i, and i + d/2 to 2i + 1."""
    return np.arange(head_dim).reshape(-1, 2).T.ravel()


def _mean(plan: Plan, codec: Centered, place: np.ndarray) -> None:
    mean = codec._mean(torch.empty(0)).numpy()[:, 0]  # [kv_heads, head_dim] in the order of this wrapper
    plan.heads, plan.mean = len(mean), plan.point(mean[:, place], np.float32)


def _turn(plan: Plan, codec: Rotated) -> None:
    n = plan.turned = codec.group(plan.head_dim)
    matrix = rotations.matrix(codec.rotation, n, codec.seed, torch.float64, "cpu").numpy()
    if codec.rotation in rotations.HADAMARDS and not n & (n - 1):
        # M = diag(s₂) H diag(s₁) / √n; the first row and column of H are ones
        blocks = plan.dim // n
        plan.turn = HADAMARD
        plan.before = plan.point(np.tile(np.sign(matrix[0]), blocks), np.float64)
        plan.after = plan.point(np.tile(matrix[:, 0] * np.sign(matrix[0, 0]), blocks), np.float64)
        return
    size = _block(matrix)
    plan.turn, plan.turned, plan.matrix_count = DENSE, size, n // size
    plan.matrices = plan.point([matrix[i : i + size, i : i + size] for i in range(0, n, size)], np.float64)


def _block(matrix: np.ndarray) -> int:
    """The size of the blocks on the diagonal: 2 for planar rotations, 4 for quaternions, else all of it."""
    rows, columns = np.nonzero(matrix)
    return next((size for size in (2, 4) if len(matrix) % size == 0 and (rows // size == columns // size).all()), len(matrix))


def _table(plan: Plan, edges: Any, levels: Any) -> None:
    """Boundaries and levels as float32. Registers are filled from anywhere among them, so sixteen zeros follow."""
    plan.edges, plan.levels = (plan.point(np.pad(np.array(x, np.float32), (0, 16)), np.float32) for x in (edges, levels))


def _codebook(plan: Plan, codec: Codebook) -> None:
    channels = codec.channels(plan.dim)
    edges = np.array(codebooks.boundaries(codec.table, codec.bits, channels), np.float32)
    if codec.ties == "down":  # u > b is u ≥ the next float above b
        edges = np.nextafter(edges, np.float32(np.inf))
    levels = codebooks.levels(codec.table, codec.bits, channels)
    _table(plan, edges, levels)
    scale = "raw" if codec.scale == "norm_corrected_at_decode" else codec.scale
    plan.format, plan.scale, plan.bits, plan.group = FORMATS.index("codebook"), SCALES.index(scale), codec.bits, channels
    plan.kept, plan.kept_count, plan.outermost = TYPES.index("float16"), 1, levels[-1]
    for i, (_, bits, shift) in enumerate(codec._planes()):
        plan.stream(i, bits, shift)


def _block_format(plan: Plan, codec: Block) -> None:
    plan.format, plan.bits, plan.group = FORMATS.index(f"block_{codec.form}"), codec.bits, BLOCK
    plan.kept, plan.kept_count = TYPES.index("float16"), 1 + (codec.form == "affine")
    if codec.form == "nonlinear":
        levels = np.array(NONLINEAR, np.float32)
        _table(plan, (levels[1:] + levels[:-1]) / 2, levels)
    if codec.bits == 8:
        return plan.stream(0, 8)
    halves = np.arange(plan.dim).reshape(-1, 2, BLOCK // 2).transpose(0, 2, 1)  # channels j and j + 16 share a byte
    plan.stream(0, 4, 0, halves.ravel())
    return plan.stream(1, 1, 4) if codec.bits == 5 else None


def _affine(plan: Plan, codec: Affine) -> None:
    plan.format, plan.bits, plan.group = FORMATS.index(codec.form), codec.bits, codec.group_size or plan.dim
    plan.kept, plan.kept_count = TYPES.index(codec.kept), 1 + (codec.form == "affine")
    plan.exact, plan.half_up = codec.encode_with == "exact", codec.rounding == "half_up"
    plan.smallest = 1e-8 if codec.form == "affine" else 1e-6
    plan.stream(0, codec.bits)


def _mlx_affine(plan: Plan, codec: MlxAffine) -> None:
    plan.format, plan.bits, plan.group = FORMATS.index("mlx_affine"), codec.bits, codec.group_size
    plan.kept, plan.kept_count, plan.smallest = TYPES.index(codec.kept), 2, 1e-7
    plan.stream(0, codec.bits)


def _fp8(plan: Plan, codec: Fp8) -> None:
    plan.format, plan.bits, plan.group = FORMATS.index("fp8"), 8, plan.dim
    plan.mantissa, plan.lowest = {"e4m3": (3, -6), "e5m2": (2, -14)}[codec.format]
    plan.largest, plan.smallest = LARGEST[codec.format], SMALLEST
    plan.kept, plan.kept_count = TYPES.index("float32"), codec.scale == "token_head"
    if codec.scale == "head":
        scale = codec._learned(torch.empty(0)).flatten().numpy()
        plan.heads, plan.head_scale = len(scale), plan.point(scale, np.float32)
    plan.stream(0, 8)


def _cast(plan: Plan, codec: Cast) -> None:
    plan.format, plan.group, plan.kept = FORMATS.index("cast"), plan.dim, TYPES.index(codec.dtype)
    plan.bits = 32 if codec.dtype == "float32" else 16
    plan.stream(0, plan.bits)


_FILL: dict[type[Codec], Callable[[Plan, Any], None]] = {
    Codebook: _codebook,
    Block: _block_format,
    Affine: _affine,
    MlxAffine: _mlx_affine,
    Fp8: _fp8,
    Cast: _cast,
}
