"""Runs on disk: loading, finding, and the flat rows."""

from __future__ import annotations

import json
import math
import os
import shutil

import pytest

from tqbench.core.errors import ConfigError, EditedError, TqbenchError
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


def test_of_runs_that_no_suite_gathers_one_is_proposed(make, write_run, tmp_path):
    """As committed runs lie: `--results results/reference` and a suite's name."""
    for suite, name in (("quickstart", "quickstart-cpu"), ("gate", "gate-cpu")):
        (write_run([make.baseline()], suite=suite)).rename(tmp_path / "results" / name)
    with pytest.raises(ConfigError, match=r"\(runs lie in it directly: give one of them, as quickstart-cpu\)"):
        find("quickstart", tmp_path / "results")
    assert find("quickstart-cpu", tmp_path / "results") == tmp_path / "results" / "quickstart-cpu"
    with pytest.raises(ConfigError, match=r"as (gate|quickstart)-cpu"):
        find("gone", tmp_path / "results")


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
    del data["seal"]  # as records were before there were seals
    path.write_text(json.dumps(data))
    assert math.isnan(load(folder).records[0].metrics["dppl"].value)


@pytest.mark.parametrize(
    "lie",
    [
        lambda data: data["metrics"]["dppl"].update(value=0.001),
        lambda data: data["metrics"].pop("kld"),
        lambda data: data["evidence"].clear(),
        lambda data: data["text"].update(scored=10**6),
        lambda data: data.update(seal="0" * 64),
    ],
    ids=["a figure", "a figure less", "the evidence", "the text", "the seal"],
)
def test_a_record_that_was_changed_has_no_numbers(make, write_run, lie):
    cell = make.cell()
    folder = write_run([make.baseline(), make.record(cell)])
    path = folder / "cells" / cell.key / "record.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data, sort_keys=True))  # laid out in another way: it says the same
    assert load(folder).record(cell).outcome == "ok"
    lie(data)
    path.write_text(json.dumps(data))
    record = load(folder).record(cell)
    assert (record.outcome, record.metrics) == ("altered", {})
    assert "does not fit its seal" in record.reason


def test_a_seal_that_is_gone_is_missed_only_where_there_was_one(make, write_run):
    cell = make.cell()
    folder = write_run([make.baseline(), make.record(cell)])
    for path in folder.glob("cells/*/record.json"):
        path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "seal"}))
    assert load(folder).record(cell).outcome == "ok"
    make.plan(folder, json.loads((folder / "plan.json").read_text()) | {"sealed": True})
    record = load(folder).record(cell)
    assert record.outcome == "altered"
    assert "lost its seal" in record.reason


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        (lambda plan: plan["cells"].pop(), "does not fit its seal"),
        (lambda plan: plan["gates"].clear(), "does not fit its seal"),
        (lambda plan: plan.update(gates=[plan["gates"][0] | {"limit": 9.0}]), "does not fit its seal"),
        (lambda plan: plan.update(dropped={"x": "it takes long"}), "does not fit its seal"),
        (lambda plan: plan.update(seal=None), "has no seal, the records have"),
        (lambda plan: plan.update(cells=plan["cells"][:1], seal=None), "has no seal, the records have"),
    ],
    ids=["a cell less", "no gates", "another limit", "a cell left out", "no seal", "a cell less and no seal"],
)
def test_a_plan_that_was_changed_is_not_read(make, write_run, lie, said):
    folder = write_run([make.baseline(), make.record(make.cell())], [make.gate("q8_0", limit=0.01)])
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(plan, sort_keys=True))  # laid out in another way: it says the same
    assert len(load(folder).gates) == 1
    lie(plan)
    (folder / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(EditedError, match=said):
        load(folder)


@pytest.mark.parametrize("sealed", [True, False])
def test_a_record_that_the_plan_does_not_list_is_refused(make, write_run, sealed):
    """Also in runs that are older than seals, and where the forger knows how to seal."""
    bad = make.cell("bad")
    folder = write_run([make.baseline(), make.record(make.cell()), make.record(bad)], [make.gate("*")])
    plan = {key: value for key, value in json.loads((folder / "plan.json").read_text()).items() if key != "seal"}
    make.plan(folder, plan | {"cells": plan["cells"][:2]})
    if not sealed:
        for path in (folder / "plan.json", *folder.glob("cells/*/record.json")):
            path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "seal"}))
    with pytest.raises(EditedError, match=f"the plan does not list what lies in cells/: {bad.key}"):
        load(folder)
    shutil.rmtree(folder / "cells" / bad.key)
    assert load(folder).record(make.cell()).outcome == "ok"


def test_arrays_of_another_measurement_are_told(make, write_run):
    import dataclasses
    import hashlib

    cell = make.cell()
    record = dataclasses.replace(make.record(cell), arrays={"nll": hashlib.sha256(b"scores").hexdigest()})
    folder = write_run([make.baseline(), record])
    path = folder / "cells" / cell.key / "nll.npy"
    assert load(folder).record(cell).outcome == "ok"  # committed runs leave arrays out
    path.write_bytes(b"scores")
    assert load(folder).record(cell).outcome == "ok"
    path.write_bytes(b"better scores")
    record = load(folder).record(cell)
    assert record.outcome == "altered"
    assert "nll.npy is not the file that was measured" in record.reason


def test_a_baseline_copied_from_another_model_voids_the_schemes(make, write_run):
    import dataclasses

    other = dataclasses.replace(make.baseline(), model=make.baseline().model | {"weights": "another file"})
    folder = write_run([other, make.record(make.cell())])
    record = load(folder).record(make.cell())
    assert record.outcome == "inactive"
    assert "the baseline was measured on another model: weights 'another file'" in record.reason
    drifted = write_run([make.baseline(ppl=20.1), make.record(make.cell())], run="drifted")
    assert "ppl away from the baseline cell" in load(drifted).record(make.cell()).reason
    shutil.rmtree(drifted / "cells" / make.baseline().cell.key)
    assert load(drifted).record(make.cell()).outcome == "ok"  # there is nothing to hold it against; its own gates say so


def test_a_plan_knows_its_suite_and_the_lines_of_its_gates_and_an_old_one_does_not(make, write_run):
    folder = write_run([make.baseline()], [make.gate("q8_0"), make.gate("*", "kld")])
    old = load(folder)
    assert (old.source, old.lines) == ("", {})
    make.plan(folder, json.loads((folder / "plan.json").read_text()) | {"source": "suites/x.yaml", "lines": [12, 14]})
    new = load(folder)
    assert new.source == "suites/x.yaml"
    assert [new.lines[gate] for gate in new.gates] == [12, 14]


def test_a_row_says_at_what_level_its_intervals_and_its_verdicts_are(make, run_of):
    stopped = make.record(make.cell("q4_0"), text=make.baseline().text | {"look": {"at": 4, "of": 6, "share": 0.125}})
    run = run_of([make.baseline(), make.record(make.cell("q8_0")), stopped, make.broken(make.cell("f16"))])
    levels = {row["scheme"]: (row["level"], row["level_judged"]) for row in run.rows()}
    assert levels == {"baseline": (0.95, 0.95), "q8_0": (0.95, 0.95), "q4_0": (0.95, 0.99375), "f16": (None, None)}
    (dppl,) = [row["dppl_low"] for row in run.rows() if row["scheme"] == "q4_0"]
    assert dppl == stopped.metrics["dppl"].low  # as the record has it
    assert run.frame()["level_judged"].dtype == float
