"""What of a run's folder is taken as measured, and what is never written as if it were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tqbench.core.files import seal
from tqbench.core.record import Cell, Estimate, Record
from tqbench.report.run import load as load_run
from tqbench.runner.folder import Folder
from tqbench.suite.load import load
from tqbench.suite.plan import Plan, plan

SUITE = """\
model: smollm2-135m-instruct-q4_1
corpus: python-docs
schemes: [q8_0]
tasks: [perplexity: {context: 64, tokens: 2k}]
"""


@pytest.fixture
def planned(tmp_path: Path) -> Plan:
    (tmp_path / "small.yaml").write_text(SUITE)
    return plan(load([tmp_path / "small.yaml"])[0])


@pytest.fixture
def folder(planned: Plan, tmp_path: Path) -> Folder:
    """A finished run whose baseline has a floor that the scheme has not heard of yet."""
    found = Folder.of(planned, tmp_path / "results", fresh=False)
    base, scheme = planned.cells
    text = {"ids_sha256": "1d" * 32}
    found.describe(planned, "tqbench run small.yaml")
    Record(base, "ok", metrics={"ppl": Estimate(9.0)}, floors={"instrument": 0.25}, text=text).write(found.cell(base))
    Record(scheme, "ok", metrics={"dppl": Estimate(0.5)}, floors={"scheme": 0.125}, text=text).write(found.cell(scheme))
    return found


def edit(folder: Folder, cell: Cell, **changes: Any) -> bytes:
    """Change a record by hand; what lies there then."""
    path = folder.cell(cell) / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path.read_bytes()


def test_what_was_measured_is_settled_and_keeps_a_seal(folder: Folder, planned: Plan) -> None:
    assert all(folder.finished(cell) for cell in planned.cells)
    folder.settle(planned)
    found = folder.finished(planned.cells[1])
    assert found
    assert found.floors == {"scheme": 0.125, "instrument": 0.25}


@pytest.mark.parametrize("seal", [None, "0" * 64, ""])
def test_a_record_that_was_edited_is_measured_again_and_never_sealed(folder: Folder, planned: Plan, seal: str | None) -> None:
    """Without a seal it looks as old as records from before there were seals; it lacks a floor, so settling would write and seal it."""
    scheme = planned.cells[1]
    forged = edit(folder, scheme, seal=seal, metrics={"dppl": {"value": 0.0, "low": None, "high": None}})
    assert folder.finished(scheme) is None
    folder.settle(planned)
    assert (folder.cell(scheme) / "record.json").read_bytes() == forged


def test_the_plan_is_sealed(folder: Folder, planned: Plan) -> None:
    plan = json.loads((folder.path / "plan.json").read_text())
    assert plan["seal"] == seal(plan)
    assert len(load_run(folder.path).records) == len(planned.cells)


def test_records_of_other_cells_and_damaged_ones_count_as_none(folder: Folder, planned: Plan) -> None:
    base, scheme = planned.cells
    Record(base, "ok").write(folder.cell(scheme))
    assert folder.finished(scheme) is None
    (folder.cell(base) / "record.json").write_text("{")
    assert folder.finished(base) is None
    Record(scheme, "timeout").write(folder.cell(scheme))
    assert folder.finished(scheme) is None
