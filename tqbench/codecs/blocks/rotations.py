"""Orthonormal rotations of groups of channels, as plain matrices (the fast forms live in kernels)."""

from __future__ import annotations

from functools import cache

from tqbench.core.lazy import Tensor, torch

# numpy default_rng(42), two draws of choice([-1, 1], 128), as the TurboQuant ggml fork tabulates them; a 1 bit means minus.
_FIRST = 0x9AC05627929A1F42DDDC6325950A4F92
_SECOND = 0x097735683BF146FC5EACA5ED46A6A57D


def signs(word: int, n: int) -> Tensor:
    """The first n signs of a 128-bit word, index 0 being its most significant bit."""
    return torch.tensor([1.0 - 2.0 * (word >> (127 - i) & 1) for i in range(n)], dtype=torch.float64)


def hadamard(n: int) -> Tensor:
    """The Sylvester matrix of order n (a power of two), unnormalized, in natural order."""
    h = torch.ones(1, 1, dtype=torch.float64)
    while h.shape[0] < n:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)], 0)
    return h


@cache
def matrix(name: str, n: int, dtype: torch.dtype, device: str) -> Tensor:
    """The rotation R with y = R x for groups of n channels."""
    if name == "none":
        r = torch.eye(n, dtype=torch.float64)
    elif name == "hadamard":
        r = hadamard(n) / n**0.5
    else:  # hadamard_double_signed: y = s2 * H (s1 * x) / sqrt(n)
        r = signs(_SECOND, n)[:, None] * hadamard(n) * signs(_FIRST, n) / n**0.5
    return r.to(device, dtype)


def rotate(x: Tensor, name: str, n: int) -> Tensor:
    """Rotate each group of n consecutive channels."""
    if name == "none":
        return x
    groups = x.unflatten(-1, (-1, n))
    return (groups @ matrix(name, n, x.dtype, str(x.device)).T).flatten(-2)


def unrotate(y: Tensor, name: str, n: int) -> Tensor:
    """Undo `rotate`."""
    if name == "none":
        return y
    groups = y.unflatten(-1, (-1, n))
    return (groups @ matrix(name, n, y.dtype, str(y.device))).flatten(-2)
