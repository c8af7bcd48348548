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
    def forward(self, tokens: Ids, cache: Any) -> Any:
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
    ) -> TokenScores:
        """Run in chunks; a baseline that keeps its logits runs each piece once, however many schemes are scored against it."""
        parts = []
        for first in range(0, len(tokens), chunk):
            piece = slice(first, first + chunk)
            logits = self.forward(tokens[piece], cache)
            base = None if against is None else self._beside(against, first, tokens[piece])
            rows = np.flatnonzero(targets[piece] >= 0)
            parts += [self.reduce(logits, base, targets[piece], rows[i : i + ROWS]) for i in range(0, len(rows), ROWS)]
            if progress:
                progress(len(tokens[piece]))
        return TokenScores.join(parts)

    def _beside(self, against: Any, first: int, tokens: Ids) -> Any:
        key = (first, tokens.tobytes())
        if key in against.kept:
            return against.kept[key]
        logits = self.forward(tokens, against)
        if against.keeps:
            against.kept[key] = logits
        return logits
