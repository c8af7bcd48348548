"""Scoring, the same for every engine: tokens in chunks, logits reduced to numbers row by row, the baseline beside the scheme."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from tqbench.core.session import Ids, TokenScores

ROWS = 64  # logits are reduced this many rows at a time


class Scoring(ABC):
    """The part of a session that turns logits into scores."""

    @abstractmethod
    def forward(self, tokens: Ids, cache: Any, *, last: bool = False) -> Any:
        """Logits [tokens, vocab]."""

    @abstractmethod
    def reduce(self, logits: Any, base: Any, targets: Ids, rows: Ids) -> TokenScores:
        """The scores of some rows."""

    def score(
        self,
        tokens: Ids,
        cache: Any,
        targets: Ids,
        against: Any = None,
        chunk: int = 512,
        progress: Callable[[int], None] | None = None,
        kept: dict[int, Any] | None = None,
    ) -> TokenScores:
        """Run in chunks. Where the baseline's logits are kept, they are filled in at the end of the first run and read in the next."""
        parts, beside = [], dict(kept or {})
        for first in range(0, len(tokens), chunk):
            piece = slice(first, first + chunk)
            logits = self.forward(tokens[piece], cache)
            if against is not None and first not in beside:
                beside[first] = self.forward(tokens[piece], against)
            base = beside.get(first) if kept is not None else beside.pop(first, None)
            rows = np.flatnonzero(targets[piece] >= 0)
            parts += [self.reduce(logits, base, targets[piece], rows[i : i + ROWS]) for i in range(0, len(rows), ROWS)]
            if progress:
                progress(len(tokens[piece]))
        if kept is not None:
            kept.update(beside)
        return TokenScores.join(parts)
