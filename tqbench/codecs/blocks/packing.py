"""Small unsigned codes into bytes and back: plain shifts, exact, least significant bit first, as most of the field does."""

from __future__ import annotations

from tqbench.core.lazy import Tensor, torch


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
