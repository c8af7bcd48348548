"""Figures against tokens, made from records: quality, speed and memory against context, KLD by position in the window."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from tqbench.core.record import Cell, Estimate
from tqbench.report import lines
from tqbench.report.across import kind
from tqbench.report.chart import Chart
from tqbench.report.draw import Point
from tqbench.report.points import codecs, controls, measured, points
from tqbench.report.run import Run
from tqbench.report.scatter import frontier
from tqbench.report.table import heading

MANY = 8  # lines that can be told apart


@dataclass(frozen=True)
class Story:
    """What is drawn against context for a task: the metric, the file's name, title, axis, and what to look for."""

    metric: str
    name: str
    title: str
    axis: str
    caption: str


OWN = "higher is better; own is the model's own cache."
CONTEXTS = {
    "perplexity": Story("kld", "kld", "KLD against context", "mean KLD, nats per token", "a scheme that breaks at depth shows here first."),
    "decode": Story("decode_tps", "decode", "Decode against depth", "tokens per second", OWN),
    "prefill": Story("prefill_tps", "prefill", "Prefill against context", "tokens per second", OWN),
    "memory": Story(
        "kv_bytes_per_token", "memory", "Memory against context", "bytes per token", "lower is better; windows weigh less at depth."
    ),
    "storage": Story(
        "ttft_gain", "storage", "First token from a file", "times as fast as computing anew", "higher is better; 1 is no gain."
    ),
}


def contexts(run: Run) -> Iterable[Chart]:
    """Figures over the settings that differ in nothing but the context."""
    families: dict[tuple[str, ...], list[Cell]] = {}
    for cell in run.cells:
        if "context" in cell.params and cell.task in CONTEXTS:
            families.setdefault((*cell.group, cell.task, str(cell.corpus), kind(cell)), []).append(cell)
    for index, cells in enumerate(families.values(), 1):
        story = CONTEXTS[cells[0].task]
        found = _by_context(run, cells, story.metric)
        if len({context for line in found.values() for context in line}) > 1:
            drawn = lines.by_context(found, story.title, story.axis, heading(cells[0]).rpartition(" · ")[0])
            data = tuple(
                {"scheme": name, "context": x, story.metric: p.y.value, **dict(zip(("low", "high"), p.y.ends, strict=True))}
                for name, line in found.items()
                for x, p in sorted(line.items())
            )
            yield Chart(f"{story.name}-context-{index}", None, f"{story.title}: {story.caption}", drawn, data)


def _by_context(run: Run, cells: list[Cell], metric: str) -> lines.Lines:
    """A line per scheme, of the points that a logarithmic axis can show. Speed and memory are the baseline's too."""
    out = controls(run, cells)
    found: lines.Lines = {}
    for cell in cells:
        for point in points(run, [cell] if cell.key not in out else [], metric):
            if point.y.value > 0 and cell.params["context"]:
                found.setdefault(point.label, {})[cell.params["context"]] = point
    return found


def positions(run: Run, cells: list[Cell], index: int) -> Iterable[Chart]:
    """KLD by position in one setting; a token's place stands for its bucket's."""
    out = controls(run, cells)
    shown = [cell for cell in cells if cell.scheme and cell.key not in out]
    found = {name: line for name, record in measured(run, shown) if (line := _by_position(name, record.cell, record.positions))}
    if len({x for line in found.values() for x in line}) < 2:
        return
    best = frontier([(point.bits, point.y.value) for point in points(run, shown, "kld")])
    named = {p.label for p in points(run, shown, "kld") if (p.bits, p.y.value) in best} if len(found) > MANY else set(found)
    caption = "KLD by position: what breaks at depth rises to the right. Means over buckets, without intervals; no mark where KLD is 0."
    caption += " Of so many only those are named that no other beats in bits and KLD." if len(found) > MANY else ""
    data = tuple(
        {"scheme": name, **{key: row[key] for key in ("from", "to", "tokens", "kld", "dnll") if key in row}}
        for name, record in measured(run, shown)
        for row in record.positions
    )
    yield Chart(f"kld-position-{index}", cells[0].setting, caption, lines.by_position(found, named & set(found), heading(cells[0])), data)


def _by_position(name: str, cell: Cell, rows: list[dict[str, float]]) -> dict[int, Point]:
    return {
        round((row["from"] + row["to"]) / 2) or 1: Point(name, codecs(cell.scheme), 1.0, Estimate(row["kld"]))
        for row in rows
        if math.isfinite(row["kld"]) and row["kld"] > 1e-6  # rounding, which a logarithm would blow up
    }
