"""The only reader of clocks, and the only one who waits for a device."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any


def seconds() -> float:
    """A monotonic clock, in seconds."""
    return time.perf_counter()


def stamp() -> str:
    """Now, in UTC, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def waiter(device: str) -> Callable[[], None] | None:
    """What waits for a device of torch. None where a call returns when its work is done: the CPU, and MLX, whose sessions evaluate."""
    if not device.startswith(("cuda", "mps")):
        return None
    import torch

    return torch.cuda.synchronize if device.startswith("cuda") else torch.mps.synchronize


def timed(fn: Callable[[], Any], wait: Callable[[], None] | None = None) -> float:
    """Seconds of one call. `wait` returns when the device has done what was asked of it."""
    if wait:
        wait()
    start = seconds()
    fn()
    if wait:
        wait()
    return seconds() - start


def interleaved(
    fns: Mapping[str, Callable[[], Any]], rounds: int, warmup: int = 1, wait: Callable[[], None] | None = None
) -> dict[str, list[float]]:
    """Seconds of each call, `rounds` times in turn, so that what disturbs the machine meets all of them. The order alternates."""
    for fn in fns.values():
        for _ in range(warmup):
            fn()
    found: dict[str, list[float]] = {name: [] for name in fns}
    for turn in range(rounds):
        for name in list(fns)[:: -1 if turn % 2 else 1]:
            found[name].append(timed(fns[name], wait))
    return found
