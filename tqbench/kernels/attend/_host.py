"""The reference for MLX arrays: they cross to torch and back."""

from __future__ import annotations

import dataclasses
from typing import Any

from tqbench.kernels._host import to_mlx, to_torch
from tqbench.kernels.attend import View, reference


def attend(q: Any, k: View, v: View, start: int, scale: float, softcap: float | None = None) -> Any:
    """The reference on the host."""
    return to_mlx(reference.attend(to_torch(q), _crossed(k), _crossed(v), start, scale, softcap))


def _crossed(side: View) -> View:
    sinks = None if side.sinks is None else to_torch(side.sinks)
    return dataclasses.replace(side, sinks=sinks, packed=lambda: to_torch(side.packed()), tail=to_torch(side.tail))
