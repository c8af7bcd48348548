"""A cache as plain data: what a session gives out to be saved and takes back, whatever engine holds the arrays."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tqbench.core.codec import ITEMSIZE

# What bytes of a cache count as: codes, what stands beside them, exact first tokens, exact recent tokens; all tokens of the own cache.
Role = Literal["payload", "metadata", "sinks", "window", "exact"]
SIDES: tuple[Literal["k", "v"], ...] = ("k", "v")
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True)
class Form:
    """An array without its bytes. `bits`: of a code, where the array is a bit stream of codes; what an entropy coder counts by."""

    name: str
    role: Role
    dtype: str
    shape: tuple[int, ...]
    bits: int = 8

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return ITEMSIZE[self.dtype] * prod(self.shape)


@dataclass(frozen=True)
class Entry:
    """One side of one layer, or what several share: plain facts, and the bytes of its arrays."""

    key: str
    facts: dict[str, Any]
    arrays: tuple[tuple[Form, NDArray[np.uint8]], ...]


@dataclass(frozen=True)
class State:
    """Everything that a cache holds, in the order of the layers."""

    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Agreement:
    """What a cache holds beside the exact keys or values of a layer, vector by vector (a token of a head)."""

    layer: int
    side: str
    cosine: NDArray[np.float64]  # of the two
    error: NDArray[np.float64]  # the length of their difference, against that of the exact one
