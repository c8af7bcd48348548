"""Principal components: the orthonormal directions in which vectors vary most, in descending order.

Up to `EXACT` features from all eigenvectors of the covariance; beyond, by randomised subspace iteration (Halko, Martinsson and Tropp,
arXiv 0909.4061, algorithm 4.4 with eight power iterations) from a seeded Gaussian start. The iterations run on the Gram matrix AᵀA, which
is formed once: they span what (AᵀA)⁸ Ω spans, as they would with A and Aᵀ in turn.
"""

from __future__ import annotations

from tqbench.core.lazy import Tensor, torch

EXACT = 1024
POWER = 8
EXTRA = 16  # directions that are carried along and dropped in the end


def components(x: Tensor, rank: int, seed: int) -> Tensor:
    """The first `rank` directions [features, rank] of centred vectors x [n, features]."""
    features = x.shape[1]
    if features <= EXACT:
        wide = x.double()
        return torch.linalg.eigh(wide.T @ wide).eigenvectors.flip(1)[:, :rank].to(x.dtype)
    gram = x.T @ x
    start = torch.randn(features, min(features, rank + EXTRA), generator=torch.Generator().manual_seed(seed))
    q = _orthonormal(gram @ start.to(x.device, x.dtype))
    for _ in range(POWER):
        q = _orthonormal(gram @ q)
    return q @ torch.linalg.eigh(q.T @ gram @ q).eigenvectors.flip(1)[:, :rank]


def _orthonormal(x: Tensor) -> Tensor:
    return torch.linalg.qr(x).Q
