"""Allocate: bits of each component under a budget, so that the squared error Σ λ / 4^b is least.

allocate(variances, budget, most) -> bits; of allocations that are equally good the one that favours later components, and the cheapest.
"""

from __future__ import annotations

from typing import Any

from tqbench.core.op import Impl, Op


def _load_greedy() -> Any:
    from tqbench.codecs.blocks.allocation import greedy

    return greedy


def _load_reference() -> Any:
    from tqbench.kernels.allocate.reference import allocate

    return allocate


OP = Op("allocate", (Impl("greedy", _load_greedy), Impl("reference", _load_reference)))
