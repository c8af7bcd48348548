"""Mixed widths bit by bit: the bits of a stream one after another, least significant first, eight to a byte."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tqbench.codecs.blocks.packing import Widths, planes


def pack_mixed(codes: Tensor, widths: Widths, size: int) -> Tensor:
    """Component after component; every stream ends on a byte, and zeros follow the last."""
    batch, heads, units, _, _ = codes.shape
    packed = np.zeros((batch, heads, units, size), np.uint8)
    for b, h, u in np.ndindex(batch, heads, units):
        stream = [byte for row, width in zip(codes[b, h, u].tolist(), widths[h], strict=True) for byte in pack_row(row, width)]
        if len(stream) > size:
            raise ValueError(f"{len(stream)} bytes of codes do not fit {size}")
        packed[b, h, u, : len(stream)] = stream
    return torch.from_numpy(packed)


def pack_row(codes: list[int], width: int) -> list[int]:
    """The bytes of one component: one stream, or two if its codes have more than 8 bits."""
    found = []
    for shift, bits in planes(width):
        stream = [code >> shift + k & 1 for code in codes for k in range(bits)]
        stream += [0] * (-len(stream) % 8)
        found += [sum(stream[i + k] << k for k in range(8)) for i in range(0, len(stream), 8)]
    return found


def unpack_mixed(packed: Tensor, widths: Widths, count: int) -> Tensor:
    """Undo `pack_mixed`."""
    batch, heads, units, _ = packed.shape
    codes = np.zeros((batch, heads, units, len(widths[0]) if widths else 0, count), np.int32)
    for b, h, u in np.ndindex(batch, heads, units):
        stream, start = packed[b, h, u].tolist(), 0
        for c, width in enumerate(widths[h]):
            codes[b, h, u, c], start = unpack_row(stream, start, width, count)
    return torch.from_numpy(codes)


def unpack_row(stream: list[int], start: int, width: int, count: int) -> tuple[list[int], int]:
    """The codes of one component from a byte on, and where the next begins."""
    codes = [0] * count
    for shift, bits in planes(width):
        for i in range(count):
            for k in range(bits):
                at = i * bits + k
                codes[i] |= (stream[start + at // 8] >> at % 8 & 1) << shift + k
        start += -(-count * bits // 8)
    return codes, start
