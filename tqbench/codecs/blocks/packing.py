"""Small unsigned codes into bytes and back: plain shifts, exact, the layouts that the field uses."""

from __future__ import annotations

from tqbench.core.lazy import Tensor, torch


def pack(codes: Tensor, bits: int, dim: int = -1) -> Tensor:
    """Pack uint8 codes of 1, 2, 4 or 8 bits along `dim`, least significant first."""
    per_byte = 8 // bits
    codes = codes.movedim(dim, -1)
    groups = codes.reshape(*codes.shape[:-1], codes.shape[-1] // per_byte, per_byte).to(torch.int32)
    shifts = torch.arange(per_byte, device=codes.device, dtype=torch.int32) * bits
    return (groups << shifts).sum(-1).to(torch.uint8).movedim(-1, dim).contiguous()


def unpack(packed: Tensor, bits: int, dim: int = -1) -> Tensor:
    """Undo `pack`."""
    per_byte = 8 // bits
    packed = packed.movedim(dim, -1)
    shifts = torch.arange(per_byte, device=packed.device, dtype=torch.uint8) * bits
    codes = (packed.unsqueeze(-1) >> shifts) & (2**bits - 1)
    return codes.flatten(-2).movedim(-1, dim)
