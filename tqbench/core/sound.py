"""Checks of values that lie on a device. They are made at once, or put off while steps are timed: to ask for the answer is to wait."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from tqbench.core.errors import Unsupported


class Pending:
    """Checks that have been put off: one flag on the device for each that may fail, however often it is made."""

    def __init__(self) -> None:
        self.flags: dict[str, Any] = {}

    def add(self, words: str, sound: Any) -> None:
        """Note an answer that nobody waits for."""
        known = self.flags.get(words)
        self.flags[words] = sound if known is None else known.logical_and_(sound)

    def settle(self) -> None:
        """Ask for all of them; Unsupported in the words of the first that failed."""
        flags, self.flags = self.flags, {}
        for words, sound in flags.items():
            if not bool(sound):
                raise Unsupported(words)


_pending: Pending | None = None


def require(sound: Any, words: str, exactly: Callable[[], str] | None = None) -> None:
    """Raise Unsupported unless the flag is true, now or when what is pending is settled. `exactly` has better words while the values are
    at hand."""
    if _pending is not None:
        _pending.add(words, sound)
    elif not bool(sound):
        raise Unsupported(exactly() if exactly else words)


@contextlib.contextmanager
def put_off(pending: Pending | None) -> Iterator[None]:
    """Put the checks in here off to `pending`; with None they are made at once."""
    global _pending  # noqa: PLW0603 - checks lie deep inside codecs, where nothing can be handed down
    before, _pending = _pending, pending
    try:
        yield
    finally:
        _pending = before
