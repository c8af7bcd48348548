"""Two codebooks: more bits for the channels that are large in calibration text, fewer for the rest.

The channels of largest mean |y| over heads and tokens, a share of all, are taken out; they and the rest are two vectors, each with its own
norm, its own rotation and its own table, as in the codec `codebook` with `scale: raw`. 32 of 128 channels at 3 bits and 96 at 2 are
(32 · 3 + 96 · 2) / 128 = 2.25 bits; the two fp16 norms make it 2.5.
Sources: arXiv 2504.19874, which leaves open how outliers are found; Blaizzy/mlx-vlm mlx_vlm/turboquant.py, which ranks channels by the
first tokens that it sees. Here the ranking is calibrated, so that it does not depend on how the text is cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from tqbench.codecs.blocks import gain_shape, rotations
from tqbench.codecs.blocks.packing import pack, unpack
from tqbench.core.codec import Codec, Layout, Packed, Part, Tags
from tqbench.core.errors import ConfigError, Unsupported
from tqbench.core.lazy import Tensor, torch

Bits = Literal[1, 2, 3, 4, 5, 6, 7, 8]


class _Half(NamedTuple):
    """One of the two vectors: the array of its codes, its bits, how many channels it has, and the seed of its rotation."""

    name: str
    bits: int
    size: int
    seed: int


@dataclass(frozen=True)
class Split(Codec):
    """Codebook indices of two widths, and a norm for each set of channels."""

    name: ClassVar[str] = "split"
    source: ClassVar[str] = "arXiv 2504.19874; Blaizzy/mlx-vlm mlx_vlm/turboquant.py"

    outliers: float = 0.25  # share of the channels that get `outlier_bits`
    outlier_bits: Bits = 3
    bits: Bits = 2
    table: Literal["gaussian", "sphere", "mlx_vlm"] = "sphere"
    rotate: Literal["none", "haar", "hadamard_mlx_vlm"] = "haar"
    rotate_seed: int = 42  # of the rest; that of the outliers is 97 more, as in mlx-vlm
    ties: gain_shape.Ties = "up"

    def __post_init__(self) -> None:
        if not 0 < self.outliers < 1:
            raise ConfigError(f"outliers must be a share of the channels, between 0 and 1, got {self.outliers}")

    @property
    def tags(self) -> Tags:
        return Tags(calibrated=True)

    def check(self, head_dim: int) -> None:
        for half in self._halves(head_dim):
            if half.size < 8 or half.size % 8:
                raise Unsupported(f"head_dim {head_dim}: the codes of {half.size} {half.name} do not end on a byte; set another share")

    def layout(self, head_dim: int) -> Layout:
        codes = (Part(half.name, "uint8", (half.size * half.bits // 8,)) for half in self._halves(head_dim))
        return Layout(1, (Part("norms", "float16", (2,), "metadata"), *codes))

    def learn(self, y: Tensor) -> Mapping[str, Tensor]:
        ranked = y.abs().mean(dim=(0, 1, 2)).argsort(stable=True)
        return {"outliers": ranked[-self._halves(y.shape[-1])[0].size :].sort().values}

    def quantize(self, y: Tensor) -> Packed:
        packed, norms = {}, []
        for half, channels in self._channels(y.shape[-1], y.device):
            norm, u = gain_shape.split(rotations.rotate(y[..., channels], self.rotate, half.size, half.seed))
            packed[half.name] = pack(gain_shape.nearest(u, self.table, half.bits, self.ties).to(torch.uint8), half.bits)
            norms.append(norm)
        return {"norms": torch.cat(norms, dim=-1).to(torch.float16), **packed}

    def dequantize(self, packed: Packed, dtype: torch.dtype) -> Tensor:
        norms = packed["norms"].to(dtype)
        head_dim = sum(packed[name].shape[-1] * 8 // bits for name, bits in (("outliers", self.outlier_bits), ("rest", self.bits)))
        y = norms.new_empty(*norms.shape[:-1], head_dim)
        for i, (half, channels) in enumerate(self._channels(head_dim, y.device)):
            c = gain_shape.values(unpack(packed[half.name], half.bits), self.table, half.bits, dtype)
            y[..., channels] = rotations.unrotate(c / half.size**0.5 * norms[..., i : i + 1], self.rotate, half.size, half.seed)
        return y

    def _halves(self, head_dim: int) -> tuple[_Half, _Half]:
        count = round(self.outliers * head_dim)
        return (
            _Half("outliers", self.outlier_bits, count, self.rotate_seed + 97),
            _Half("rest", self.bits, head_dim - count, self.rotate_seed),
        )

    def _channels(self, head_dim: int, device: torch.device) -> tuple[tuple[_Half, Tensor], ...]:
        assert self.learned is not None  # noqa: S101 - `encode` has seen to it
        outliers = self.learned["outliers"].to(device)
        rest = torch.ones(head_dim, dtype=torch.bool, device=device).index_fill(0, outliers, False).nonzero().squeeze(1)
        return tuple(zip(self._halves(head_dim), (outliers, rest), strict=True))
