"""Sensitivity on every output: ranked, as a heat map, beside what foretold it; and nothing of a cell without proof."""

from __future__ import annotations

import csv
import dataclasses
import io
import re

import pytest

from tests.report.test_speed import outputs, row
from tqbench.core.record import Estimate
from tqbench.report import compare, figures, probes
from tqbench.report.table import tables


@pytest.fixture
def full(make, run_of):
    return run_of([make.looked(), make.probed("turbo4"), make.probed("q8_0", rising=False)])


def cells(run):
    (found,) = run.settings().values()
    return found


def test_the_table_names_the_worst(full) -> None:
    (table,) = tables(full)
    assert table.heading.endswith("python-docs · sensitivity · stream · context 512")
    found = row(full, "sensitivity", "turbo4")
    assert (found["worst"], found["its KLD"], found["KLD"]) == ("7 K", "0.128", "0.200")
    assert found["half in"] == "2 of 16"  # 0.128 of 0.257: not quite half
    below = dict(zip((column.title for column in table.columns), table.rows[1].figures, strict=True))
    assert below["worst"].detail == "100 %"
    assert below["KLD K"].detail.startswith("Σ 0.25")


def test_layers_are_ranked_with_their_traits_beside(full) -> None:
    _, turbo4, q8_0 = probes.grids(full, cells(full))
    assert [name for name, _ in turbo4.rows][:4] == ["7 K", "6 K", "5 K", "4 K"]
    assert next(name for name, _ in q8_0.rows) == "0 K"
    first = dict(zip(turbo4.head, turbo4.rows[0][1], strict=True))
    assert (first["KLD"].text, first["first"].text, first["norm"].text) == ("0.128", "100 %", "80.0")
    assert first["KLD"].detail == "[0.102, 0.166]"
    values = dict(zip(turbo4.head, dict(turbo4.rows)["2 V"], strict=True))
    assert (values["norm"].text, values["K bias"].text) == ("10.0", "–")


def test_what_foretold_it_is_told_with_its_interval(full) -> None:
    foretold = probes.grids(full, cells(full))[0]
    found = {name: dict(zip(foretold.head, figures, strict=True)) for name, figures in foretold.rows}
    assert found["turbo4 K"]["norm"].text == "+1.00"
    assert found["q8_0 K"]["norm"].text == "−1.00"
    assert found["turbo4 V"]["norm"].text == "–"  # does not vary
    assert found["turbo4 K"]["codec error"].text == "–"
    assert "over 8 layers" in foretold.caption
    assert "Of 32 that are shown, about 1 would miss 0 by chance" in foretold.caption


def test_a_correlation_has_its_ends(make, run_of) -> None:
    noisy = make.looked()
    layers = [row | {"norm_mean": row["norm_mean"] + 25 * (row["layer"] % 3)} for row in noisy.layers]
    run = run_of([dataclasses.replace(noisy, layers=layers), make.probed("turbo4")])
    shown = dict(zip((grid := probes.grids(run, cells(run))[0]).head, grid.rows[0][1], strict=True))["norm"]
    low, high = map(float, re.findall(r"[+-][0-9.]+", shown.detail.replace("−", "-")))
    assert -1 < low < shown.order < high < 1


def test_the_heat_map_has_a_cell_for_each_side_of_each_layer(full) -> None:
    (chart,) = (chart for chart in figures.charts(full) if chart.name.startswith("sensitivity"))
    assert chart.name == "sensitivity-1"
    tips = re.findall(r"<title>([^<]*layer[^<]*)</title>", chart.svg)
    assert len(tips) == 2 * 2 * 8
    assert "turbo4 K, layer 7: KLD 0.128" in tips
    rows = list(csv.DictReader(io.StringIO(chart.csv())))
    assert [(r["scheme"], r["layer"], r["side"]) for r in rows if r["rank"] == "1"] == [("turbo4", "7", "k"), ("q8_0", "0", "k")]
    colours = dict(zip(tips, re.findall(r'<g id="tip-\d+">.*?fill: (#[0-9a-f]{6})', chart.svg, re.S), strict=True))
    assert colours["turbo4 K, layer 7: KLD 0.128"] != colours["turbo4 K, layer 0: KLD 0.00100"]
    assert "Packing nothing gives 1.0e−11" in chart.caption.replace("1.00e", "1.0e")


def test_all_outputs_carry_it_and_the_same_records_give_the_same(full) -> None:
    shown = outputs(full)
    assert "What foretold it" in shown["page"]
    assert "Layers of turbo4" in shown["page"]
    assert "Layers of turbo4" in shown["markdown"]
    assert "![Sensitivity:" in shown["markdown"]
    assert "7 K" in shown["terminal"]
    lines = list(csv.DictReader(io.StringIO(shown["csv"])))
    assert float(lines[1]["kld_worst"]) == pytest.approx(0.128)
    assert outputs(full) == shown


def test_a_cell_without_proof_is_in_no_ranking(make, run_of) -> None:
    run = run_of([make.looked(), make.probed("turbo4").audited("layer 3 k lost something")])
    assert probes.grids(run, cells(run)) == []
    assert not [chart for chart in figures.charts(run) if chart.name.startswith("sensitivity")]


def test_without_a_look_at_the_model_only_the_codec_error_stands_beside(make, run_of) -> None:
    run = run_of([make.probed("turbo4")])
    foretold, ranked = probes.grids(run, cells(run))
    assert foretold.head == ("codec error",)
    assert ranked.head == ("KLD", "ΔNLL", "first", "codec error")


def test_where_nothing_is_lost_there_is_no_map(make, run_of) -> None:
    exact = make.probed("turbo4")
    layers = [row | dict.fromkeys(("kld", "kld_low", "kld_high", "dnll", "dnll_low", "dnll_high", "first"), 0.0) for row in exact.layers]
    none = dict.fromkeys(exact.metrics, Estimate(0.0, 0.0, 0.0)) | {"base_ppl": exact.metrics["base_ppl"]}
    run = run_of([make.looked(), dataclasses.replace(exact, layers=layers, metrics=none)])
    assert not [chart for chart in figures.charts(run) if chart.name.startswith("sensitivity")]
    assert row(run, "sensitivity", "turbo4")["half in"] == "–"


def test_two_runs_of_it_are_compared_side_by_side(make, run_of) -> None:
    first, other = (run_of([make.looked(), make.probed("turbo4")], run=name) for name in ("one", "two"))
    (comparison,) = compare.compare((first, None), [(other, None)])
    section = next(one for one in comparison.sections() if one.title.startswith("Speed"))
    assert [row[1] for row in section.rows] == ["KLD", "KLD K", "KLD V", "KLD of the worst"]
    assert not section.notes  # nothing here was timed
    assert comparison.compared == 1
