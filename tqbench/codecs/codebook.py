"""Each coordinate as an index into a scalar codebook, and one length per group of channels: the TurboQuant family.

Per group of g channels: n = ‖y‖, u = y √g / n, c = the nearest level of each coordinate of u. Stored are the indices of c and, in fp16,
one length s; decoded, y ≈ s / √g · c. What s is differs between projects:

    raw                       n                   the paper, AmesianX, mlx-vlm, RotorQuant
    norm_corrected            n √g / ‖c‖          TheTom's fork: the result is as long as the original
    norm_corrected_at_decode  n                   vLLM: the same, but decoded as y ≈ s / ‖c‖ · c
    least_squares             n ⟨u, c⟩ / ‖c‖²     the smallest squared error for these indices
    unbiased                  n g / ⟨u, c⟩        EDEN: unbiased inner products if the rotation is random
    max_abs                   √g max |y| / c_max  quant.cpp: u = y √g / s, so that the largest coordinate meets the outer level

Sources: arXiv 2504.19874; TheTom/llama-cpp-turboquant ggml-turbo-quant.c @ 69d8e4be4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tqbench.codecs.blocks import codebooks, gain_shape
from tqbench.codecs.blocks.packing import pack, unpack
from tqbench.core.codec import Codec, Layout, Packed, Part, as_bytes
from tqbench.core.errors import ConfigError, Unsupported
from tqbench.core.lazy import Tensor, torch

Scale = Literal["raw", "norm_corrected", "norm_corrected_at_decode", "least_squares", "unbiased", "max_abs"]


@dataclass(frozen=True)
class Codebook(Codec):
    """Codebook indices and one length per group of channels."""

    name: ClassVar[str] = "codebook"
    source: ClassVar[str] = "arXiv 2504.19874; TheTom/llama-cpp-turboquant"

    bits: Literal[1, 2, 3, 4, 5, 6, 7, 8] = 4
    table: codebooks.Table = "gaussian"
    scale: Scale = "norm_corrected"
    ties: gain_shape.Ties = "up"
    group: int = 128  # channels that share a length, or the largest power of two below that divides the vector; 0 is the whole vector
    planes: Literal["split", "stream"] = "split"  # three bits as planes of two and one, or as one bit stream
    reserved: Literal[0, 2] = 0  # dead bytes per group that the original format carries

    def __post_init__(self) -> None:
        widths = codebooks.widths(self.table)
        if self.bits not in widths:
            raise ConfigError(f"bits must be one of {', '.join(map(str, widths))} for table {self.table!r}, got {self.bits}")
        if self.group and (self.group < 8 or self.group & (self.group - 1)):
            raise ConfigError(f"group must be 0 (the whole vector) or a power of two from 8 on, got {self.group}")

    def check(self, head_dim: int) -> None:
        channels = self.channels(head_dim)
        if channels < min(head_dim, self.group, 64):
            sizes = f"{self.group} or 64" if self.group > 64 else str(self.group)
            raise Unsupported(f"head_dim {head_dim} does not split into groups of {sizes} channels; pad it (pad: 128)")
        if channels % 8:
            raise Unsupported(f"head_dim {head_dim}: the codes of {channels} channels do not end on a byte")

    def channels(self, head_dim: int) -> int:
        """Channels that share a length."""
        return min(self.group, head_dim & -head_dim) if self.group else head_dim

    def layout(self, head_dim: int) -> Layout:
        channels = self.channels(head_dim)
        groups = head_dim // channels
        planes = tuple(Part(name, "uint8", (groups, channels * bits // 8)) for name, bits, _ in self._planes())
        spare = (Part("reserved", "uint8", (groups, self.reserved), "metadata"),) if self.reserved else ()
        return Layout(1, (Part("norms", "float16", (groups,), "metadata"), *spare, *planes))

    def quantize(self, y: Tensor) -> Packed:
        groups = y.unflatten(-1, (-1, self.channels(y.shape[-1])))
        length, u = gain_shape.split(groups, self._outermost(groups) if self.scale == "max_abs" else None)
        index = gain_shape.nearest(u, self.table, self.bits, self.ties)
        stored = self._stored(length, u, gain_shape.values(index, self.table, self.bits, y.dtype))
        codes = index.to(torch.uint8)
        packed = {name: pack(codes >> shift & 2**bits - 1, bits) for name, bits, shift in self._planes()}
        spare = {"reserved": codes.new_zeros(*codes.shape[:-1], self.reserved)} if self.reserved else {}
        return {"norms": stored.squeeze(-1).to(torch.float16), **spare, **packed}

    def _stored(self, n: Tensor, u: Tensor, c: Tensor) -> Tensor:
        """The length s that is kept, from n = ‖y‖, the direction u and the levels c that stand for it."""
        g = u.shape[-1]
        if self.scale == "norm_corrected":
            return n * g**0.5 / c.norm(dim=-1, keepdim=True)
        if self.scale == "least_squares":
            return n * (u * c).sum(-1, keepdim=True) / c.square().sum(-1, keepdim=True)
        if self.scale == "unbiased":
            return torch.where(n > 0, n * g / (u * c).sum(-1, keepdim=True), 0.0)
        return n

    def _outermost(self, groups: Tensor) -> Tensor:
        g = groups.shape[-1]
        return groups.abs().amax(-1, keepdim=True) * g**0.5 / codebooks.levels(self.table, self.bits, g)[-1]

    def dequantize(self, packed: Packed, dtype: torch.dtype) -> Tensor:
        codes = torch.stack([unpack(packed[name], bits).int() << shift for name, bits, shift in self._planes()]).sum(0)
        c = gain_shape.values(codes, self.table, self.bits, dtype)
        length = c.norm(dim=-1, keepdim=True) if self.scale == "norm_corrected_at_decode" else c.shape[-1] ** 0.5
        return (c / length * packed["norms"].to(dtype).unsqueeze(-1)).flatten(-2)

    def to_blocks(self, packed: Packed) -> Tensor:
        groups = packed["norms"].shape[-1]  # one block per group, as in the fork
        return torch.cat([as_bytes(array).unflatten(-1, (groups, -1)) for array in packed.values()], dim=-1).flatten(-2)

    def from_blocks(self, blocks: Tensor, head_dim: int) -> Packed:
        groups = head_dim // self.channels(head_dim)
        sizes = [part.nbytes // groups for part in self.layout(head_dim).parts]
        parts = blocks.unflatten(-1, (groups, -1)).split(sizes, dim=-1)
        return super().from_blocks(torch.cat([part.flatten(-2) for part in parts], dim=-1), head_dim)

    def _planes(self) -> tuple[tuple[str, int, int], ...]:
        """(array, bits, shift) of each plane that the codes are split into; turbo3_0 has the low two bits and the high one apart."""
        return (("low", 2, 0), ("high", 1, 2)) if self.bits == 3 and self.planes == "split" else (("codes", self.bits, 0),)
