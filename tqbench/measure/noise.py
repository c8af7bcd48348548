"""Whether the machine was left alone: how much of it others used while something was timed."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from tqbench.measure import clock

QUIET = 0.1  # cores that others may use in a timed stretch; beyond it the row is marked as disturbed


@dataclass
class Watch:
    """What other processes used of the processor between enter and exit, in cores; None where the system does not tell."""

    foreign: float | None = None
    _start: tuple[float, float | None] = field(default=(0.0, None), init=False)

    def __enter__(self) -> Watch:
        self._start = clock.seconds(), _others()
        return self

    def __exit__(self, *exception: object) -> None:
        began, before = self._start
        elapsed, after = clock.seconds() - began, _others()
        if before is not None and after is not None and elapsed > 0:
            self.foreign = max(0.0, after - before) / elapsed

    @property
    def disturbed(self) -> bool | None:
        """Whether others used more than `QUIET` cores."""
        return None if self.foreign is None else self.foreign > QUIET


def _others() -> float | None:
    """Seconds of processor time that all processes but this one have used, what the hypervisor took included."""
    try:
        first = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return None
    user, nice, system, _idle, _wait, irq, softirq, steal = (int(ticks) for ticks in first[1:9])
    own = os.times()
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - own.user - own.system
