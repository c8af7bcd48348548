"""The time left is right within a factor of two once a cell has ended, on whatever machine; and a log stays a log."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tqbench.measure import clock
from tqbench.runner import progress
from tqbench.runner.progress import Progress
from tqbench.suite.load import load
from tqbench.suite.plan import Plan, plan

SUITE = """\
model: smollm2-135m-instruct-q4_1
corpus: python-docs
schemes: [q8_0, turbo4, kivi2]
tasks:
  - perplexity: {context: [512, 4k], tokens: 8k}
  - decode: {depth: [512, 8k], new: 16}
  - memory: {context: [512, 8k]}
"""


@pytest.fixture
def planned(tmp_path: Path) -> Plan:
    """Cells that take from a second to minutes."""
    (tmp_path / "suite.yaml").write_text(SUITE)
    found = plan(load([tmp_path / "suite.yaml"])[0])
    assert max(cost.seconds or 0 for cost in found.costs) > 50 * min(cost.seconds or 0 for cost in found.costs)
    return found


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still until it is moved."""
    time = [1000.0]
    monkeypatch.setattr(clock, "seconds", lambda: time[0])
    return time


def seconds(text: str) -> float:
    found = re.search(r"about ([0-9.]+) (s|min) left", text)
    assert found, text
    return float(found[1]) * (60 if found[2] == "min" else 1)


def watched(found: Plan, truth: Callable[[int], float], now: list[float]) -> Iterator[tuple[int, float, float]]:
    """A run in which each cell takes what `truth` says: cells done, what is said to be left, what is left. Also in the middle of cells."""
    cells = list(found.cells)
    times = [truth(i) for i in range(len(cells))]
    with Progress(found, cells) as watch:
        now[0] += found.startup(cells)
        for i, cell in enumerate(cells):
            watch.start(cell)
            for share in range(1, 5):
                now[0] += times[i] / 4
                watch.advance(found.tokens(cell) // 4)
                yield i, seconds(watch.left()), times[i] * (1 - share / 4) + sum(times[i + 1 :])
            watch.finish(cell, "ok")
            if i + 1 < len(cells):
                yield i + 1, seconds(watch.left()), sum(times[i + 1 :])
        assert watch.left() == "done"


@pytest.mark.parametrize("pace", [0.2, 1.0, 6.0])
@pytest.mark.parametrize("seed", range(5))
def test_after_the_first_cell_it_is_right_within_a_factor_of_two(pace: float, seed: int, planned: Plan, now: list[float]) -> None:
    """Each cell is off by up to 1.4 from what the plan says, so two of them by less than two; and all by how fast the machine is."""
    rng = random.Random(seed)  # noqa: S311
    truth = [pace * (cost.seconds or 0) * rng.uniform(1 / 1.4, 1.4) for cost in planned.costs]
    for done, said, left in watched(planned, truth.__getitem__, now):
        if done and left > 3:  # seconds are said in whole numbers
            assert 0.5 < said / left < 2, (done, said, left)


def test_each_task_goes_by_its_own_cells(planned: Plan, now: list[float]) -> None:
    """Perplexity takes five times what was guessed, single tokens only what was: known as soon as the first of each has ended."""
    pace = {"perplexity": 5.0, "decode": 1.0, "memory": 1.0}
    firsts = {next(i for i, cell in enumerate(planned.cells) if cell.task == task) for task in pace}
    truth = [pace[cell.task] * (cost.seconds or 0) for cell, cost in zip(planned.cells, planned.costs, strict=True)]
    for done, said, left in watched(planned, truth.__getitem__, now):
        if done > max(firsts):
            assert said == pytest.approx(left, rel=0.02, abs=3)


def test_what_was_learned_is_not_upset_by_one_odd_cell(planned: Plan, now: list[float]) -> None:
    """The first cell takes nine times as long as ever before, because something else ran meanwhile."""
    sure = dataclasses.replace(planned, prices=tuple(dataclasses.replace(cost, learned=3) for cost in planned.costs))
    truth = [(9.0 if i == 0 else 1.0) * (cost.seconds or 0) for i, cost in enumerate(planned.costs)]
    after = [(done, said / left) for done, said, left in watched(sure, truth.__getitem__, now) if done and left > 1]
    assert all(0.5 < ratio <= 4.4 for _, ratio in after)  # 9 ** (2 / 3): what was learned counts for half a cell
    assert all(0.5 < ratio < 2 for done, ratio in after if done > 3)


def test_a_machine_that_is_busier_than_ever_is_seen_after_the_first_cell(planned: Plan, now: list[float]) -> None:
    sure = dataclasses.replace(planned, prices=tuple(dataclasses.replace(cost, learned=3) for cost in planned.costs))
    truth = [7.0 * (cost.seconds or 0) for cost in planned.costs]
    assert all(0.5 < said / left < 2 for done, said, left in watched(sure, truth.__getitem__, now) if done and left > 10)


def test_it_is_told_before_anything_is_done(planned: Plan, now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    cells = list(planned.cells)
    whole = sum(cost.seconds or 0 for cost in planned.costs) + planned.startup(cells)
    watch = Progress(planned, cells)
    assert watch.left().endswith("min left (first guess)")
    assert seconds(watch.left()) == pytest.approx(whole, rel=0.01)
    sure = dataclasses.replace(planned, prices=tuple(dataclasses.replace(cost, learned=3) for cost in planned.costs))
    assert Progress(sure, cells).left().endswith("min left")
    blind = dataclasses.replace(planned, prices=tuple(dataclasses.replace(cost, seconds=None) for cost in planned.costs))
    assert Progress(blind, cells).left() == "time left unknown"


def test_without_times_the_tokens_tell(planned: Plan, now: list[float]) -> None:
    blind = dataclasses.replace(planned, prices=tuple(dataclasses.replace(cost, seconds=None) for cost in planned.costs))
    watch = Progress(blind, list(planned.cells))
    first, *others = planned.cells
    watch.start(first)
    now[0] += planned.tokens(first) / 100
    watch.finish(first, "ok")
    expected = sum(map(planned.tokens, others)) / 100
    assert seconds(watch.left()) == pytest.approx(expected, rel=0.01)


def test_a_cell_that_broke_off_says_nothing_about_the_pace(planned: Plan, now: list[float]) -> None:
    watch = Progress(planned, list(planned.cells))
    watch.start(planned.cells[0])
    now[0] += 5000
    before = watch.pace.seen.copy()
    watch.finish(planned.cells[0], "crashed")
    assert watch.pace.seen == before == {}
    watch.finish(planned.cells[1], "crashed")  # it never began: its worker died while loading
    assert watch.done == 2


def test_a_log_has_a_line_per_cell_and_one_for_each_quiet_minute(
    planned: Plan, now: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    cell = planned.cells[1]
    with Progress(planned, [cell]) as watch:
        watch.start(cell)
        for _ in range(10):
            now[0] += 25
            watch.advance(planned.tokens(cell) // 10)
        watch.finish(cell, "ok")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "[1/1] q8_0: 30% · about 2.9 min left",
        "[1/1] q8_0: 60% · about 1.7 min left",
        "[1/1] q8_0: 90% · about 25 s left",
        "[1/1] q8_0: ok · done",
    ]


@pytest.mark.parametrize(
    ("tty", "variables", "bar"),
    [(True, {}, True), (False, {}, False), (True, {"CI": "true"}, False), (True, {"TERM": "dumb"}, False)],
)
def test_bars_are_for_terminals(tty: bool, variables: dict[str, str], bar: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: tty)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert progress._terminal() is bar
