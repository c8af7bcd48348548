"""Orthonormal rotations as plain matrices (the fast forms live in kernels).

`hadamard*` need a power of two; the others take any size. Signs and angles come from fixed seeds: equal names, seeds and sizes are
equal matrices on every machine.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, get_args

import numpy as np

from tqbench.core.errors import Unsupported
from tqbench.core.lazy import Tensor, torch

Rotation = Literal[
    "none",
    "hadamard",  # H / √n, Sylvester's order: llama.cpp, vLLM
    "hadamard_signed",  # H (s · x) / √n, random signs
    "hadamard_double_signed",  # s₂ · H (s₁ · x) / √n with the signs of TheTom's fork
    "hadamard_amesianx",  # H (s · x) / √n with AmesianX's signs
    "hadamard_mlx_vlm",  # H (s · x) / √n with mlx-vlm's signs, which depend on n; other sizes than powers of two: its Haar matrix
    "haar",  # uniform over all rotations: Q of a Gaussian matrix
    "planar",  # pairs (2i, 2i + 1) by a random angle: RotorQuant's PlanarQuant
    "iso",  # fours by v → p v q̄, two random unit quaternions: RotorQuant's IsoQuant
    "iso_fast",  # fours by v → p v
    "cross_head",  # H₈ ⊗ H₆₄: eight heads of 64 channels in one vector
]
HADAMARDS = tuple(name for name in get_args(Rotation) if name.startswith("hadamard"))

# numpy default_rng(42), two draws of choice([-1, 1], 128), as the TurboQuant ggml fork tabulates them; index 0 is the highest bit, a 1 bit
# means minus.
_FIRST = 0x9AC05627929A1F42DDDC6325950A4F92
_SECOND = 0x097735683BF146FC5EACA5ED46A6A57D
# AmesianX's signs: bit j % 8 of byte j // 8, a 1 bit means minus; the first 256, and those that follow for 512.
AMESIANX = bytes.fromhex(
    "a73b91f46dc2580eb37f24d68945ea1c63afd852970be13d76c419fe4a852cdbd34ea8179c5be63172b90df5438a6ec7582f94e1b63d0a7cc561d84fa3971e85"
)


def hadamard(n: int) -> Tensor:
    """The Sylvester matrix of order n (a power of two), unnormalized, in natural order."""
    h = torch.ones(1, 1, dtype=torch.float64)
    while h.shape[0] < n:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)], 0)
    return h


@cache
def matrix(name: Rotation, n: int, seed: int, dtype: torch.dtype, device: str) -> Tensor:
    """The orthonormal R with y = R x for n channels."""
    return _float64(name, n, seed).to(device, dtype)


def check(name: Rotation, n: int) -> None:
    """Raise Unsupported if there is no such rotation of n channels."""
    if name in HADAMARDS and n & (n - 1) and name != "hadamard_mlx_vlm":
        raise Unsupported(f"rotation {name}: a Hadamard matrix of {n} channels is not at hand (a power of two is)")
    most = {"hadamard_double_signed": 128, "hadamard_amesianx": 512}.get(name, n)
    if n > most:
        raise Unsupported(f"rotation {name}: its signs are given for at most {most} channels, not {n}; set rotation_group")
    if n % {"planar": 2, "iso": 4, "iso_fast": 4}.get(name, 1):
        raise Unsupported(f"rotation {name}: {n} channels do not split into its blocks")
    if name == "cross_head" and n != 512:
        raise Unsupported(f"rotation cross_head: eight heads of 64 channels are 512, not {n}")


def _float64(name: Rotation, n: int, seed: int) -> Tensor:
    check(name, n)
    if name == "none":
        return torch.eye(n, dtype=torch.float64)
    if name == "haar":
        return _haar(n, seed)
    if name == "hadamard_mlx_vlm" and n & (n - 1):
        return _haar(n, seed + 7919 * n, np.float32)
    if name == "planar":
        return torch.block_diag(*_planar(n, seed))
    if name in ("iso", "iso_fast"):
        return torch.block_diag(*_iso(n, seed, both=name == "iso"))
    h = hadamard(n) / n**0.5  # cross_head too: H₈ ⊗ H₆₄ is the Sylvester matrix of order 512
    if name in ("hadamard", "cross_head"):
        return h
    if name == "hadamard_double_signed":
        return _word_signs(_SECOND, n)[:, None] * h * _word_signs(_FIRST, n)
    return h * {"hadamard_signed": _seeded, "hadamard_amesianx": _amesianx, "hadamard_mlx_vlm": _mlx_vlm}[name](n, seed)


def _word_signs(word: int, n: int) -> Tensor:
    return torch.tensor([1.0 - 2.0 * (word >> (127 - i) & 1) for i in range(n)], dtype=torch.float64)


def _seeded(n: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).choice([-1.0, 1.0], size=n))


def _mlx_vlm(n: int, seed: int) -> Tensor:
    return _seeded(n, seed + 7919 * n)


def _amesianx(n: int, seed: int) -> Tensor:  # noqa: ARG001 - its signs are fixed
    return torch.tensor([1.0 - 2.0 * (AMESIANX[j // 8] >> j % 8 & 1) for j in range(n)], dtype=torch.float64)


def _haar(n: int, seed: int, drawn: type[np.floating[Any]] = np.float64) -> Tensor:
    """Q of a Gaussian matrix, its signs fixed by R's diagonal: uniform over rotations and reflections. mlx-vlm draws it in float32."""
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n), dtype=drawn).astype(np.float64))
    return torch.from_numpy(q * np.sign(np.diag(r)))


def _planar(n: int, seed: int) -> list[Tensor]:
    angles = torch.rand(n // 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float32).double() * (2 * np.pi)
    return [torch.stack([torch.stack([a.cos(), -a.sin()]), torch.stack([a.sin(), a.cos()])]) for a in angles]


def _iso(n: int, seed: int, *, both: bool) -> list[Tensor]:
    left, right = (_quaternions(n // 4, s) for s in (seed, seed + 10000))
    return [
        _times(p, left=True) @ (_times(_conjugate(q), left=False) if both else torch.eye(4).double())
        for p, q in zip(left, right, strict=True)
    ]


def _quaternions(n: int, seed: int) -> Tensor:
    q = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float32).double()
    return q / q.norm(dim=1, keepdim=True)


def _conjugate(q: Tensor) -> Tensor:
    return q * torch.tensor([1.0, -1.0, -1.0, -1.0], dtype=q.dtype)


def _times(q: Tensor, *, left: bool) -> Tensor:
    """The 4 × 4 matrix of v → q v, or of v → v q."""
    a, b, c, d = q.tolist()
    s = 1.0 if left else -1.0
    return torch.tensor([[a, -b, -c, -d], [b, a, -s * d, s * c], [c, s * d, a, -s * b], [d, -s * c, s * b, a]], dtype=torch.float64)


def rotate(x: Tensor, name: Rotation, n: int, seed: int) -> Tensor:
    """Rotate each group of n consecutive channels. Summed in float64, so that what a vector becomes does not depend on its neighbours in
    a matrix product."""
    if name == "none":
        return x
    groups = x.double().unflatten(-1, (-1, n))
    return (groups @ matrix(name, n, seed, torch.float64, str(x.device)).T).flatten(-2).to(x.dtype)


def unrotate(y: Tensor, name: Rotation, n: int, seed: int) -> Tensor:
    """Undo `rotate`."""
    if name == "none":
        return y
    return (y.unflatten(-1, (-1, n)) @ matrix(name, n, seed, y.dtype, str(y.device))).flatten(-2)
