"""torch, bound at first use, so that codecs can be listed and planned without importing it."""

from __future__ import annotations

__all__ = ["Tensor", "torch"]

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    import importlib

    class _Lazy:
        def __getattr__(self, name):
            return getattr(importlib.import_module("torch"), name)

    torch = _Lazy()
    Tensor = "Tensor"
