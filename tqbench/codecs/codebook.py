"""Rotate, then quantize each coordinate with a scalar codebook: the TurboQuant family.

Per group of channels: n = ‖x‖, y = R x, c = the nearest level of each coordinate of y √g / n. What is stored is c's index and one norm
(fp16): n itself (`raw`), or n √g / ‖c‖ (`norm_corrected`), which gives the reconstruction the length of the original.
A coordinate on a boundary takes the upper cell. Sources: arXiv 2504.19874; TheTom/llama-cpp-turboquant ggml-turbo-quant.c @ 69d8e4be4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tqbench.codecs.blocks import codebooks, rotations
from tqbench.codecs.blocks.packing import pack, unpack
from tqbench.core.codec import Codec, Layout, Packed, Part
from tqbench.core.errors import ConfigError, Unsupported
from tqbench.core.lazy import Tensor, torch


@dataclass(frozen=True)
class Codebook(Codec):
    """Codebook indices and one norm per group; groups of 128 channels, or of the largest power of two below that divides head_dim."""

    name: ClassVar[str] = "codebook"
    source: ClassVar[str] = "arXiv 2504.19874; TheTom/llama-cpp-turboquant"

    bits: Literal[1, 2, 3, 4] = 4
    table: Literal["gaussian", "turbo", "turbo_historic"] = "gaussian"
    rotation: Literal["none", "hadamard", "hadamard_double_signed"] = "hadamard_double_signed"
    scale: Literal["raw", "norm_corrected"] = "norm_corrected"
    pad: Literal[0, 128] = 0  # zero-pad vectors to a multiple of this
    reserved: Literal[0, 2] = 0  # dead bytes per group that the original format carries

    def __post_init__(self) -> None:
        widths = codebooks.CODEBOOKS[self.table]
        if self.bits not in widths:
            raise ConfigError(f"bits must be one of {', '.join(map(str, widths))} for table {self.table!r}, got {self.bits}")

    def check(self, head_dim: int) -> None:
        if not self.pad and self.group(head_dim) < min(head_dim, 64):
            raise Unsupported(f"head_dim {head_dim} does not split into groups of 64 or 128 channels; use a padded form (pad: 128)")

    def stored_dim(self, head_dim: int) -> int:
        return -(-head_dim // self.pad) * self.pad if self.pad else head_dim

    def group(self, head_dim: int) -> int:
        """Channels that share a norm and a rotation."""
        stored = self.stored_dim(head_dim)
        return min(128, stored & -stored)

    def layout(self, head_dim: int) -> Layout:
        stored = self.stored_dim(head_dim)
        groups = stored // self.group(head_dim)
        planes = tuple(Part(name, "uint8", (stored * bits // 8,)) for name, bits, _ in self._planes())
        spare = (Part("reserved", "uint8", (groups, self.reserved), "metadata"),) if self.reserved else ()
        return Layout(1, (Part("norms", "float16", (groups,), "metadata"), *spare, *planes))

    def transform(self, x: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(x, (0, self.stored_dim(x.shape[-1]) - x.shape[-1]))
        return rotations.rotate(padded, self.rotation, self.group(x.shape[-1]))

    def inverse(self, y: Tensor, head_dim: int) -> Tensor:
        return rotations.unrotate(y, self.rotation, self.group(head_dim))[..., :head_dim]

    def quantize(self, y: Tensor) -> Packed:
        group = self.group(y.shape[-1])
        groups = y.unflatten(-1, (-1, group))
        norm = groups.norm(dim=-1, keepdim=True)
        unit = torch.where(norm > 1e-10, groups / norm, 0.0) * group**0.5
        index = torch.bucketize(unit, self._table(codebooks.boundaries, y), right=True)
        stored = norm
        if self.scale == "norm_corrected":
            stored = norm * group**0.5 / self._table(codebooks.levels, y)[index].norm(dim=-1, keepdim=True)
        stored = torch.where(norm > 1e-10, stored, 0.0)
        codes = index.flatten(-2).to(torch.uint8)
        packed = {name: pack(codes >> shift & 2**bits - 1, bits) for name, bits, shift in self._planes()}
        spare = {"reserved": torch.zeros(*stored.shape[:-1], self.reserved, dtype=torch.uint8, device=y.device)} if self.reserved else {}
        return {"norms": stored.squeeze(-1).to(torch.float16), **spare, **packed}

    def dequantize(self, packed: Packed, dtype: torch.dtype) -> Tensor:
        codes = sum(unpack(packed[name], bits).to(torch.int32) << shift for name, bits, shift in self._planes())
        norms = packed["norms"].to(dtype).unsqueeze(-1)
        values = self._table(codebooks.levels, norms)[codes].unflatten(-1, (norms.shape[-2], -1))
        return (values / values.shape[-1] ** 0.5 * norms).flatten(-2)

    def _planes(self) -> tuple[tuple[str, int, int], ...]:
        """(array, bits, shift) of each plane that the codes are split into; three bits are two planes, as in turbo3_0."""
        return (("low", 2, 0), ("high", 1, 2)) if self.bits == 3 else (("codes", self.bits, 0),)

    def _table(self, make: object, like: Tensor) -> Tensor:
        return torch.tensor(make(self.table, self.bits), dtype=like.dtype, device=like.device)  # type: ignore[operator]
