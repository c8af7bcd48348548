"""Speed and memory on every output: named kernels, marked disturbance, no number without proof, all contexts on one page."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from pathlib import Path

import pytest

import tqbench
from tqbench.core.record import Estimate, Record
from tqbench.report import across, bars, details, figures, markdown, page, speed, summary, terminal
from tqbench.report.conclusion import conclude
from tqbench.report.table import tables

DECODE = {"new": 32, "repetitions": 3, "protocol": "strict"}
PARAMS = {"decode": DECODE, "prefill": {"chunk": 512, "repetitions": 3, "protocol": "strict"}, "memory": {"protocol": "strict"}}


@pytest.fixture
def full(make, run_of):
    records = []
    for task, params in PARAMS.items():
        for context in (512, 2048):
            for name in (None, "q8_0", "turbo4"):
                cell = make.cell(name, task=task, params={"context": context, **params})
                records.append(make.speed(cell, disturbed=name == "turbo4" and context == 2048))
    for context in (512, 2048):
        records += [make.baseline(context), make.record(make.cell("q8_0", context)), make.record(make.cell("turbo4", context))]
    return run_of(records)


def outputs(run) -> dict[str, str]:
    from rich.console import Console

    console, charts = Console(file=io.StringIO(), width=160, color_system=None), figures.charts(run)
    for part in terminal.render(run):
        console.print(part)
    return {
        "terminal": console.file.getvalue(),
        "markdown": markdown.render(run, conclude(run), charts),
        "page": page.render(run, conclude(run), charts),
        "csv": summary.render(run),
        **{chart.name: chart.svg for chart in charts},
    }


def row(run, heading: str, label: str) -> dict[str, str]:
    table = next(table for table in tables(run) if heading in table.heading)
    shown = next(row for row in table.rows if row.label == label)
    return {column.title: figure.text for column, figure in zip(table.columns, shown.figures, strict=True)}


def test_tables_speak_the_fields_words(full) -> None:
    assert [table.heading.rpartition(" · ")[2] for table in tables(full)][:6] == [
        *("tg32 @ d512", "tg32 @ d2048"),
        *("pp512", "pp2048"),
        *("memory @ d512", "memory @ d2048"),
    ]
    found = row(full, "tg32 @ d512", "q8_0")
    assert (found["tok/s"], found["× own"], found["p50 ms"]) == ("12.50", "0.750", "85.0")
    assert row(full, "pp512", "q8_0")["first token ms"] == "1,595"
    assert row(full, "memory @ d512", "q8_0")["tokens/GiB"] == "87,724"
    assert row(full, "tg32 @ d512", "q8_0")["kernels"] == "torch"
    facts = next(table.facts for table in tables(full) if "tg32 @ d512" in table.heading)
    assert "2 threads, waiting: passive" in facts
    assert "context prefilled by the model's own cache, then packed" in facts


def test_captured_steps_have_columns_where_there_are_any(make, run_of) -> None:
    cell = make.cell("q8_0", task="decode", params={"context": 512, **DECODE})
    plain = make.speed(cell)
    figures = {
        "captured_tps": Estimate(180.0, 179.0, 181.0),
        "captured_ratio": Estimate(1.2, 1.19, 1.21),
        "base_captured_tps": Estimate(150.0, 149.0, 151.0),
    }
    about = {
        "own": {"cache": "bfloat16 in place", "attention": {"flash": 32}},
        "cell": {"cache": "store", "attention": {}},
        "disturbed": False,
    }
    graphs = dataclasses.replace(make.speed(cell, **figures), device={"captured": about})
    (without,), (within,) = (tables(run_of([one])) for one in (plain, graphs))
    assert "graph tok/s" not in [column.title for column in without.columns]
    found = row(run_of([graphs]), without.heading, "q8_0")
    assert (found["tok/s"], found["graph tok/s"], found["graph × own"]) == ("12.50", "180.0", "1.200")
    facts = "in graphs against the own cache in bfloat16 in place, read by torch's flash; figures outside graphs contain Python's launches"
    assert any(fact.startswith(facts) for fact in within.facts)
    assert not any("graphs" in fact for fact in without.facts)
    refused = dataclasses.replace(plain, cell=dataclasses.replace(plain.cell, device="cuda"), device={"captured": {"missing": "a window"}})
    assert "not in graphs: a window" in speed.facts([refused])
    assert not any("graphs" in fact for fact in speed.facts([dataclasses.replace(refused, cell=plain.cell)]))
    disturbed = dataclasses.replace(graphs, device={"captured": about | {"disturbed": True}})
    assert row(run_of([disturbed]), without.heading, "q8_0")["graph tok/s"] == "180.0 !"
    deeper = dataclasses.replace(graphs, cell=make.cell("q8_0", task="decode", params={"context": 2048, **DECODE}))
    titles = [grid.title for grid in across.grids(run_of([graphs, deeper]))]
    assert titles == ["Decode, tok/s", "Decode, × own cache", "Decode in graphs, × own cache in place"]


def test_each_scheme_that_is_not_captured_says_why(make, run_of) -> None:
    """Beside others that are, and whoever comes first."""
    params = {"context": 512, **DECODE}
    cells = [make.cell(name, task="decode", params=params, device="cuda") for name in ("turbo4", "q8_0", "kivi4")]
    lane = {"cache": "store", "attention": {}, "packed": {"k": [0, 0], "v": [DECODE["new"], 17]}}
    held = {"own": {"cache": "bfloat16 in place", "attention": {"flash": 2}}, "cell": lane, "disturbed": False}
    waits, host = {"missing": "a step waits for the device"}, {"missing": "their codec computes on the host"}
    for abouts in ((held, waits, host), (waits, host, held), (waits, held, waits)):
        records = [dataclasses.replace(make.speed(cell), device={"captured": about}) for cell, about in zip(cells, abouts, strict=True)]
        (table,) = tables(run_of(records))
        (says,) = [fact for fact in table.facts if fact.startswith("not in graphs: ")]
        for cell, about in zip(cells, abouts, strict=True):
            assert (cell.label in says) == ("missing" in about)
            assert about.get("missing", "") in says
        assert any(fact.startswith("in graphs against the own cache in bfloat16 in place") for fact in table.facts)
    (table,) = tables(run_of([dataclasses.replace(make.speed(cell), device={"captured": waits}) for cell in cells]))
    assert "not in graphs: a step waits for the device" in table.facts


def test_how_much_was_packed_within_captured_steps_is_told_where_it_is_not_every_token(make, run_of) -> None:
    new = DECODE["new"]
    packed = {
        "kivi4": {"k": [0, 0], "v": [new, new]},
        "turbo4": {"k": [new, new], "v": [new, new]},
        "mixed": {"k": [0, 128], "v": [new] * 2},
    }
    records = [
        dataclasses.replace(
            make.speed(make.cell(name, task="decode", params={"context": 512, **DECODE})), device={"captured": {"cell": {"packed": found}}}
        )
        for name, found in packed.items()
    ]
    (table,) = tables(run_of(records))
    assert f"packed within {new} tokens in graphs: kivi4 0 K, mixed 0–128 K" in table.facts
    assert not any("packed within" in fact for fact in speed.facts(records[1:2]))


def test_a_disturbed_row_is_marked_everywhere(full) -> None:
    assert row(full, "tg32 @ d2048", "turbo4")["tok/s"] == "12.50 !"
    assert row(full, "tg32 @ d2048", "q8_0")["tok/s"] == "12.50"
    texts = outputs(full)
    for name in ("terminal", "markdown", "page"):
        assert "12.50 !" in texts[name], name
        assert "other processes used the machine" in texts[name], name
    marked = [line["scheme"] for line in csv.DictReader(io.StringIO(texts["csv"])) if line["disturbed"] == "True"]
    assert marked == ["turbo4"] * 2


def test_all_contexts_are_on_one_page(full) -> None:
    found = {grid.title: grid for grid in across.grids(full)}
    assert list(found) == ["Decode, tok/s", "Decode, × own cache", "Prefill, tok/s", "B/token", "Δppl", "KLD"]
    assert found["Decode, tok/s"].head == ("512", "2,048")
    assert [name for name, _ in found["Decode, tok/s"].rows] == ["baseline", "q8_0", "turbo4"]
    texts = outputs(full)
    assert {"decode-context-1", "prefill-context-2", "memory-context-3", "kld-context-4", "stages-1", "stages-4"} <= texts.keys()
    for title in found:
        assert title in texts["page"]
        assert title in texts["markdown"]


def test_stages_are_reconciled_with_the_whole(full) -> None:
    cells = [cell for cell in full.cells if cell.task == "decode" and cell.params["context"] == 512]
    record = full.record(cells[1])
    spent = speed.per_move(record, "cell")
    assert sum(spent.values()) == pytest.approx(90)
    assert spent["unexplained"] == pytest.approx(5)
    (grid,) = details.stages(full, cells)
    assert grid.head == ("model", "append", "encode", "decode", "attend", "unexplained", "whole")
    assert grid.rows[1][1][-1].text == "90.0"
    assert details.stages(full, [cell for cell in full.cells if cell.task == "memory"]) == []


def test_the_csv_has_the_figures_and_the_kernels(full) -> None:
    rows = list(csv.DictReader(io.StringIO(summary.render(full))))
    first = next(line for line in rows if line["task"] == "decode" and line["scheme"] == "q8_0")
    assert (first["decode_tps"], first["decode_tps_low"], first["encode"], first["decode"]) == ("12.5", "12.0", "reference", "native")
    assert first["kld"] == ""
    assert float(next(line for line in rows if line["task"] == "memory" and line["scheme"] == "q8_0")["tokens_per_gib"]) == 87724


@pytest.mark.parametrize("task", PARAMS)
def test_a_cell_that_is_not_ok_has_no_figure_anywhere(make, run_of, task: str) -> None:
    good, cell = (make.cell(name, task=task, params={"context": 512, **PARAMS[task]}) for name in ("good", "idle"))
    told = dataclasses.replace(make.speed(cell, decode_tps=Estimate(98765.0)), outcome="inactive", reason="it fell back")
    others = run_of([make.speed(good)], unrun=[cell])
    runs = [dataclasses.replace(others, records=(*others.records, one)) for one in (told, Record(cell, "inactive", "it fell back"))]
    one, two = map(outputs, runs)
    assert one == two
    assert "it fell back" in one["page"]
    assert not re.search("98,?765", "".join(one.values()))


def test_depth_zero_stays_off_the_logarithmic_axis(make, run_of) -> None:
    records = [
        make.speed(make.cell(name, task="decode", params={"context": depth, **DECODE}))
        for depth in (0, 512, 1024)
        for name in (None, "q8_0")
    ]
    texts = outputs(run_of(records))
    assert "decode-context-1" in texts
    assert "tg32 @ d0" in texts["terminal"]


def test_speed_past_the_models_positions_says_so(make, run_of) -> None:
    deep = make.speed(make.cell("q8_0", task="decode", params={"context": 4096, **DECODE}))
    assert "past the model's 4,096 positions: speed only" in tables(run_of([deep]))[0].facts


def test_every_stage_that_is_marked_is_shown() -> None:
    """One that tables and figures did not know would be missing there, and the stages would not add up to the whole."""
    root = Path(tqbench.__file__).parents[1]
    sources = [path.read_text(encoding="utf-8") for folder in ("tqbench", "backends") for path in (root / folder).rglob("*.py")]
    marked = {name for text in sources for name in re.findall(r"stage\(\"(\w+)\"\)", text)}
    assert marked >= {"attend", "encode", "project", "uncenter"}
    assert marked <= speed.STAGES.keys()
    assert speed.STAGES.keys() <= bars.COLOURS.keys()
