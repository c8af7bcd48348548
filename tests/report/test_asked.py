"""What models were asked, reported: tables, marks, verdicts, the heat map and the curve, from records without a model."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from tqbench.core.gate import Gate
from tqbench.core.record import Cell, Estimate, Record
from tqbench.metrics.shares import share, survival
from tqbench.report import answers, markdown, page
from tqbench.report.conclusion import conclude
from tqbench.report.figures import charts
from tqbench.report.gate import judge
from tqbench.report.run import METRICS, Run
from tqbench.report.table import tables

NEEDLE = {"depth": [0.0, 1.0], "form": "passkey", "samples": 2, "digits": 5, "seed": 0, "chat": True, "protocol": "strict", "chunk": 512}
GENERATION = {"context": 256, "new": 8, "prompts": 4, "seed": 0, "protocol": "strict", "chunk": 256}
LM_EVAL = {
    "context": 512,
    "task": "opposites",
    "limit": 20,
    "fewshot": None,
    "include_path": None,
    "seed": 1,
    "protocol": "strict",
    "chunk": 512,
}
TEXT = {"corpus": "wikitext-2", "origin": "a test", "sha256": "5e" * 32, "ids_sha256": "1d" * 32, "protocol": "strict", "scored": 24}


def needles(make: Any, scheme: str | None, context: int, hits: tuple[int, int], base: tuple[int, int] = (2, 2)) -> Record:
    """Two questions at each of two depths."""
    cell = make.cell(scheme, task="needle", params={"context": context, **NEEDLE})
    rows = [
        {"sample": i, "depth": depth, "hit": i < hit, "base_hit": i < own, "nll": 0.25, "key": "12345", "answer": " 12345."}
        for depth, hit, own in zip(NEEDLE["depth"], hits, base, strict=True)
        for i in range(2)
    ]
    metrics = {"needle_score": share(sum(hits), 4), "needle_nll": Estimate(0.25, 0.2, 0.3), "needle_first": share(3.5, 4)}
    if scheme:
        both = sum(row["hit"] and row["base_hit"] for row in rows)
        metrics |= {
            "needle_base": share(sum(base), 4),
            "needle_dnll": Estimate(0.01, -0.01, 0.03),
            "needle_kld": Estimate(0.02, 0.01, 0.03),
        }
        metrics |= {"needle_kept": share(both, sum(base))} if sum(base) else {}
    return _asked(make, cell, metrics, rows)


def _asked(make: Any, cell: Cell, metrics: dict[str, Estimate], rows: list[dict[str, Any]], **more: Any) -> Record:
    record = make.record(cell) if cell.scheme else make.baseline()
    text = TEXT | {"prompts": len(rows), **more.pop("text", {})}
    return dataclasses.replace(
        record, cell=cell, metrics=metrics, prompts=rows, text=text, positions=[], floors={}, fingerprint=f"{cell.label}", **more
    )


def generated(make: Any, scheme: str | None, agreed: list[int]) -> Record:
    cell = make.cell(scheme, task="generation", params=GENERATION)
    rows = [{"prompt": i, "tokens": 8, "agreed": n, "led": n, "kld": 0.1} for i, n in enumerate(agreed)]
    if not scheme:
        return _asked(make, cell, {"forced_nll": Estimate(2.0, 1.9, 2.1)}, rows)
    curve = survival(agreed, [n == 8 for n in agreed])
    metrics = {"survival": curve[-1].share, "forced_kld": Estimate(0.1, 0.05, 0.2), "forced_top1": Estimate(0.9, 0.85, 0.95)}
    return _asked(make, cell, metrics, rows)


def evaluated(make: Any, scheme: str | None, hits: int) -> Record:
    cell = make.cell(scheme, task="lm_eval", params=LM_EVAL)
    results = {"opposites": {"alias": "opposites", "acc,none": hits / 20, "acc_stderr,none": 0.0688, "acc_norm,none": 0.5}}
    harness: dict[str, Any] = {"version": "0.4.13", "versions": {"opposites": 1.0}, "n-shot": {"opposites": 0}, "results": results}
    harness |= {
        "n-samples": {"opposites": {"original": 20, "effective": 20}},
        "metric": "acc,none",
        "task_hashes": {"opposites": "ab" * 32},
    }
    metrics = {"eval_score": share(hits, 20)}
    if scheme:
        harness |= {"active": 76, "least_coverage": 0.0}
        metrics |= {"eval_base": Estimate(0.9), "eval_delta": Estimate(-0.1, -0.3, 0.1), "eval_same": share(18, 20)}
        metrics |= {"eval_active": Estimate(0.95), "eval_dnll": Estimate(0.01, 0.0, 0.02)}
    return _asked(make, cell, metrics, [], harness=harness, text={"requests": 80})


@pytest.fixture
def needle_run(make: Any, run_of: Any) -> Run:
    records = [needles(make, scheme, context, hits) for context in (1024, 4096) for scheme, hits in SEEN]
    return run_of(records)


SEEN: tuple[tuple[str | None, tuple[int, int]], ...] = ((None, (2, 2)), ("q8_0", (2, 2)), ("destructive", (0, 1)))


def test_a_row_says_what_was_found_and_what_the_baseline_finds(needle_run: Run) -> None:
    table = tables(needle_run)[0]
    columns = [column.title for column in table.columns]
    shown = {row.label: {title: figure.text for title, figure in zip(columns, row.figures, strict=True)} for row in table.rows}
    assert shown["q8_0"]["found %"] == shown["q8_0"]["own %"] == "100"
    assert (shown["destructive"]["found %"], shown["destructive"]["kept %"]) == ("25", "25")
    assert shown["baseline"]["own %"] == "–"
    assert "needle passkey @ 1,024" in table.heading
    assert "4 questions of 5 digits at depths 0, 1" in table.facts


def test_every_panel_has_a_tile_for_every_depth_and_context(needle_run: Run) -> None:
    (chart,) = [chart for chart in charts(needle_run) if chart.name.startswith("needle-")]
    assert len(chart.data) == 3 * 2 * 2
    assert chart.svg.count("<title>") == 3 * 2 * 2 + 1  # the drawing has one, too
    assert "destructive: 1 of 2 at 4,096, depth 1; the baseline 2" in chart.svg
    assert "1/2" in chart.svg
    assert '"depth"' not in chart.csv().splitlines()[0]
    assert chart.csv().splitlines()[0].startswith("scheme,context,depth,asked,hits,base_hits,share,low,high,nll")


def test_where_the_baseline_fails_there_is_no_verdict(make: Any, run_of: Any) -> None:
    gates = [make.gate("q8_0", metric, 0.5) for metric in ("needle_kept", "needle_score", "needle_dnll")]
    records = [needles(make, None, 1024, (0, 1), (0, 1)), needles(make, "q8_0", 1024, (0, 1), (0, 1))]
    run = run_of(records, gates)
    verdicts = judge(run)
    assert [verdict.status for verdict in verdicts] == ["inconclusive"] * 3
    assert "the baseline itself answers 25" in verdicts[0].reason
    marked = {row.label: [figure.text for figure in row.figures] for row in tables(run)[0].rows}
    assert "25 †" in marked["baseline"]
    assert "25 †" in marked["q8_0"]
    assert any(mark.startswith("†") for mark in tables(run)[0].marks())
    (chart,) = charts(run)
    assert "url(#" in chart.svg  # hatched


def test_a_baseline_that_finds_nothing_fails_no_scheme(make: Any, run_of: Any) -> None:
    """Nothing is kept of nothing: the metric is not even there."""
    records = [needles(make, None, 1024, (0, 0), (0, 0)), needles(make, "q8_0", 1024, (0, 0), (0, 0))]
    (verdict,) = judge(run_of(records, [make.gate("q8_0", "needle_kept", 0.9)]))
    assert verdict.status == "inconclusive"


def test_gates_honour_intervals(needle_run: Run) -> None:
    """Four of four, judged beside five others, are not enough for 0.9, and enough for 0.3."""
    gates = [Gate(("q8_0",), "needle_kept", limit) for limit in (0.3, 0.9)] + [Gate(("destructive",), "needle_kept", 0.9, expect="fail")]
    found = judge(dataclasses.replace(needle_run, gates=tuple(gates)))
    assert [verdict.status for verdict in found] == ["pass", "pass", "inconclusive", "inconclusive", "pass", "pass"]
    assert "more samples may decide" in found[2].reason


def test_curves_and_tables_of_agreement(make: Any, run_of: Any) -> None:
    seen = ((None, [8] * 4), ("q8_0", [8, 8, 3, 8]), ("turbo2", [0, 1, 1, 2]))
    run = run_of([generated(make, name, agreed) for name, agreed in seen])
    (grid,) = answers.grids(run, list(run.cells))
    rows = {name: [figure.text for figure in figures] for name, figures in grid.rows}
    assert grid.head == ("1", "2", "4", "8", "elsewhere")
    assert rows["q8_0"] == ["100", "100", "75", "75", "0 of 4"]
    assert rows["turbo2"] == ["75", "25", "0", "0", "0 of 4"]
    (chart,) = charts(run)
    assert chart.name == "survival-1"
    assert "q8_0: 75" in chart.svg
    assert {row["scheme"] for row in chart.data} == {"q8_0", "turbo2"}


def test_lm_eval_says_its_version_its_scores_and_which_requests_were_active(make: Any, run_of: Any) -> None:
    run = run_of([evaluated(make, None, 18), evaluated(make, "q8_0", 16)])
    (table,) = tables(run)
    columns = [column.title for column in table.columns]
    row = dict(zip(columns, table.rows[1].figures, strict=True))
    assert (row["score %"].text, row["own %"].text, row["active"].text) == ("80", "90.0", "76 of 80")
    assert row["active"].detail == "least 0 %"
    assert "lm-eval 0.4.13, task version 1.0" in table.facts
    assert "20 of 20 documents, 80 requests" in table.facts
    (grid,) = answers.grids(run, list(run.cells))
    assert grid.head == ("acc, none", "acc_norm, none")
    assert grid.rows[0][1][0].detail == "± 0.0688"
    assert "opposites abababababab" in grid.caption


def test_pages_and_markdown_hold_all_of_it(make: Any, run_of: Any) -> None:
    made = [needles(make, "q8_0", 1024, (2, 1)), generated(make, "q8_0", [8, 8, 3, 8]), evaluated(make, "q8_0", 16)]
    bases = [needles(make, None, 1024, (2, 2)), generated(make, None, [8] * 4), evaluated(make, None, 18)]
    run = run_of([*bases, *made])
    found = conclude(run)
    html, text = page.render(run, found, charts(run)), markdown.render(run, found, charts(run))
    for words in ("Needles by depth", "Agreement after n tokens", "Scores", "2 of 2", "76 of 80"):
        assert words in html
        assert words in text
    row = next(row for row in run.rows() if row["scheme"] == "q8_0" and row["task"] == "needle")
    assert row["needle_score"] == 0.75
    json.dumps(run.rows())


def test_every_metric_of_a_gate_is_a_column(make: Any) -> None:
    from tqbench.core.gate import METRICS as GATED

    assert set(METRICS) >= {metric for task in ("needle", "generation", "lm_eval") for metric in GATED[task]}
