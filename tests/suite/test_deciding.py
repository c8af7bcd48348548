"""When a cell that is scored until it is decided is likely to end, by what an earlier cell measured."""

from __future__ import annotations

import dataclasses
from math import sqrt
from pathlib import Path

import pytest

from tqbench.core.record import Cell, Estimate
from tqbench.metrics.verdict import least
from tqbench.suite.deciding import Earlier, expected
from tqbench.suite.load import load
from tqbench.suite.plan import plan

SUITE = """\
name: until
model: smollm2-135m-instruct-q4_1
corpus: python-docs
schemes: [q8_0, q4_0]
tasks:
  - perplexity: {recipe: stream, context: 256, tokens: "until decided, at most 64k", warmup: 16}
gates:
  - {schemes: q8_0, metric: dppl, limit: 0.1}
"""
SCORED = 4800  # 20 windows of 240
LOOKS = [32, 64, 128, 256]  # of 256 windows


@pytest.fixture
def cell(tmp_path: Path) -> Cell:
    path = tmp_path / "suite.yaml"
    path.write_text(SUITE)
    (found,) = load([path])
    return next(cell for cell in plan(found).cells if cell.label == "q8_0")


def earlier(cell: Cell, value: float, arm: float, scored: int = SCORED, **other: object) -> Earlier:
    return Earlier(dataclasses.replace(cell, **other), {"dppl": Estimate(value, value - arm, value + arm)}, scored)  # type: ignore[arg-type]


def test_the_look_is_the_first_whose_interval_keeps_the_limit(cell: Cell) -> None:
    """With arms that are wider at early looks, because they may spend little of the error."""
    ends = []
    for arm in (0.05, 0.1, 0.15, 0.2, 0.25):
        found = expected(cell, [earlier(cell, 0.02, arm)])
        assert found is not None
        ends.append(found.tokens // 256)
        shrunk = arm * sqrt(SCORED / (240 * ends[-1]))
        assert shrunk < 0.08
    assert ends == sorted(ends)
    assert set(ends) <= set(LOOKS)
    assert len(set(ends)) > 2


def test_what_breaks_the_limit_is_decided_too(cell: Cell) -> None:
    found = expected(cell, [earlier(cell, 1.0, 0.2)])
    assert found is not None
    assert found.share == LOOKS[0] / LOOKS[-1]


def test_what_no_look_decides_says_how_much_would(cell: Cell) -> None:
    found = expected(cell, [earlier(cell, 0.05, 0.6)])
    assert found is not None
    assert found.share > 1
    assert found.tokens == pytest.approx(found.share * 64 * 1024, rel=1e-3)
    again = dataclasses.replace(cell, params={**cell.params, "tokens": int(1.3 * found.tokens)})
    assert expected(again, [earlier(again, 0.05, 0.6)]).share <= 1
    on_the_limit = expected(cell, [earlier(cell, 0.1, 0.6)])
    assert on_the_limit.share is None
    assert on_the_limit.tokens is None


def test_only_the_same_scheme_of_the_same_model_tells_and_the_same_text_tells_best(cell: Cell) -> None:
    others = [earlier(cell, 0.02, 0.05, scheme={"name": "other"}), earlier(cell, 0.02, 0.05, model="another")]
    assert expected(cell, others) is None
    elsewhere = earlier(cell, 0.02, 0.05, scored=10 * SCORED, corpus={"name": "another"})
    assert expected(cell, [*others, elsewhere]).earlier == elsewhere
    here = earlier(cell, 0.02, 0.05)
    assert expected(cell, [elsewhere, here]).earlier == here
    nothing = Earlier(cell, {"kld": Estimate(0.1)}, SCORED)
    assert expected(cell, [nothing]) is None


@pytest.mark.parametrize("scored", [0, 29])
def test_a_cell_that_scored_next_to_nothing_tells_nothing(cell: Cell, scored: int) -> None:
    """Its interval would shrink to nothing, and the first look seem sure."""
    assert expected(cell, [earlier(cell, 0.02, 5.0, scored=scored)]) is None
    assert expected(cell, [Earlier(cell, {"dppl": Estimate(0.02)}, SCORED)]) is None


def test_a_tail_is_not_decided_before_its_interval_holds(cell: Cell) -> None:
    judging = {**cell.params["judging"], "gates": [{**cell.params["judging"]["gates"][0], "metric": "kld_worst_decile"}]}
    late = dataclasses.replace(cell, params={**cell.params, "judging": judging})
    clear = Earlier(late, {"kld_worst_decile": Estimate(0.001, 0.0009, 0.0011)}, SCORED)
    found = expected(late, [clear])
    assert found is not None
    assert found.share == next(end for end in LOOKS if end >= least("kld_worst_decile")) / LOOKS[-1]


def test_a_cell_that_ends_where_it_is_told_expects_nothing(cell: Cell) -> None:
    told = dataclasses.replace(cell, params={name: value for name, value in cell.params.items() if name != "judging"})
    assert expected(told, [earlier(cell, 0.02, 0.05)]) is None
