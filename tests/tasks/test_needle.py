"""The task `needle` on a tiny random model, which finds nothing: prompts that are what they claim, proof, answers that are judged right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from backends.transformers import tiny
from tqbench.core.errors import ConfigError, Unsupported
from tqbench.core.record import Cell
from tqbench.tasks import needle

PARAMS: dict[str, Any] = {"context": 400, "depth": [0.0, 0.5, 1.0], "form": "passkey", "samples": 2, "digits": 3, "seed": 0}
PARAMS |= {"chat": True, "protocol": "strict", "chunk": 128}


def stacks(session: Any, **changes: Any) -> list[needle.Haystack]:
    return needle.haystacks(PARAMS | changes, session, session.tokenize(session.words.text))


@pytest.mark.parametrize("form", ["passkey", "multi"])
def test_every_number_lies_where_it_is_said_to(session: Any, form: str) -> None:
    found = stacks(session, form=form)
    assert len(found) == (2 if form == "multi" else 6)
    assert [q.depth for stack in found for q in stack.questions] == [0.0, 0.5, 1.0] * 2
    for stack in found:
        text = session.detokenize(stack.text)
        longest = max(len(q.ask) + len(q.answer) for q in stack.questions)
        assert len(stack.text) + longest == PARAMS["context"]
        assert text.startswith("<user>")
        for question in stack.questions:
            rest = session.detokenize(stack.text[question.at :])
            assert rest.startswith(" The secret number of ")
            assert rest.partition(" is ")[2].startswith(f"{question.key}.")
            assert text.count(f" {question.key}.") == 1
            name = rest.removeprefix(" The secret number of ").partition(" is ")[0]
            asked = session.detokenize(question.ask)
            assert asked.startswith(f"\n\nWhat is the secret number of {name}?</user><model>")
            assert asked.endswith(f"The secret number of {name} is")
            assert session.detokenize(question.answer) == f" {question.key}"
            begins = text.index(needle.INTRO) + len(needle.INTRO)
            others = sum(_length(session, stack, q) for q in stack.questions if q.at < question.at)
            filler = len(text) - begins - sum(_length(session, stack, q) for q in stack.questions)
            assert abs(question.at - begins - others - question.depth * filler) <= 45  # after the nearest sentence


def _length(session: Any, stack: needle.Haystack, question: needle.Question) -> int:
    rest: str = session.detokenize(stack.text[question.at :])
    name = rest.removeprefix(" The secret number of ").partition(" is ")[0]
    return len(needle.NEEDLE.format(name=name, key=question.key))


def test_needles_stand_after_sentences(session: Any) -> None:
    for stack in stacks(session, depth=[0.3, 0.6]):
        (question,) = stack.questions
        assert session.detokenize(stack.text[: question.at])[-1] in ".\n"


def test_a_seed_is_a_set_of_questions(session: Any) -> None:
    keys = [[q.key for stack in stacks(session, seed=seed) for q in stack.questions] for seed in (0, 0, 1)]
    assert keys[0] == keys[1] != keys[2]
    assert len(set(keys[0])) > 3
    assert all(len(key) == 3 and key[0] != "0" for key in keys[0])


def test_without_a_template(session: Any) -> None:
    (stack, *_) = stacks(session, chat=False)
    assert session.detokenize(stack.text).startswith(needle.INTRO)


def test_a_text_that_is_too_short_is_refused(session: Any) -> None:
    with pytest.raises(ConfigError, match="leaves -"):
        stacks(session, context=120)
    with pytest.raises(ConfigError, match="which has"):
        needle.haystacks(PARAMS, session, session.tokenize(session.words.text)[:150])


@pytest.mark.parametrize(
    ("answer", "hit"),
    [
        (" 123.", True),
        ("123", True),
        ("it is 123, I think 45", True),
        (" 1234", False),
        (" 12 3", False),
        (" 321 or 123", False),
        ("", False),
    ],
)
def test_an_answer_holds_the_number_to_the_last_digit(answer: str, hit: bool) -> None:
    assert needle.holds(answer, "123") is hit


def test_the_zero_is_zero_and_a_wreck_is_one(measured: Any) -> None:
    base, _ = measured("needle", None, PARAMS)
    same, _ = measured("needle", {"scheme": "turbo2", "bypass": "identity"}, PARAMS)
    wreck, arrays = measured("needle", "destructive", PARAMS)
    assert (base.outcome, same.outcome, wreck.outcome) == ("ok", "ok", "ok")
    assert [row["nll"] for row in same.prompts] == [row["nll"] for row in base.prompts]
    assert all(row["kld"] == 0 for row in same.prompts)
    assert same.fingerprint == base.fingerprint != wreck.fingerprint
    assert [row["answer"] for row in same.prompts] == [row["base_answer"] for row in wreck.prompts]
    assert wreck.metrics["needle_kld"].ends[0] > 0.1
    assert same.text["ids_sha256"] == base.text["ids_sha256"] == wreck.text["ids_sha256"]
    assert wreck.coverage == 1
    assert len(arrays["nll"]) == wreck.text["scored"] == sum(1 + len(row["key"]) for row in wreck.prompts)
    assert "needle_base" not in base.metrics


@pytest.mark.parametrize("form", ["passkey", "multi"])
def test_what_the_baseline_said_before_is_what_it_says_beside(measured: Any, form: str) -> None:
    """A resumed run has no worker that remembers the baseline."""
    measured("needle", None, PARAMS | {"form": form})
    after, _ = measured("needle", "turbo4", PARAMS | {"form": form})
    alone, _ = measured("needle", "turbo4", PARAMS | {"form": form}, beside={})
    assert after.prompts == alone.prompts
    assert after.metrics == alone.metrics


def test_the_cut_of_a_prompt_changes_nothing(measured: Any) -> None:
    whole, pieces = (measured("needle", "q8_0", PARAMS | {"chunk": chunk}, beside={})[0] for chunk in (400, 37))
    assert np.allclose([r["nll"] for r in whole.prompts], [r["nll"] for r in pieces.prompts], atol=2e-3)


def test_a_scheme_that_packed_nothing_has_no_figures(measured: Any) -> None:
    """Everything lies within its window."""
    codec = {"codec": "affine", "bits": 4, "window": 500}
    record, _ = measured("needle", {"name": "idle", "k": codec, "v": codec}, PARAMS)
    assert (record.outcome, record.metrics, record.prompts) == ("inactive", {}, [])


def test_what_cannot_be_copied_is_run_again(measured: Any, open_tiny: Any) -> None:
    """Convolutions have states that a saved cache does not hold."""
    with open_tiny(tiny.hybrid()) as session:
        record, _ = measured("needle", "turbo4", PARAMS | {"form": "multi"}, session=session)
    assert (record.outcome, record.coverage) == ("ok", 1)


def test_a_number_that_is_found(measured: Any, session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session whose own cache reads the number off the prompt, and whose schemes cannot: what a good model would show."""
    reader, choose = _Reader(session), session.choose
    monkeypatch.setattr(session, "new_cache", reader.new_cache)
    monkeypatch.setattr(session, "forward", reader.forward)
    monkeypatch.setattr(session, "choose", lambda logits: reader.next if reader.next is not None else choose(logits))
    base, _ = measured("needle", None, PARAMS)
    record, _ = measured("needle", "turbo4", PARAMS)
    assert (base.metrics["needle_score"].value, record.metrics["needle_base"].value) == (1, 1)
    assert record.metrics["needle_score"].value == record.metrics["needle_kept"].value == 0
    assert record.metrics["needle_kept"].ends[1] < 0.5
    assert all(row["answer"].strip().startswith(row["key"]) for row in base.prompts)


class _Reader:
    """Remembers what each of the model's own caches was given, and what of the number it has said."""

    def __init__(self, session: Any):
        self.session, self.make, self.run = session, session.new_cache, session.forward
        self.seen: dict[int, list[int]] = {}
        self.kept: list[Any] = []
        self.next: int | None = None

    def new_cache(self, scheme: Any, terms: Any = None, context: Any = None) -> Any:
        cache = self.make(scheme, terms or needle.Terms(), context)
        self.kept.append(cache)  # so that no other gets its id
        if scheme is None:
            self.seen[id(cache)] = list(self.seen.get(id(context), []))
        return cache

    def forward(self, tokens: Any, cache: Any, *, last: bool = False) -> Any:
        logits = self.run(tokens, cache, last=last)
        self.next = None
        if id(cache) in self.seen:
            self.seen[id(cache)] += tokens.tolist()
            text = self.session.detokenize(self.seen[id(cache)])
            lead, _, said = text.rpartition("<model>")
            name = said.partition("The secret number of ")[2].partition(" is")[0]
            number = lead.partition(f"The secret number of {name} is ")[2].partition(".")[0]
            answer = f" {number}."
            done = said.partition(" is")[2]
            self.next = ord(answer[len(done)]) if name and len(done) < len(answer) else None
        return logits


def test_tokens_are_about_those_that_run(session: Any) -> None:
    """What plans multiply by, against what is told while it runs."""
    for form in ("passkey", "multi"):
        told: list[int] = []
        cell = Cell("tiny", "transformers", "cpu", "float32", None, "auto", "needle", PARAMS | {"form": form}, {"name": "words"})
        needle.run(needle.Job(session, cell, session.words, told.append))
        assert sum(told) == pytest.approx(needle.tokens(cell), rel=0.5)


def test_a_tokenizer_without_a_template_says_what_to_do(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.tokenizer, "chat_template", None)
    with pytest.raises(Unsupported, match="chat: false"):
        stacks(session)
