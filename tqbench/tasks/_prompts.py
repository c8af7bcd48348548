"""Prompts: tokens that several continuations share and go on from, and greedy answers, decoded through the session."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tqbench.core.codec import ITEMSIZE
from tqbench.core.errors import Unsupported
from tqbench.core.scheme import Scheme
from tqbench.core.session import Ids, Session, Terms, TokenScores
from tqbench.tasks._proof import Witness

KEPT_BYTES = 2 << 30  # of baseline logits


@dataclass
class Prefix:
    """Tokens run once, in chunks; whoever asks gets a cache of its own that holds them. Where a cache cannot be copied (another library's,
    or of a model with other states beside keys and values) they are run again for each."""

    session: Session
    scheme: Scheme | None
    terms: Terms
    tokens: Ids
    chunk: int
    progress: Callable[[int], None]
    witness: Witness | None = None
    _held: Any = field(default=None, init=False)
    _runs_again: bool = field(default=False, init=False)

    def cache(self) -> Any:
        """A cache that holds the tokens."""
        if self._runs_again or not len(self.tokens):
            return self._run()
        if self._held is None:
            trunk = self._run()
            try:
                self._held = trunk if self.scheme is None else trunk.state()
            except Unsupported:
                self._runs_again = True
                return trunk
            self.seen(trunk)
        return self.session.new_cache(self.scheme, self.terms, self._held)

    def seen(self, cache: Any) -> None:
        """What a cache did is part of the proof."""
        if self.witness is not None:
            self.witness.see(cache.evidence())

    def _run(self) -> Any:
        cache = self.session.new_cache(self.scheme, self.terms)
        feed(self.session, cache, self.tokens, self.chunk)
        self.progress(len(self.tokens))
        return cache


def feed(session: Session, cache: Any, tokens: Ids, chunk: int) -> Any:
    """Tokens in chunks; the logits of the last one."""
    logits = None
    for first in range(0, len(tokens), chunk):
        logits = session.forward(tokens[first : first + chunk], cache, last=True)
    return logits


def greedy(session: Session, cache: Any, logits: Any, most: int, stops: Iterable[int] = ()) -> Iterator[int]:
    """The most likely token, again and again, each run before the next is chosen; a stop token ends it and is the last."""
    ends = set(stops)
    for left in range(most, 0, -1):
        token = session.choose(logits)
        yield token
        if token in ends or left == 1:
            return
        logits = session.forward(np.array([token]), cache, last=True)


def forced(session: Session, caches: tuple[Any, Any], lead: Ids, answer: Ids, cut: tuple[int, int], kept: Any = None) -> TokenScores:
    """The scores of an answer that follows `lead`, whatever the model itself would say, through a cache and beside another (None where its
    logits are in `kept`). The last token of `lead` predicts the first of the answer. `cut`: the chunks of both."""
    chunk, step = cut
    for cache in caches:
        if cache is not None:
            feed(session, cache, lead[:-1], chunk)
    return session.score(np.append(lead[-1:], answer[:-1]), caches[0], answer, caches[1], step, kept=kept)


@dataclass
class Beside:
    """The baseline's logits for some answers, for all schemes of a setting, while there is room for them."""

    session: Session
    shelf: dict[Any, Any]

    def kept(self, key: Any, rows: int) -> dict[int, Any] | None:
        """Where those of so many tokens are kept, empty at first; None if there is no room."""
        if key not in self.shelf:
            size = rows * self.session.info.vocab * ITEMSIZE[self.session.info.dtype]
            used = self.shelf.get("bytes", 0) + size
            if used > KEPT_BYTES:
                return None
            self.shelf |= {"bytes": used, key: {}}
        held: dict[int, Any] = self.shelf[key]
        return held


def fingerprint(parts: Iterable[Sequence[int] | Ids]) -> str:
    """The hash of token ids, part by part."""
    digest = hashlib.sha256()
    for part in parts:
        ids = np.asarray(part, dtype="<i8")
        digest.update(len(ids).to_bytes(8, "little") + ids.tobytes())
    return digest.hexdigest()
