"""What one step asks of torch, found by evidence and apart from everything that is timed: which form its attention took, and how often the
host waited for the device."""

from __future__ import annotations

import linecache
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMS = {  # operations that torch's attention becomes, by what people call them
    "aten::_scaled_dot_product_flash_attention": "flash",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "flash (CPU)",
    "aten::_scaled_dot_product_efficient_attention": "efficient",
    "aten::_scaled_dot_product_cudnn_attention": "cudnn",
    "aten::_scaled_dot_product_fused_attention_overrideable": "another device's own",
    "aten::_scaled_dot_product_attention_math": "math",
    "aten::_scaled_dot_product_attention_math_for_mps": "math (MPS)",
}
WAITS = "called a synchronizing CUDA operation"  # what torch warns of in its debug mode
IN_ORDER = "calls return when their work is done: nobody waits for another"


@dataclass(frozen=True)
class Trace:
    """`attention`: the forms of torch's own that ran, and how often. `waits`: how often the host waited for the device, as far as torch
    sees it, and from where; None with the reason where that cannot be asked."""

    attention: dict[str, int]
    waits: int | None
    places: dict[str, int]
    reason: str | None = None

    def data(self, tokens: int) -> dict[str, Any]:
        """As records keep it, per token."""
        waits = {"host_waits": None if self.waits is None else self.waits / tokens}
        why = {"reason": self.reason} if self.reason else {"places": {place: n / tokens for place, n in self.places.items()}}
        return {"tokens": tokens, "attention": self.attention, **waits, **why}


def trace(step: Callable[[], Any], device: str) -> Trace:
    """Run a step under the profiler, and on CUDA once more in the mode in which torch tells every wait."""
    found = attention(step)
    if not device.startswith("cuda"):
        return Trace(found, None, {}, IN_ORDER if device == "cpu" else f"torch tells it of CUDA devices, not of {device}")
    places = _waits(step)
    return Trace(found, sum(places.values()), places)


def attention(step: Callable[[], Any]) -> dict[str, int]:
    """The forms of torch's own attention that a step runs, and how often."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        step()
    return dict(Counter(FORMS[event.name] for event in profile.events() or () if event.name in FORMS))


def _waits(step: Callable[[], Any]) -> dict[str, int]:
    import torch

    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return dict(Counter(_place(one.filename, one.lineno) for one in told if WAITS in str(one.message)))


def _place(file: str, line: int) -> str:
    """Where in the code, without what is private in its path."""
    return f"{'/'.join(Path(file).parts[-2:])}:{line} {linecache.getline(file, line).strip()}".strip()
