"""torch, bound at first use, so that codecs can be listed and planned without importing it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch as torch
    from torch import Tensor as Tensor
else:
    import importlib

    class _Lazy:
        def __getattr__(self, name):  # noqa: ANN
            return getattr(importlib.import_module("torch"), name)

    torch = _Lazy()
    Tensor = "Tensor"
