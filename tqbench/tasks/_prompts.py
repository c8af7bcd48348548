"""Prompts: tokens that several continuations share and go on from, and greedy answers, decoded through the session."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqbench.core.codec import ITEMSIZE
from tqbench.core.errors import Unsupported
from tqbench.core.presets import read
from tqbench.core.record import Estimate
from tqbench.core.scheme import Scheme
from tqbench.core.session import Ids, Session, Terms, TokenScores
from tqbench.tasks import Job, Result
from tqbench.tasks._proof import Witness
from tqbench.tasks._terms import learned
from tqbench.tasks._terms import terms as terms_of

KEPT_BYTES = 2 << 30  # of baseline logits
Metrics = Callable[[TokenScores, NDArray[np.int64]], dict[str, Estimate]]  # of all scores, and the prompt of each token


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


@dataclass(frozen=True)
class Setup:
    """What all prompts of a cell share: its scheme, its terms, the text that codecs learn from, and the proof. A baseline has no scheme."""

    job: Job
    scheme: Scheme | None
    terms: Terms
    about: dict[str, Any]
    witness: Witness | None

    @staticmethod
    def of(job: Job, texts: list[Ids]) -> Setup:
        """For a cell that runs these texts."""
        scheme = None if job.cell.scheme is None else read(job.cell.scheme)
        terms, about = terms_of(job, texts, scheme)
        return Setup(job, scheme, terms, about, None if scheme is None else Witness(scheme, job.session.info))

    def prefixes(self, tokens: Ids) -> tuple[Prefix, Prefix]:
        """Of the cell's cache and of the model's own; for a baseline they are one."""
        session, chunk, progress = self.job.session, self.job.cell.params["chunk"], self.job.progress
        own = Prefix(session, None, Terms(), tokens, chunk, progress)
        return own if self.scheme is None else Prefix(session, self.scheme, self.terms, tokens, chunk, progress, self.witness), own

    def result(self, parts: Iterable[Ids], prompts: list[dict[str, Any]], each: list[TokenScores], metrics: Metrics) -> Result:
        """What came of all prompts. `parts`: the tokens that must be equal for cells to be compared; `each`: scores by prompt."""
        text, scores = self.job.text, TokenScores.join(each)
        where = np.repeat(np.arange(len(each)), [len(one.nll) for one in each])
        fields: dict[str, Any] = {
            "model": dataclasses.asdict(self.job.session.info),
            "text": {
                "corpus": text.name,
                "origin": text.origin,
                "sha256": text.sha256,
                "ids_sha256": fingerprint(parts),
                "protocol": self.job.cell.params["protocol"],
                "prompts": len(prompts),
                "scored": len(scores.nll),
            },
            "prompts": prompts,
            "metrics": metrics(scores, where),
            "fingerprint": hashlib.sha256(scores.nll.tobytes()).hexdigest(),
        }
        if self.witness is not None:
            fields |= {"calibration": learned(self.terms, self.about), **self.witness.prove(scores)}
        return Result(fields, {"nll": scores.nll.astype(np.float32)})


def fingerprint(parts: Iterable[Sequence[int] | Ids]) -> str:
    """The hash of token ids, part by part."""
    digest = hashlib.sha256()
    for part in parts:
        ids = np.asarray(part, dtype="<i8")
        digest.update(len(ids).to_bytes(8, "little") + ids.tobytes())
    return digest.hexdigest()
