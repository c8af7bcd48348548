"""What the host knows of a cache at one moment, to be put back: counts, positions, and which arrays hold what.

Arrays are held by reference. So a snapshot keeps those of its moment alive where they are, and putting it back is right only if nothing
was written since into what they held then: stores append behind it, and what is not appended is a new array.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from tqbench.cache.store import Store


class Snapshot:
    """The fields of objects that change while tokens come."""

    def __init__(self, parts: Iterable[Any]):
        self.held = [(part, _fields(vars(part))) for part in parts]

    def restore(self) -> None:
        """Put them back, any number of times."""
        for part, fields in self.held:
            vars(part).clear()
            vars(part).update(_fields(fields))


def _fields(values: dict[str, Any]) -> dict[str, Any]:
    """Dictionaries and lists are filled in place; everything else is replaced when it changes. Only flags of checks that were put off
    (`Pending`) turn false where they are, and stay so: what failed once has failed."""
    return {name: value.copy() if isinstance(value, dict | list) else value for name, value in values.items()}


def parts(stores: Iterable[Store]) -> Iterator[Any]:
    """All that changes in stores that share nothing."""
    for store in stores:
        yield from (store, store.attention, store.shown)
        for side in (store.k, store.v):
            yield from (side, side.pending, side.kernels.encode, side.kernels.decode)
