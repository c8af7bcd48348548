"""The only reader of clocks, and the only one who waits for a device."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol


def seconds() -> float:
    """A monotonic clock, in seconds."""
    return time.perf_counter()


def processor() -> float:
    """Seconds of processor time that all threads of this process have used."""
    return time.process_time()


def stamp() -> str:
    """Now, in UTC, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def waiter(device: str) -> Callable[[], None] | None:
    """What waits for a device of torch. None where a call returns when its work is done: the CPU, and MLX, whose sessions evaluate."""
    if not device.startswith(("cuda", "mps")):
        return None
    import torch

    return partial(torch.cuda.synchronize, device) if device.startswith("cuda") else torch.mps.synchronize


class Marks(Protocol):
    """Points in time that are set while work goes on, and read when it is over."""

    def mark(self) -> Any:
        """Now: after what has been asked of the device, before what will be."""

    def spent(self, pairs: Sequence[tuple[Any, Any]]) -> list[float]:
        """Seconds between two marks, for each pair."""


class HostMarks:
    """On this machine's clock. Where the device computes on by itself, each mark waits for it."""

    def __init__(self, wait: Callable[[], None] | None = None):
        self.wait = wait

    def mark(self) -> float:
        if self.wait:
            self.wait()
        return seconds()

    def spent(self, pairs: Sequence[tuple[float, float]]) -> list[float]:
        return [end - start for start, end in pairs]


class DeviceMarks:
    """On the clock of a CUDA device: events in its queue, so that nothing waits and what runs side by side without marks still does. A
    stage in which the device waits for the host is charged with that, as the whole is."""

    def __init__(self, device: str):
        import torch

        self.device, self.stream = device, torch.cuda.current_stream
        self.event: Any = torch.cuda.Event

    def mark(self) -> Any:
        event = self.event(enable_timing=True)
        event.record(self.stream(self.device))
        return event

    def spent(self, pairs: Sequence[tuple[Any, Any]]) -> list[float]:
        if pairs:
            pairs[-1][1].synchronize()  # the queue is in order: the last is done when all are
        return [start.elapsed_time(end) / 1e3 for start, end in pairs]


def marks(device: str) -> Marks:
    """What sets marks on a device."""
    return DeviceMarks(device) if device.startswith("cuda") else HostMarks(waiter(device))


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
