"""Small unsigned codes into bytes and back: plain shifts, exact, least significant bit first, as most of the field does."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from tqbench.core.lazy import Tensor, torch

Widths = tuple[tuple[int, ...], ...]  # bits of each component of each head


def pack(codes: Tensor, bits: int, dim: int = -1) -> Tensor:
    """Pack uint8 codes of 1 to 8 bits along `dim` as one bit stream. Widths that do not divide 8 take codes by the eight."""
    per_word, word = _word(bits)
    codes = codes.movedim(dim, -1)
    words = codes.reshape(*codes.shape[:-1], codes.shape[-1] // per_word, per_word).to(torch.int64)
    shifts = torch.arange(per_word, device=codes.device) * bits
    words = (words << shifts).sum(-1, keepdim=True)
    stream = words >> torch.arange(word, device=codes.device) * 8 & 255
    return stream.flatten(-2).to(torch.uint8).movedim(-1, dim).contiguous()


def unpack(packed: Tensor, bits: int, dim: int = -1) -> Tensor:
    """Undo `pack`."""
    per_word, word = _word(bits)
    packed = packed.movedim(dim, -1)
    stream = packed.reshape(*packed.shape[:-1], packed.shape[-1] // word, word).to(torch.int64)
    words = (stream << torch.arange(word, device=packed.device) * 8).sum(-1, keepdim=True)
    codes = words >> torch.arange(per_word, device=packed.device) * bits & 2**bits - 1
    return codes.flatten(-2).to(torch.uint8).movedim(-1, dim)


def _word(bits: int) -> tuple[int, int]:
    """(codes, bytes) of the shortest run that ends on a byte."""
    return (8 // bits, 1) if bits in (1, 2, 4, 8) else (8, bits)


def planes(bits: int) -> list[tuple[int, int]]:
    """(shift, bits) of the streams that codes of 0 to 16 bits make: beyond 8, one of their low bytes and one of the rest."""
    return [(0, bits)] * (bits > 0) if bits <= 8 else [(0, 8), (8, bits - 8)]


def stream_bytes(bits: int, count: int) -> int:
    """Bytes of `count` codes of that many bits, whose streams end on a byte each."""
    return sum(-(-count * width // 8) for _, width in planes(bits))


def pack_mixed(codes: Tensor, widths: Widths, size: int) -> Tensor:
    """Pack int32 codes [batch, heads, units, components, count], each component with the bits that `widths` gives it, into
    [batch, heads, units, size] bytes: component after component, and zeros to the end."""
    batch, heads, units, components, count = codes.shape
    rows = codes.transpose(1, 2).reshape(batch, units, heads * components, count)
    out = torch.zeros(batch, units, heads * size, dtype=torch.uint8, device=codes.device)
    for shift, bits, source, target in _streams(widths, count, size, str(codes.device)):
        plane = (rows[:, :, source] >> shift & 2**bits - 1).to(torch.uint8)
        stream = pack(torch.nn.functional.pad(plane, (0, -count % 8)), bits)[..., : target.shape[1]]
        out[:, :, target.flatten()] = stream.flatten(2)
    return out.unflatten(2, (heads, size)).transpose(1, 2).contiguous()


def unpack_mixed(packed: Tensor, widths: Widths, count: int) -> Tensor:
    """Undo `pack_mixed`."""
    batch, heads, units, size = packed.shape
    flat, components = packed.transpose(1, 2).reshape(batch, units, heads * size), len(widths[0]) if widths else 0
    rows = torch.zeros(batch, units, heads * components, count, dtype=torch.int32, device=packed.device)
    for shift, bits, source, target in _streams(widths, count, size, str(packed.device)):
        stream = torch.nn.functional.pad(flat[:, :, target], (0, -(-count // 8) * bits - target.shape[1]))
        rows[:, :, source] |= unpack(stream, bits)[..., :count].to(torch.int32) << shift
    return rows.unflatten(2, (heads, components)).transpose(1, 2)


@lru_cache(maxsize=1024)
def _streams(widths: Widths, count: int, size: int, device: str) -> tuple[tuple[int, int, Tensor, Tensor], ...]:
    """(shift, bits, rows, bytes of each) of all streams of the same kind, whatever head they belong to."""
    found: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for plane, row, start, length in _places(widths, count, size):
        found.setdefault(plane, []).append((row, start, length))
    made = []
    for (shift, bits), places in found.items():
        source, starts, lengths = (torch.tensor(column, device=device) for column in zip(*places, strict=True))
        made.append((shift, bits, source, starts[:, None] + torch.arange(int(lengths[0]), device=device)))
    return tuple(made)


def _places(widths: Widths, count: int, size: int) -> Iterator[tuple[tuple[int, int], int, int, int]]:
    """(plane, row, first byte, bytes) of every stream, rows and bytes counted over all heads."""
    row = 0
    for head, own in enumerate(widths):
        start = head * size
        for width in own:
            for shift, bits in planes(width):
                length = -(-count * bits // 8)
                yield (shift, bits), row, start, length
                start += length
            row += 1
        if start > (head + 1) * size:
            raise ValueError(f"{start - head * size} bytes of codes do not fit {size}")
