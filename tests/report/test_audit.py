"""Audits over a whole run: they do not depend on which cell was measured first."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest

from tqbench.core.record import Cell, Estimate, Record
from tqbench.report.audit import settle


def cell(name: str | None) -> Cell:
    scheme = {"name": name} if name else None
    return Cell("m", "b", "cpu", "float32", scheme, "auto", "perplexity", {"context": 64}, {"name": "python-docs"})


def record(name: str | None, fingerprint: str, error: float = 0.1, ppl: float = 10.0, ids: str = "tokens") -> Record:
    metrics = {"ppl": Estimate(ppl)} if name is None else {"base_ppl": Estimate(ppl), "dppl": Estimate(0.1)}
    evidence = [] if name is None else [{"error": error, "lossless": False}]
    floors: dict[str, float | None] = {"instrument": 1e-6} if name is None else {"scheme": 0.01}
    return Record(cell(name), "ok", metrics=metrics, evidence=evidence, floors=floors, fingerprint=fingerprint, text={"ids_sha256": ids})


BASE = record(None, "f0")


def outcomes(records: list[Record]) -> dict[str, str]:
    return {found.cell.label: found.outcome for found in settle(records)}


def test_honest_cells_stay_and_learn_the_instruments_floor() -> None:
    found = settle([BASE, record("a", "f1"), record("b", "f2")])
    assert [r.outcome for r in found] == ["ok", "ok", "ok"]
    assert found[1].floors == {"scheme": 0.01, "instrument": 1e-6}


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_equal_scores_of_unequal_schemes_void_both_in_any_order(order: tuple[int, ...]) -> None:
    records = [BASE, record("a", "same", error=0.1), record("b", "same", error=0.2)]
    assert outcomes([records[i] for i in order]) == {"baseline": "ok", "a": "inactive", "b": "inactive"}


def test_the_same_mathematics_under_two_names_is_no_fraud() -> None:
    assert outcomes([BASE, record("turbo4", "same"), record("mine", "same")]) == {"baseline": "ok", "turbo4": "ok", "mine": "ok"}


def test_another_tokenizer_or_model_is_told() -> None:
    (_, swapped) = settle([BASE, record("a", "f1", ids="other")])
    assert swapped.outcome == "inactive"
    assert swapped.metrics == {}
    assert "another tokenizer or another text" in str(swapped.reason)
    (_, drifted) = settle([BASE, record("a", "f1", ppl=10.1)])
    assert "another model or build" in str(drifted.reason)


def test_cells_that_score_nothing_are_no_twins_and_have_no_perplexity_to_drift() -> None:
    base, one, two = (replace(r, fingerprint=None, metrics={}) for r in (BASE, record("a", "", error=0.1), record("b", "", error=0.2)))
    assert [found.outcome for found in settle([base, one, two])] == ["ok", "ok", "ok"]
    (_, other) = settle([base, replace(one, text={"ids_sha256": "other"})])
    assert other.outcome == "inactive"


def test_another_setting_is_not_compared() -> None:
    other = replace(record("b", "same", error=0.2), cell=replace(cell("b"), params={"context": 128}))
    assert [r.outcome for r in settle([BASE, record("a", "same"), other])] == ["ok", "ok", "ok"]


def kernels(kernel: str, bypass: str | None = None, **forms: str) -> list[str]:
    ran = {"encode": "native", "decode": "in attend", "attend": "native"} | forms
    evidence = [{"layer": layer, "side": side, "tokens_packed": 8, "lossless": True, **ran} for layer in range(2) for side in "kv"]
    scheme = {"name": "a"} | ({"bypass": bypass} if bypass else {})
    one = replace(record("a", "f1"), cell=replace(cell("a"), kernel=kernel, scheme=scheme), evidence=evidence)
    return settle([one])[0].audits


def test_a_kernel_that_was_named_and_did_not_run_is_told() -> None:
    assert kernels("auto", attend="torch") == []
    assert kernels("native") == kernels("attend=native,encode=native") == kernels("decode=native") == []
    assert kernels("attend=auto,encode=native", attend="torch") == []
    assert kernels("attend=native", attend="engine", bypass="identity") == []
    assert kernels("attend=native", attend="torch") == ["layer 0 k: attend=native was asked for, torch ran"]
    assert kernels("attend=native", attend="engine") == ["layer 0 k: attend=native was asked for, engine ran"]
    assert kernels("triton") == ["layer 0: kernel 'triton' was asked for, in attend, native ran"]


@pytest.mark.parametrize(("name", "value"), [("dppl", 0.0466), ("ln_ratio", 0.004)])
def test_figures_that_do_not_follow_from_each_other_are_told(name: str, value: float) -> None:
    """A record whose seal was made anew after a digit of it was changed."""
    figures = {"ppl": 18.09, "base_ppl": 10.0, "dppl": 8.09, "ln_ratio": math.log(1.809)}
    honest = {key: Estimate(figure) for key, figure in figures.items()}
    assert settle([BASE, replace(record("a", "f1"), metrics=honest)])[1].outcome == "ok"
    (_, changed) = settle([BASE, replace(record("a", "f1"), metrics=honest | {name: Estimate(value)})])
    assert changed.outcome == "altered"  # the scheme may well have run
    assert f"{name} is {value:.6g}, and the perplexities 18.09 and 10 make it" in str(changed.reason)
