"""What a store needs from MLX arrays."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from tqbench.cache.arrays import Bytes, Floats
from tqbench.measure import stages


class MlxArrays:
    """MLX arrays on the device of the session's stream."""

    platform = "mlx"

    def __init__(self, device: str = "cpu"):
        self.device = device

    def empty(self, shape: tuple[int, ...], dtype: str) -> mx.array:
        return mx.zeros(shape, dtype=getattr(mx, dtype))

    def write(self, buffer: mx.array, start: int, rows: mx.array) -> mx.array:
        buffer[:, :, start : start + rows.shape[2]] = rows
        return buffer

    def concat(self, parts: list[mx.array]) -> mx.array:
        if len(parts) == 1:  # a slice would keep the array that it was cut from alive: `contiguous` copies then
            return mx.contiguous(parts[0])
        return mx.concatenate([part.astype(parts[-1].dtype) for part in parts], axis=2)

    def ready(self, x: Any) -> Any:
        if stages.timing():
            mx.eval(x)
        return x

    def scaled(self, q: mx.array, factors: list[float]) -> mx.array:
        return (q.astype(mx.float32) * mx.array(factors)[:, None]).astype(q.dtype)  # in 16 bits most factors would round to one

    def squares(self, x: mx.array, y: mx.array) -> tuple[float, float]:
        wide = _float64(x)
        return float(np.square(wide - _float64(y)).sum()), float(np.square(wide).sum())

    def wide(self, x: mx.array) -> Floats:
        return _float64(x)

    def to_bytes(self, x: mx.array) -> Bytes:
        return np.array(mx.contiguous(x).view(mx.uint8), order="C").reshape(-1)

    def from_bytes(self, data: Bytes, shape: tuple[int, ...], dtype: str) -> mx.array:
        return mx.array(data).view(getattr(mx, dtype)).reshape(shape)


def _float64(x: mx.array) -> Any:
    return np.asarray(x.astype(mx.float32)).astype(np.float64)  # NumPy has no bfloat16, MLX no float64 on GPUs
