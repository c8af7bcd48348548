"""Mixed widths in Triton: some streams of one head in each program, their widths and first bytes read from tables.

Whatever the width, eight codes fill as many bytes as they have bits, so one kernel serves all: which bytes it writes is a mask.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

from tqbench.codecs.blocks.packing import Widths, stream_bytes
from tqbench.core.errors import EvidenceError
from tqbench.kernels.packed import together

TILE = 1024  # codes of a program, where a stream is no longer


@lru_cache(maxsize=1024)
def table(widths: Widths, device: str) -> Tensor:
    """Widths [heads, components], brought to the device once."""
    return torch.tensor(widths, dtype=torch.int32).to(device)


@lru_cache(maxsize=1024)
def _starts(widths: Widths, count: int, size: int, device: str) -> Tensor:
    """The first byte of each stream [heads, components] in the bytes of its head."""
    ends = [list(accumulate((stream_bytes(width, count) for width in head), initial=0)) for head in widths]
    if (most := max((head[-1] for head in ends), default=0)) > size:
        raise EvidenceError(f"packbits/triton: {most} bytes of codes do not fit {size}")
    return torch.tensor([head[:-1] for head in ends], dtype=torch.int32).to(device)


def tile(count: int) -> tuple[int, int]:
    """Streams of a program, and codes of each, which are powers of two."""
    values = max(8, triton.next_power_of_2(count))
    return max(1, TILE // values), values


@triton.jit(do_not_specialize=["units"])  # a section is packed alone, and those of a prompt together
def _pack(codes, widths, starts, packed, heads, units, components, count, size, height: tl.constexpr, values: tl.constexpr):
    section = tl.program_id(0)
    row, i = tl.program_id(1) * height + tl.arange(0, height), tl.arange(0, values)
    there, own = row < components, section // units % heads * components + row
    width, start = tl.load(widths + own, mask=there, other=0), tl.load(starts + own, mask=there, other=0)
    seen = there[:, None] & (i < count)[None, :]
    code = tl.load(codes + (section.to(tl.int64) * components + row)[:, None] * count + i[None, :], mask=seen, other=0).to(tl.int64)
    here, low = packed + section.to(tl.int64) * size + start, tl.minimum(width, 8)
    _stream(here, code & ((1 << low) - 1)[:, None], low, there, count, height, values)
    _stream(here + (count * low + 7) // 8, code >> 8, tl.maximum(width - 8, 0), there, count, height, values)


@triton.jit
def _stream(here, code, bits, there, count, height: tl.constexpr, values: tl.constexpr):
    """One plane: codes that have these bits and no others."""
    eight = tl.reshape(code, (height, values // 8, 8))
    words = tl.sum(eight << (tl.arange(0, 8)[None, None, :] * bits[:, None, None]), 2)
    w, length = tl.arange(0, values // 8), (count * bits + 7) // 8
    for byte in tl.static_range(8):
        place = w[None, :] * bits[:, None] + byte
        kept = there[:, None] & (byte < bits)[:, None] & (place < length[:, None])
        tl.store(here[:, None] + place, (words >> 8 * byte & 255).to(tl.uint8), mask=kept)


@triton.jit(do_not_specialize=["units"])
def _unpack(
    packed, s_batch, s_head, s_unit, widths, starts, codes, heads, units, components, count, height: tl.constexpr, values: tl.constexpr
):
    section = tl.program_id(0)
    row, i = tl.program_id(1) * height + tl.arange(0, height), tl.arange(0, values)
    batch, head, unit = section // (units * heads), section // units % heads, section % units
    there, own = row < components, head * components + row
    width, start = tl.load(widths + own, mask=there, other=0), tl.load(starts + own, mask=there, other=0)
    seen = there[:, None] & (i < count)[None, :]
    here = packed + batch.to(tl.int64) * s_batch + head.to(tl.int64) * s_head + unit.to(tl.int64) * s_unit + start
    low = tl.minimum(width, 8)
    code = _plane(here, low, i, seen)
    code |= _plane(here + (count * low + 7) // 8, tl.maximum(width - 8, 0), i, seen) << 8
    tl.store(codes + (section.to(tl.int64) * components + row)[:, None] * count + i[None, :], code, mask=seen)


@triton.jit
def _plane(here, bits, i, seen):
    """Codes of at most eight bits, each from the two bytes that it may lie in."""
    bit = i[None, :] * bits[:, None]
    first, within = here[:, None] + (bit >> 3), bit & 7
    low = tl.load(first, mask=seen & (bits > 0)[:, None], other=0).to(tl.int32)
    high = tl.load(first + 1, mask=seen & (within + bits[:, None] > 8), other=0).to(tl.int32)
    return (low | high << 8) >> within & ((1 << bits) - 1)[:, None]


def pack_mixed(codes: Tensor, widths: Widths, size: int) -> Tensor:
    """Pack each component with its own bits; zeros follow up to `size` bytes."""
    _check(widths, codes, torch.int32, codes.shape[3] if codes.dim() == 5 else -1)
    batch, heads, units, components, count = codes.shape
    starts = _starts(widths, count, size, str(codes.device))
    packed = torch.zeros(batch, heads, units, size, dtype=torch.uint8, device=codes.device)
    if codes.numel():
        height, values = tile(count)
        grid = (batch * heads * units, triton.cdiv(components, height))
        given = (codes.contiguous(), table(widths, str(codes.device)), starts, packed)
        _pack[grid](*given, heads, units, components, count, size, height, values)
    return packed


def unpack_mixed(packed: Tensor, widths: Widths, count: int) -> Tensor:
    """Undo `pack_mixed`."""
    components = len(widths[0]) if widths else 0
    _check(widths, packed, torch.uint8, components)
    batch, heads, units, size = packed.shape
    starts = _starts(widths, count, size, str(packed.device))
    codes = torch.empty(batch, heads, units, components, count, dtype=torch.int32, device=packed.device)
    if codes.numel():
        height, values = tile(count)
        grid, packed = (batch * heads * units, triton.cdiv(components, height)), together(packed, 3)
        tables = table(widths, str(packed.device)), starts
        _unpack[grid](packed, *packed.stride()[:3], *tables, codes, heads, units, components, count, height, values)
    return codes


def _check(widths: Widths, x: Tensor, dtype: torch.dtype, components: int) -> None:
    """The kernels see addresses, not shapes."""
    fits = x.dim() >= 4 and x.dtype == dtype and len(widths) == x.shape[1] and all(len(head) == components for head in widths)
    if not fits or any(not 0 <= width <= 16 for head in widths for width in head):
        raise EvidenceError(
            f"packbits/triton takes {dtype} with 0 to 16 bits for each component of each head, not {x.dtype} {list(x.shape)}"
        )
