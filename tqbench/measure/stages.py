"""Where the time of a step goes. Stores, attention and sessions mark their stages; a mark costs nothing unless something is timing.

Stages nest, and each is charged only with what happens in itself: the sum is the time spent inside any of them, counted once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from tqbench.measure import clock
from tqbench.measure.clock import Marks

_OFF = nullcontext()


@dataclass
class Stages:
    """Seconds by stage, known once it is closed."""

    marks: Marks
    seconds: dict[str, float] = field(default_factory=dict)
    _within: list[str] = field(default_factory=list)
    _since: Any = None
    _charges: list[tuple[str, Any, Any]] = field(default_factory=list)  # a stage, from a mark to a mark

    @contextlib.contextmanager
    def charged(self, name: str) -> Iterator[None]:
        """What happens in here belongs to that stage, unless a stage inside takes it."""
        self._charge()
        self._within.append(name)
        try:
            yield
        finally:
            self._charge()
            self._within.pop()

    def _charge(self) -> None:
        """Book the time since the last mark to the innermost open stage."""
        now = self.marks.mark()
        if self._within:
            self._charges.append((self._within[-1], self._since, now))
        self._since = now

    def close(self) -> None:
        """Read the marks."""
        spent = self.marks.spent([(start, end) for _, start, end in self._charges])
        for (name, _, _), seconds in zip(self._charges, spent, strict=True):
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self._charges.clear()


_timing: Stages | None = None


def stage(name: str) -> AbstractContextManager[None]:
    """Mark a stage of a step."""
    return _OFF if _timing is None else _timing.charged(name)


def timing() -> bool:
    """Whether stages are timed now: where a framework computes when it likes, results must then be asked for at the end of each."""
    return _timing is not None


@contextlib.contextmanager
def timed(marks: Marks | None = None) -> Iterator[Stages]:
    """Time all stages in here; `marks` are those of the device, of none this machine's clock."""
    global _timing  # noqa: PLW0603 - marks lie deep inside models, where nothing can be handed down
    before, own = _timing, Stages(marks or clock.HostMarks())
    _timing = own
    try:
        yield own
    finally:
        _timing = before
        own.close()
