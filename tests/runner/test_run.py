"""What a run comes to when there is nothing left to measure: earlier outcomes count, whatever is left out now."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tqbench.core.record import Cell, Estimate, Outcome, Record
from tqbench.runner import group
from tqbench.runner.folder import Folder
from tqbench.runner.run import Finished, run_plan
from tqbench.suite.load import load
from tqbench.suite.plan import Plan, plan

SUITE = """\
model: smollm2-135m-instruct-q4_1
corpus: python-docs
schemes: [q8_0, turbo4]
tasks: [memory: {context: 64}]
gates: [{schemes: "*", metric: kv_bytes_per_token, limit: 9000}]
"""
WHY = "it takes about 10 s, 0 s of the budget are left"


@pytest.fixture
def planned(tmp_path: Path) -> Plan:
    (tmp_path / "small.yaml").write_text(SUITE)
    return plan(load([tmp_path / "small.yaml"])[0])


def run(planned: Plan, folder: Path, outcomes: dict[str, Outcome], *dropped: Cell) -> Finished:
    """Run a plan whose cells have these outcomes, without some of them."""
    found = Folder.of(planned, folder / "results", fresh=False)
    for cell in planned.cells:
        outcome = outcomes.get(cell.label)
        if outcome == "ok":
            Record(cell, outcome, metrics={"kv_bytes_per_token": Estimate(8000.0)} if cell.scheme else {}).write(found.cell(cell))
        elif outcome:
            Record(cell, outcome, "why").write(found.cell(cell))
    left = dataclasses.replace(planned, limits={"budget": "1s"}, dropped={cell.key: WHY for cell in dropped})
    return run_plan(left, folder / "results", folder / "reports")


@pytest.mark.parametrize(("outcome", "code"), [("ok", 0), ("timeout", 3), (None, 5)])
def test_a_budget_does_not_turn_what_failed_before_green(planned: Plan, tmp_path: Path, outcome: Outcome | None, code: int) -> None:
    outcomes: dict[str, Outcome] = {"baseline": "ok", "turbo4": "ok"} | ({"q8_0": outcome} if outcome else {})
    done = run(planned, tmp_path, outcomes, planned.cells[1])
    assert (done.measured, done.conclusion.code) == (0, code)
    assert f"(tqbench run ends with exit code {code} here)" in (done.page.parent / "report.md").read_text()


def test_a_suite_that_nothing_is_left_of_is_not_green(planned: Plan, tmp_path: Path) -> None:
    done = run(planned, tmp_path, {}, *planned.cells)
    assert (done.measured, done.conclusion.code) == (0, 5)
    assert [verdict.reason for verdict in done.conclusion.verdicts] == [f"left out: {WHY}"] * 2


def test_cells_that_failed_are_not_counted_as_measured(planned: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(_plan: Plan, cells: list[Cell], folder: Folder, _progress: object) -> None:
        for cell in cells:
            Record(cell, "crashed" if cell.label == "q8_0" else "ok").write(folder.cell(cell))

    monkeypatch.setattr(group, "measure", measure)
    for before, said in (
        ({}, "2 of 3 cells measured now, 1 crashed"),
        ({"turbo4": "ok"}, "0 of 3 cells measured now, 2 before, 1 crashed"),  # the baseline of the first run is there
    ):
        assert run(planned, tmp_path, before).count == said
    assert (
        run(planned, tmp_path / "other", dict.fromkeys(("baseline", "q8_0", "turbo4"), "ok")).count == "0 of 3 cells measured now, 3 before"
    )
