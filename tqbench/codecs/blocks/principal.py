"""Principal components: the orthonormal directions in which vectors vary most, in descending order.

Up to `EXACT` features, and where most directions are wanted, they are all eigenvectors of the Gram matrix AᵀA. Else they come from
randomised subspace iteration (Halko, Martinsson and Tropp, arXiv 0909.4061, algorithm 4.4 with eight power iterations) from a seeded
Gaussian start, on the same matrix: it spans what (AᵀA)⁸ Ω spans, as it would with A and Aᵀ in turn.
"""

from __future__ import annotations

from tqbench.core.lazy import Tensor, torch

EXACT = 1024
MOST = 3  # more than one in so many: then all eigenvectors take no longer than nine orthonormal bases
POWER = 8
EXTRA = 16  # directions that are carried along and dropped in the end


def components(x: Tensor, rank: int, seed: int) -> Tensor:
    """The first `rank` directions [features, rank] of centred vectors x [n, features]."""
    features = x.shape[1]
    wide = x.double() if features <= EXACT else x
    gram = wide.T @ wide
    if features <= EXACT or MOST * rank > features:
        return torch.linalg.eigh(gram).eigenvectors.flip(1)[:, :rank].to(x.dtype)
    start = torch.randn(features, min(features, rank + EXTRA), generator=torch.Generator().manual_seed(seed))
    q = _orthonormal(gram @ start.to(x.device, x.dtype))
    for _ in range(POWER):
        q = _orthonormal(gram @ q)
    return q @ torch.linalg.eigh(q.T @ gram @ q).eigenvectors.flip(1)[:, :rank]


def _orthonormal(x: Tensor) -> Tensor:
    return torch.linalg.qr(x).Q
