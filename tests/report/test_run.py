"""Runs on disk: loading, finding, and the flat rows."""

from __future__ import annotations

import json
import math
import os

import pytest

from tqbench.core.errors import ConfigError, TqbenchError
from tqbench.report.run import METRICS, find, load


def test_records_come_in_the_order_of_the_plan(make, run_of):
    names = ["turbo4", "a", "q8_0"]
    run = run_of([make.baseline(), *(make.record(make.cell(name)) for name in names)])
    assert [record.cell.label for record in run.records] == ["baseline", *names]


def test_frame_has_a_row_per_cell_and_numbers_only_where_ok(make, run_of):
    cell = make.cell("q8_0")
    frame = run_of(
        [make.baseline(), make.record(cell, bits=(8.5, 4.25)), make.broken(make.cell("big"))], unrun=[make.cell("later")]
    ).frame()
    assert list(frame.outcome) == ["ok", "ok", "oom", "not run"]
    row = frame[frame.scheme == "q8_0"].iloc[0]
    assert (row.dppl, row.dppl_low, row.dppl_high, row.floor) == (0.123456, 0.101, 0.147, 0.01)
    assert (row.bits_k, row.bits_v, row.bits, row.coverage, row.context) == (8.5, 4.25, 6.375, 1.0, 512)
    numbers = ["bits", "coverage", "floor", "scored", *METRICS]
    assert frame[frame.outcome != "ok"][numbers].isna().all(axis=None)
    assert all(frame[name].dtype == float for name in numbers)


def test_the_floor_is_the_larger_of_both(make, run_of):
    import dataclasses

    record = dataclasses.replace(make.record(make.cell()), floors={"scheme": 0.0001})
    assert run_of([make.baseline(), record]).floor(record) == 0.001  # the baseline's
    assert run_of([record], run="alone").floor(record) == 0.0001


def test_find_takes_a_folder_a_record_a_suite_and_a_path_below_results(make, write_run, tmp_path):
    record = make.record(make.cell())
    old, new = (write_run([make.baseline(), record], run=name) for name in ("zz", "aa"))
    os.utime(old / "plan.json", ns=(1, 1))
    results = tmp_path / "results"
    assert find(str(old), results) == old
    assert find(str(old / "cells" / record.cell.key / "record.json"), results) == old
    assert find("suite", results) == new
    assert find(str(results / "suite"), results) == new
    assert find("suite/zz", results) == old


def test_what_is_not_there_is_an_error_that_lists_what_is(make, write_run, tmp_path):
    write_run([make.baseline()], suite="quickstart")
    with pytest.raises(ConfigError, match=r"'gone'.*quickstart"):
        find("gone", tmp_path / "results")
    with pytest.raises(ConfigError, match="no runs yet"):
        find("gone", tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": "tqbench.plan/2"}', '{"schema": "tqbench.plan/1"}'])
def test_a_plan_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(TqbenchError, match=r"plan\.json"):
        load(tmp_path)


def test_a_record_in_the_wrong_folder_is_refused(make, write_run):
    cell = make.cell()
    folder = write_run([make.record(cell)])
    make.record(make.cell("other")).write(folder / "cells" / cell.key)
    with pytest.raises(TqbenchError, match="another cell"):
        load(folder)


def test_a_record_with_nan_still_loads_so_that_the_gate_can_fail_it(make, write_run):
    cell = make.cell()
    folder = write_run([make.record(cell)])
    path = folder / "cells" / cell.key / "record.json"
    data = json.loads(path.read_text())
    data["metrics"]["dppl"]["value"] = math.nan
    path.write_text(json.dumps(data))
    assert math.isnan(load(folder).records[0].metrics["dppl"].value)
