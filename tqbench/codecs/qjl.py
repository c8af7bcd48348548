"""QJL: keys as signs of a random projection and a norm, from which inner products with exact queries are estimated without bias.

S ∈ R^(d × m) Gaussian, made orthogonal in chunks of d columns, each column √d long. Stored: sign(Sᵀk) and ‖k‖. Decoded:
k̂ = √(π/2) / m · ‖k‖ · S sign(Sᵀk), so ⟨q, k̂⟩ is the project's estimate √(π/2) / m · ‖k‖ · ⟨Sᵀq, sign(Sᵀk)⟩, and E⟨q, k̂⟩ = ⟨q, k⟩
(up to a factor 1 + 1/4d that the orthogonal columns add).
In every 32 tokens the channels of largest norm are taken out of the key and sketched by themselves, with the first columns of the same S.
As in the project, the norm that is kept is that of the whole key: ‖k_in‖ = √(‖k‖² − ‖k_out‖²).
Source: arXiv 2406.03482; amirzandieh/QJL @ 421d61cb. The project draws S on the GPU; here it is NumPy's default_rng(42).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal

import numpy as np

from tqbench.codecs.blocks.packing import pack, unpack
from tqbench.core.codec import Codec, Layout, Packed, Part
from tqbench.core.errors import ConfigError, Unsupported
from tqbench.core.lazy import Tensor, torch

SEED = 42
GROUP = 32  # tokens that share their outlier channels


@cache
def projection(d: int, chunks: int, seed: int) -> np.ndarray:
    """S, chunk by chunk: d columns of length √d, orthogonal to each other."""
    rng = np.random.default_rng(seed)
    return d**0.5 * np.concatenate([np.linalg.qr(rng.standard_normal((d, d)))[0] for _ in range(chunks)], 1)


@dataclass(frozen=True)
class QJL(Codec):
    """Sign bits and norms of keys; the same for the outlier channels of each group."""

    name: ClassVar[str] = "qjl"
    source: ClassVar[str] = "arXiv 2406.03482; amirzandieh/QJL @ 421d61cb"

    sketch: Literal[1, 2, 4] = 2  # m / head_dim: sign bits per channel
    outliers: Literal[0, 4, 8, 16] = 8  # channels of a group that are sketched by themselves
    outlier_sketch: Literal[1, 2, 4] = 1  # their m / head_dim

    def __post_init__(self) -> None:
        if self.outlier_sketch > self.sketch:
            raise ConfigError(f"outlier_sketch must be at most sketch ({self.sketch}), whose columns it uses, got {self.outlier_sketch}")

    @property
    def unit(self) -> int:
        return GROUP if self.outliers else 1

    def check(self, head_dim: int) -> None:
        if head_dim % 8:
            raise Unsupported(f"head_dim {head_dim} is no multiple of 8, so the signs of a key do not end on a byte")
        if self.outliers and not self.outliers < head_dim <= 256:
            raise Unsupported(f"head_dim {head_dim} does not have {self.outliers} outlier channels with an index of one byte")

    def layout(self, head_dim: int) -> Layout:
        parts = [
            Part("signs", "uint8", (self.unit, self.sketch * head_dim // 8)),
            Part("norms", "float16", (self.unit,), "metadata"),
        ]
        if self.outliers:
            parts += [
                Part("outlier_signs", "uint8", (GROUP, self.outlier_sketch * head_dim // 8)),
                Part("outlier_norms", "float16", (GROUP,), "metadata"),
                Part("outlier_channels", "uint8", (self.outliers,), "metadata"),
            ]
        return Layout(self.unit, tuple(parts))

    def quantize(self, y: Tensor) -> Packed:
        keys = y.unflatten(-2, (-1, self.unit))
        norms = keys.norm(dim=-1).to(torch.float16)
        if not self.outliers:
            return {"signs": _signs(keys, self.sketch), "norms": norms}
        channels = keys.norm(dim=-2).argsort(dim=-1, descending=True, stable=True)[..., : self.outliers]
        taken_out = _marked(channels, keys.shape[-1])
        outliers = torch.where(taken_out, keys, 0.0)
        return {
            "signs": _signs(torch.where(taken_out, 0.0, keys), self.sketch),
            "norms": norms,
            "outlier_signs": _signs(outliers, self.outlier_sketch),
            "outlier_norms": outliers.norm(dim=-1).to(torch.float16),
            "outlier_channels": channels.to(torch.uint8),
        }

    def dequantize(self, packed: Packed, dtype: torch.dtype) -> Tensor:
        norms = packed["norms"].to(dtype)
        if not self.outliers:
            return _estimate(packed["signs"], norms, self.sketch).flatten(-3, -2)
        outlier_norms = packed["outlier_norms"].to(dtype)
        inliers = _estimate(packed["signs"], (norms.square() - outlier_norms.square()).clamp(min=0).sqrt(), self.sketch)
        outliers = _estimate(packed["outlier_signs"], outlier_norms, self.outlier_sketch)
        taken_out = _marked(packed["outlier_channels"].to(torch.int64), inliers.shape[-1])
        return torch.where(taken_out, outliers, inliers).flatten(-3, -2)


def _signs(keys: Tensor, sketch: int) -> Tensor:
    """The bits of sign(Sᵀk): 1 for more than zero. Summed in float64, so that they do not depend on what else is in the product."""
    wide = keys.double()
    return pack((wide @ _projection(keys.shape[-1], sketch, wide) > 0).to(torch.uint8), 1)


def _estimate(signs: Tensor, norms: Tensor, sketch: int) -> Tensor:
    """√(π/2) / m · ‖k‖ · S sign(Sᵀk)."""
    z = 2.0 * unpack(signs, 1).to(norms.dtype) - 1
    m = z.shape[-1]
    return math.sqrt(math.pi / 2) / m * norms.unsqueeze(-1) * (z @ _projection(m // sketch, sketch, norms).T)


def _projection(d: int, chunks: int, like: Tensor) -> Tensor:
    return _on(d, chunks, SEED, like.dtype, like.device)


@cache
def _on(d: int, chunks: int, seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.from_numpy(projection(d, chunks, seed)).to(device, dtype)


def _marked(channels: Tensor, d: int) -> Tensor:
    """True at these channels, for all tokens of the group."""
    marked = torch.zeros(*channels.shape[:-1], d, dtype=torch.bool, device=channels.device)
    return marked.scatter(-1, channels, True).unsqueeze(-2)
