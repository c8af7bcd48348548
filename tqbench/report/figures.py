"""The figures of a run: quality against bits; quality, speed and memory against context; KLD by position; bytes and time by part; KLD by
layer and side."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tqbench.core.record import Cell
from tqbench.report import answers, contexts, probes, scatter, shares
from tqbench.report.chart import Chart
from tqbench.report.draw import CROWD, Point
from tqbench.report.points import controls, points, speeds
from tqbench.report.run import Run
from tqbench.report.table import heading
from tqbench.report.text import exact

__all__ = ["Chart", "charts"]


def charts(run: Run) -> list[Chart]:
    """Every figure that the run has the numbers for. The same records give the same figures."""
    settings = list(enumerate(run.settings().values(), 1))
    beside = [chart for i, cells in settings for chart in _setting(run, cells, i)]
    return beside + list(contexts.contexts(run)) + list(answers.maps(run))


def _setting(run: Run, cells: list[Cell], index: int) -> Iterable[Chart]:
    yield from _bits(run, cells, index)
    yield from contexts.positions(run, cells, index)
    yield from shares.ledger(run, cells, index)
    yield from shares.stages(run, cells, index)
    yield from probes.charts(run, cells, index)
    yield from answers.charts(run, cells, index)


def _bits(run: Run, cells: list[Cell], index: int) -> Iterable[Chart]:
    """Quality against bits in one setting, for each metric that has a figure."""
    out, timed = controls(run, cells), speeds(run, cells)
    shown = [cell for cell in cells if cell.key not in out]
    found = points(run, shown, "kld", timed)
    zero = [point.label for point in found if exact(point.y)]
    rest = timed.says + _left_out(zero, out)
    if drawn := [point for point in found if point.y.value > 0]:
        caption = "KLD against bits: lower and further left is better. The line joins the schemes that no other beats in both."
        drawing = scatter.kld_by_bits(drawn, heading(cells[0]), timed.title)
        yield Chart(f"kld-bits-{index}", cells[0].setting, caption + _crowd(drawn) + rest, drawing, _data(drawn, "kld", timed.title))
    if drawn := [point for point in points(run, shown, "dppl", timed) if not exact(point.y)]:
        caption = "Δppl against bits, 0 is the baseline."
        caption += " Hollow: the cutting of the text alone changes as much." if len(drawn) > CROWD or not timed.title else ""
        caption += "" if len(drawn) > CROWD else " Inside a scheme's grey band, the cutting of the text alone changes as much."
        drawing = scatter.dppl_by_bits(drawn, heading(cells[0]), timed.title)
        yield Chart(f"dppl-bits-{index}", cells[0].setting, caption + _crowd(drawn) + rest, drawing, _data(drawn, "dppl", timed.title))


def _crowd(drawn: list[Point]) -> str:
    return " Of so many only those are named that no other beats in both; the table has all." if len(drawn) > CROWD else ""


def _left_out(zero: list[str], out: dict[str, str]) -> str:
    named = {"KLD is exactly 0, so not on this axis": zero, "Controls, not drawn": list(out.values())}
    return "".join(f" {what}: {', '.join(labels)}." for what, labels in named.items() if labels)


def _data(drawn: list[Point], metric: str, speed: str) -> tuple[dict[str, Any], ...]:
    best = set(scatter.frontier([(point.bits, point.y.value) for point in drawn]))
    rows = []
    for point in drawn:
        low, high = point.y.ends
        row = {"scheme": point.label, "bits": point.bits, metric: point.y.value, "low": low, "high": high}
        row |= {"floor": point.floor} if metric == "dppl" else {}
        row |= {speed.removesuffix(" !"): point.speed} if speed else {}
        rows.append(row | {"frontier": (point.bits, point.y.value) in best})
    return tuple(rows)
