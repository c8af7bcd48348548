"""Needles: a number is hidden in real text and asked for, at several depths. Form `passkey` hides one in each text, at each depth in turn;
form `multi` hides one at every depth of the same text, each under a name of its own, and asks for each.

Every prompt goes through the scheme. The answer is judged twice: strictly, by decoding it, where the first number of the greedy answer must
be the key to the last digit; and teacher-forced, by how likely the key's own tokens are, which tells schemes apart where a small model
answers all or nothing. The baseline answers the same prompts. Where it fails itself, there is nothing that a scheme could lose.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tqbench.core.errors import ConfigError
from tqbench.core.record import Cell, Estimate
from tqbench.core.session import Ids, Session, TokenScores
from tqbench.metrics.paired import Bootstrap, blocks
from tqbench.metrics.shares import share
from tqbench.tasks import Job, Result
from tqbench.tasks._prompts import Beside, Prefix, Setup, feed, fingerprint, forced, greedy

INTRO = "A number is hidden in the following text. Read it and keep the number in mind.\n\n"
NEEDLE = " The secret number of {name} is {key}."
QUESTION = "\n\nWhat is the secret number of {name}?"
LEAD = "The secret number of {name} is"
NAMES = (
    *("Lisbon", "Oslo", "Cairo", "Lima", "Prague", "Dublin", "Nairobi", "Hanoi", "Quito", "Athens", "Vienna", "Ottawa", "Madrid"),
    *("Seoul", "Dakar", "Bogota", "Warsaw", "Ankara", "Havana", "Tunis", "Riga", "Berne", "Accra", "Manila", "Zagreb", "Amman"),
)
MORE = 3  # tokens that are decoded beyond the key's own: a longer number is a wrong one
REST = 40  # tokens of a question with what the answer begins with; for plans, which have no tokenizer


@dataclass(frozen=True)
class Question:
    """What is asked at the end of a text: where the needle lies, the tokens that ask, and those that answer."""

    depth: float
    at: int
    key: str
    ask: Ids
    answer: Ids


@dataclass(frozen=True)
class Haystack:
    """A text with its needles, and the questions that follow it, one at a time."""

    sample: int
    text: Ids
    questions: tuple[Question, ...]


def texts(cell: Cell) -> int:
    """How many texts of the whole context a cell runs."""
    return int(cell.params["samples"]) * (1 if cell.params["form"] == "multi" else len(cell.params["depth"]))


def tokens(cell: Cell) -> int:
    """How many tokens run through the model, about: the texts, and for each question its own tokens twice and those of the answer."""
    questions = int(cell.params["samples"]) * len(cell.params["depth"])
    return texts(cell) * (int(cell.params["context"]) - REST) + questions * (2 * REST + 2 * int(cell.params["digits"]))


def run(job: Job) -> Result:
    """Ask every question, beside the baseline's answers."""
    params, session = job.cell.params, job.session
    found = haystacks(params, session, session.tokenize(job.text.text))
    setup = Setup.of(job, [stack.text for stack in found])
    asked = [one for stack in found for one in _Asking(setup, stack).all()]
    parts = (part for stack in found for part in (stack.text, *(q.ask for q in stack.questions)))
    rows = [one.row for one in asked]
    return setup.result(parts, rows, [one.scores for one in asked], partial(metrics, rows, baseline=setup.scheme is None))


@dataclass(frozen=True)
class Asked:
    """What came of a question."""

    row: dict[str, Any]
    scores: TokenScores


@dataclass
class _Asking:
    """The questions of one text, through the cell's cache and beside the model's own."""

    setup: Setup
    stack: Haystack

    @property
    def job(self) -> Job:
        """The cell's."""
        return self.setup.job

    def all(self) -> list[Asked]:
        """Each question goes on from the text, which is run once."""
        mine, own = self.setup.prefixes(self.stack.text)
        return [self._ask(question, mine, own) for question in self.stack.questions]

    def _ask(self, question: Question, mine: Prefix, own: Prefix) -> Asked:
        said, scores = self._answer(question, mine), self._forced(question, mine, own)
        beside = self._baseline_says(question, own, said)
        row = {
            "sample": self.stack.sample,
            "depth": question.depth,
            "at": question.at,
            "sha256": fingerprint((self.stack.text, question.ask)),
            "key": question.key,
            "answer": said,
            "hit": holds(said, question.key),
            "base_answer": beside,
            "base_hit": holds(beside, question.key),
            "nll": float(scores.nll.mean()),
            "base_nll": float(scores.base_nll.mean()),
            "kld": float(scores.kld.mean()),
            "worst_place": int(scores.place.max()),
        }
        self.job.progress(2 * len(question.ask) + 2 * len(question.answer))
        return Asked(row, scores)

    def _answer(self, question: Question, prefix: Prefix) -> str:
        """Decoded, token by token."""
        session, cache = self.job.session, prefix.cache()
        logits = feed(session, cache, question.ask, self.job.cell.params["chunk"])
        said = list(greedy(session, cache, logits, len(question.answer) + MORE, session.info.stop_tokens))
        prefix.seen(cache)
        return session.detokenize(said)

    def _forced(self, question: Question, mine: Prefix, own: Prefix) -> TokenScores:
        """Beside the baseline, whose logits the first cell of the setting keeps for the others."""
        params = self.job.cell.params
        kept = Beside(self.job.session, self.job.beside).kept(("logits", *self._which(question)), len(question.answer))
        cache, against = mine.cache(), None if kept else own.cache()
        step = 1 if params["protocol"] == "deploy" else len(question.answer)  # deployed, an answer comes token by token
        scores = forced(self.job.session, (cache, against), question.ask, question.answer, (params["chunk"], step), kept)
        mine.seen(cache)
        return scores

    def _baseline_says(self, question: Question, own: Prefix, said: str) -> str:
        """The model's own answer, decoded once per setting."""
        key = ("said", *self._which(question))
        if key not in self.job.beside:
            self.job.beside[key] = said if self.setup.scheme is None else self._answer(question, own)
        return str(self.job.beside[key])

    def _which(self, question: Question) -> tuple[Any, ...]:
        return self.stack.text.tobytes(), question.ask.tobytes(), question.answer.tobytes()


def holds(answer: str, key: str) -> bool:
    """Whether the first number of an answer is the key, to the last digit."""
    found = re.search(r"\d+", answer)
    return found is not None and found[0] == key


def metrics(rows: list[dict[str, Any]], scores: TokenScores, where: Any, *, baseline: bool) -> dict[str, Estimate]:
    """Shares with Wilson's intervals, and what teacher forcing says about the tokens of the keys."""
    hits, base = (sum(row[name] for row in rows) for name in ("hit", "base_hit"))
    boot = Bootstrap(blocks(where))
    found = {
        "needle_score": share(hits, len(rows)),
        "needle_nll": boot.estimate(scores.nll),
        "needle_first": share(len(rows) * float((scores.place == 0).mean()), len(rows)),  # tokens of one key may stand and fall together
    }
    if baseline:
        return found
    kept = {"needle_kept": share(sum(row["hit"] and row["base_hit"] for row in rows), base)} if base else {}
    beside = {"needle_base": share(base, len(rows)), "needle_dnll": boot.estimate(scores.nll - scores.base_nll)}
    return found | kept | beside | {"needle_kld": boot.positive(scores.kld)}


def haystacks(params: dict[str, Any], session: Session, filler: Ids) -> list[Haystack]:
    """The texts with their questions: the same for the same seed, tokenizer and corpus, whatever the scheme."""
    frame = _Frame.of(params, session)
    rng = np.random.default_rng([params["seed"], params["context"]])
    depths = params["depth"]
    found = []
    for sample in range(params["samples"]):
        start = int(rng.integers(0, max(1, len(filler) - params["context"])))
        names, keys = _drawn(rng, len(depths), params["digits"])
        together = [list(zip(depths, names, keys, strict=True))]
        each = together if params["form"] == "multi" else [[one] for one in together[0]]
        found += [frame.filled(sample, filler[start:], needles) for needles in each]
    return found


def _drawn(rng: np.random.Generator, count: int, digits: int) -> tuple[list[str], list[str]]:
    """Names without repetition, and a number for each that begins with no zero; all different."""
    names = [NAMES[i] for i in rng.permutation(len(NAMES))[:count]]
    keys: dict[str, None] = {}
    while len(keys) < count:
        keys[str(rng.integers(10 ** (digits - 1), 10**digits))] = None
    return names, list(keys)


@dataclass(frozen=True)
class _Frame:
    """What stands around the filler, in tokens."""

    session: Session
    context: int
    before: Ids
    after: Ids
    ends: tuple[int, ...]  # tokens that end a sentence, after which a needle may stand

    @staticmethod
    def of(params: dict[str, Any], session: Session) -> _Frame:
        """With the model's chat template, or without."""
        bos = session.info.bos_token
        none = np.empty(0, np.int64)
        before, after = session.chat() if params["chat"] else (none if bos is None else np.array([bos]), session.tokenize("\n\n"))
        ends = tuple(int(ids[-1]) for text in (".", " .", ".\n", "\n") if len(ids := session.tokenize(text)))
        return _Frame(session, params["context"], np.concatenate([before, session.tokenize(INTRO)]), after, ends)

    def filled(self, sample: int, filler: Ids, needles: list[tuple[float, str, str]]) -> Haystack:
        """Filler cut so that text, question and answer are as long as the context, and needles after the sentences nearest their depths."""
        words = self.session.tokenize
        questions = [
            (
                np.concatenate([words(QUESTION.format(name=name)), self.after, words(LEAD.format(name=name))]),
                words(f" {key}"),
                words(NEEDLE.format(name=name, key=key)),
            )
            for _, name, key in needles
        ]
        room = self.context - len(self.before) - sum(len(needle) for *_, needle in questions)
        room -= max(len(ask) + len(answer) for ask, answer, _ in questions)
        if room < 1 or room > len(filler):
            raise ConfigError(f"context {self.context} leaves {room} tokens for the text around the needles, which has {len(filler)} here")
        ends = np.append(0, 1 + np.flatnonzero(np.isin(filler[:room], self.ends)))
        places = [int(ends[np.abs(ends - depth * room).argmin()]) for depth, *_ in needles]
        parts, done = [self.before], 0
        asked = []
        for place, (depth, _, key), (ask, answer, needle) in zip(places, needles, questions, strict=True):
            parts += [filler[done:place], needle]
            asked.append(Question(depth, sum(map(len, parts[:-1])), key, ask, answer))
            done = place
        return Haystack(sample, np.concatenate([*parts, filler[done:room]]), tuple(asked))
