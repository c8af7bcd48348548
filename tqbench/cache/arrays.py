"""The few things a store needs from a framework's arrays. Policy and ledger are plain integers."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tqbench.core.codec import compute_dtype

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]


class Arrays(Protocol):
    """Opaque arrays [batch, kv_heads, n, …] that grow along n."""

    platform: str
    device: str

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        """A new buffer."""

    def write(self, buffer: Any, start: int, rows: Any) -> Any:
        """The buffer with rows at [:, :, start:]; in place where the framework can."""

    def concat(self, parts: list[Any]) -> Any:
        """Parts one after another along n, in memory of their own and in the dtype of the last."""

    def ready(self, x: Any) -> Any:
        """x; while stages are timed, computed before it is handed on."""

    def scaled(self, q: Any, factors: list[float]) -> Any:
        """q [batch, heads, n, head_dim] with row i times factors[i]."""

    def squares(self, x: Any, y: Any) -> tuple[float, float]:
        """(Σ (x − y)², Σ x²), summed in float64."""

    def wide(self, x: Any) -> Floats:
        """The values in float64, on the host."""

    def to_bytes(self, x: Any) -> Bytes:
        """The bytes of an array, on the host."""

    def from_bytes(self, data: Bytes, shape: tuple[int, ...], dtype: str) -> Any:
        """Undo `to_bytes`, in memory of its own."""


class TorchArrays:
    """Arrays of torch tensors on one device."""

    platform = "torch"

    def __init__(self, device: str = "cpu"):
        self.device = device

    def empty(self, shape: tuple[int, ...], dtype: str) -> Tensor:
        return torch.empty(shape, dtype=getattr(torch, dtype), device=self.device)

    def write(self, buffer: Tensor, start: int, rows: Tensor) -> Tensor:
        buffer[:, :, start : start + rows.shape[2]] = rows
        return buffer

    def concat(self, parts: list[Tensor]) -> Tensor:
        return torch.cat([part.to(parts[-1].dtype) for part in parts], dim=2)

    def ready(self, x: Any) -> Any:
        return x  # where torch computes later, the stage waits for the device

    def scaled(self, q: Tensor, factors: list[float]) -> Tensor:
        wide = compute_dtype(q.dtype)  # in 16 bits most factors would round to one
        if len(set(factors)) == 1:  # one query, above all: a number goes along with the call, a tensor would be waited for
            return (q.to(wide) * factors[0]).to(q.dtype)
        return (q.to(wide) * torch.tensor(factors, dtype=wide, device=q.device)[:, None]).to(q.dtype)

    def squares(self, x: Tensor, y: Tensor) -> tuple[float, float]:
        wide = x.double()
        return float((wide - y.double()).square().sum()), float(wide.square().sum())

    def wide(self, x: Tensor) -> Floats:
        return x.double().cpu().numpy()

    def to_bytes(self, x: Tensor) -> Bytes:
        return x.contiguous().view(torch.uint8).cpu().numpy().reshape(-1)

    def from_bytes(self, data: Bytes, shape: tuple[int, ...], dtype: str) -> Tensor:
        flat = torch.empty(len(data), dtype=torch.uint8, device=self.device)  # aligned as torch's own: sums may depend on it
        flat.copy_(torch.from_numpy(data if data.flags.writeable else data.copy()))
        return flat.view(getattr(torch, dtype)).reshape(shape)
