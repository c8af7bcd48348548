"""Where the time of a step goes. Stores, attention and sessions mark their stages; a mark costs nothing unless something is timing.

Stages nest, and each is charged only with what happens in itself: the sum is the time spent inside any of them, counted once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from tqbench.measure import clock

_OFF = nullcontext()


@dataclass
class Stages:
    """Seconds by stage, while it is open. `wait` returns when the device has done what was asked of it."""

    wait: Callable[[], None] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    _within: list[str] = field(default_factory=list)
    _since: float = 0.0

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
        if self.wait:
            self.wait()
        now = clock.seconds()
        if self._within:
            name = self._within[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now


_timing: Stages | None = None


def stage(name: str) -> AbstractContextManager[None]:
    """Mark a stage of a step."""
    return _OFF if _timing is None else _timing.charged(name)


def timing() -> bool:
    """Whether stages are timed now: where a framework computes when it likes, results must then be asked for at the end of each."""
    return _timing is not None


@contextlib.contextmanager
def timed(wait: Callable[[], None] | None = None) -> Iterator[Stages]:
    """Time all stages in here."""
    global _timing  # noqa: PLW0603 - marks lie deep inside models, where nothing can be handed down
    before, _timing = _timing, Stages(wait)
    try:
        yield _timing
    finally:
        _timing = before
