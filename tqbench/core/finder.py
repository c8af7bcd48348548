"""Answers for tqbench where it runs from its sources: it is loaded with tqbench, and what it answers with only when somebody asks."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from importlib.metadata import Distribution, DistributionFinder


class Finder:
    """Finds no modules, and one distribution. Asked last, because names are answered by the first that knows them."""

    def find_spec(self, *_: Any) -> None:
        """Nothing."""

    def find_distributions(self, context: DistributionFinder.Context | None = None) -> Iterable[Distribution]:
        """These sources, where they are whole."""
        if context is not None and context.name not in (None, "tqbench"):
            return []
        from tqbench.core.uninstalled import sources

        return sources()


def announce() -> None:
    """Once per process."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.append(Finder())
