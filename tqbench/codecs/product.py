"""TurboQuant's form for inner products: a codebook of b − 1 bits, and one more bit per coordinate that signs what the codebook left over.

n = ‖y‖, u = y √d / n, c = the nearest levels of u, r = u − c. Stored: the indices of c, n, z = sign(S r), and a gain γ; decoded,

    y ≈ n / √d · c + γ · Sᵀ z.

    qjl          S ∈ R^(d × d) Gaussian, γ = √(π/2) / d · ‖r‖ n / √d    the paper: ⟨q, y⟩ is unbiased over S, with π/2d times the squared
                                                                        error of b − 1 bits
    qjl_srht     S = H · signs, the same γ                              a fast S; for orthogonal rows π/2d becomes (π/2 − 1)/d
    direct_sign  S = 1, γ = mean|r| · n / √d                            one more bit for r itself: smaller squared error, but biased
    amesianx     direct_sign up to 128 channels, qjl_srht with its own signs for 256

What is kept of γ, in fp16, is ‖r‖ n / √d, the length of the residual of y, and for S = 1 mean|r| · n.
Sources: arXiv 2504.19874; AmesianX/TurboQuant ggml/src/ggml-cuda/cpy-utils.cuh @ cb3c258c6 (tbqp3, tbqp4).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import pi
from typing import ClassVar, Literal

import numpy as np

from tqbench.codecs.blocks import codebooks, gain_shape, rotations
from tqbench.codecs.blocks.packing import pack, unpack
from tqbench.core.codec import Codec, Layout, Packed, Part
from tqbench.core.errors import ConfigError, Unsupported
from tqbench.core.lazy import Tensor, torch

Residual = Literal["qjl", "qjl_srht", "direct_sign", "amesianx"]


@dataclass(frozen=True)
class Product(Codec):
    """Codebook indices of one bit less, the signs of the projected residual, and two lengths per vector."""

    name: ClassVar[str] = "product"
    source: ClassVar[str] = "arXiv 2504.19874; AmesianX/TurboQuant @ cb3c258c6"

    bits: Literal[2, 3, 4, 5, 6, 7, 8] = 4
    residual: Residual = "qjl"
    table: codebooks.Table = "sphere"
    ties: gain_shape.Ties = "up"
    sketch_seed: int = 1  # of S

    def __post_init__(self) -> None:
        widths = codebooks.widths(self.table)
        if self.bits - 1 not in widths:
            raise ConfigError(f"bits less one must be one of {', '.join(map(str, widths))} for table {self.table!r}, got {self.bits}")

    def check(self, head_dim: int) -> None:
        if head_dim % 8:
            raise Unsupported(f"head_dim {head_dim} is no multiple of 8, so its signs do not end on a byte")
        if self.residual in ("qjl_srht", "amesianx") and head_dim & (head_dim - 1):
            raise Unsupported(f"head_dim {head_dim}: residual {self.residual} needs a power of two")
        if self.residual == "amesianx" and head_dim > 256:
            raise Unsupported(f"head_dim {head_dim}: residual amesianx goes up to 256 channels")

    def layout(self, head_dim: int) -> Layout:
        return Layout(
            1,
            (
                Part("norms", "float16", (1,), "metadata"),
                Part("gains", "float16", (1,), "metadata"),
                Part("codes", "uint8", (head_dim * (self.bits - 1) // 8,)),
                Part("signs", "uint8", (head_dim // 8,)),
            ),
        )

    def quantize(self, y: Tensor) -> Packed:
        norm, u = gain_shape.split(y)
        index = gain_shape.nearest(u, self.table, self.bits - 1, self.ties)
        r = u - gain_shape.values(index, self.table, self.bits - 1, y.dtype)
        if self._direct(y.shape[-1]):
            gain, projected = r.abs().mean(-1, keepdim=True) * norm, r
        else:
            # Signs from sums in float64, so that they do not depend on what else is in the matrix product.
            gain, projected = r.norm(dim=-1, keepdim=True) * norm / y.shape[-1] ** 0.5, r.double() @ self._sketch(r.double()).T
        return {
            "norms": norm.to(torch.float16),
            "gains": gain.to(torch.float16),
            "codes": pack(index.to(torch.uint8), self.bits - 1),
            "signs": pack((projected >= 0).to(torch.uint8), 1),
        }

    def dequantize(self, packed: Packed, dtype: torch.dtype) -> Tensor:
        c = gain_shape.values(unpack(packed["codes"], self.bits - 1), self.table, self.bits - 1, dtype)
        z = unpack(packed["signs"], 1).to(dtype) * 2 - 1
        norm, gain, d = packed["norms"].to(dtype), packed["gains"].to(dtype), c.shape[-1]
        if self._direct(d):
            return (c * norm + z * gain) / d**0.5
        return c * norm / d**0.5 + z @ self._sketch(z) * gain * (pi / 2) ** 0.5 / d

    def _direct(self, d: int) -> bool:
        return self.residual == "direct_sign" or (self.residual == "amesianx" and d <= 128)

    def _sketch(self, like: Tensor) -> Tensor:
        return _on(self.residual, like.shape[-1], self.sketch_seed, like.dtype, like.device)


@cache
def _on(residual: Residual, d: int, seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return sketch(residual, d, seed).to(device, dtype)


@cache
def sketch(residual: Residual, d: int, seed: int) -> Tensor:
    """S: rows of length √d, on average or, for the Hadamard forms, exactly."""
    if residual == "qjl":
        return torch.from_numpy(np.random.default_rng(seed).standard_normal((d, d)))
    if residual == "amesianx":
        signs = 1.0 - 2.0 * np.unpackbits(np.frombuffer(rotations.AMESIANX[32:], np.uint8), bitorder="little")[:d]
    else:
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=d)
    return rotations.hadamard(d) * torch.from_numpy(signs)
