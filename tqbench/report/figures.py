"""Figures as SVG text: quality against bits; quality, speed and memory against context; stages. The same records give the same bytes.

K and V may differ: the left half of a mark has the colour of K's codec, the right half that of V's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tqbench.core.errors import ConfigError
from tqbench.core.presets import read
from tqbench.core.record import Cell
from tqbench.report import draw, waterfall
from tqbench.report.draw import Point
from tqbench.report.run import Run, bits_of
from tqbench.report.speed import STAGES, disturbed_stages, per_move
from tqbench.report.table import heading, label
from tqbench.report.text import exact, plain

# task: its metric, the name of the file, title, axis, what to look for
CONTEXTS = {
    "perplexity": ("kld", "kld", "KLD against context", "mean KLD, nats per token", "a scheme that breaks at depth shows here first."),
    "decode": ("decode_tps", "decode", "Decode against depth", "tokens per second", "higher is better; own is the model's own cache."),
    "prefill": (
        "prefill_tps",
        "prefill",
        "Prefill against context",
        "tokens per second",
        "higher is better; own is the model's own cache.",
    ),
    "memory": (
        "kv_bytes_per_token",
        "memory",
        "Memory against context",
        "bytes per token",
        "lower is better; windows weigh less at depth.",
    ),
}


@dataclass(frozen=True)
class Chart:
    """A figure, the setting that it shows (None: several), and what it says in words."""

    name: str
    setting: str | None
    caption: str
    svg: str


def charts(run: Run) -> list[Chart]:
    """Every figure that the run has the numbers for."""
    settings = list(enumerate(run.settings().values(), 1))
    beside = [chart for i, cells in settings for chart in (*_bits(run, cells, i), *_stages(run, cells, i))]
    return beside + list(_contexts(run))


def _bits(run: Run, cells: list[Cell], index: int) -> Iterable[Chart]:
    """Quality against bits in one setting, for each metric that has a figure."""
    controls = _controls(run, cells)
    shown = [cell for cell in cells if cell.key not in controls]
    setting = heading(cells[0])
    points = _points(run, shown, "kld")
    zero = [point.label for point in points if exact(point.y)]
    if drawn := [point for point in points if point.y.value > 0]:
        caption = "KLD against bits: lower and further left is better. The line joins the schemes that no other beats in both."
        caption += _crowd(drawn) + _left_out(zero, controls)
        yield Chart(f"kld-bits-{index}", cells[0].setting, caption, draw.kld_by_bits(drawn, setting))
    if drawn := [point for point in _points(run, shown, "dppl") if not exact(point.y)]:
        caption = "Δppl against bits, 0 is the baseline. Inside a scheme's grey band, the cutting of the text alone changes as much."
        caption += _crowd(drawn) + _left_out(zero, controls)
        yield Chart(f"dppl-bits-{index}", cells[0].setting, caption, draw.dppl_by_bits(drawn, setting))


def _crowd(points: list[Point]) -> str:
    return " Of so many only those are named that no other beats in both; the table has all." if len(points) > draw.CROWD else ""


def _left_out(zero: list[str], controls: dict[str, str]) -> str:
    named = {"KLD is exactly 0, so not on this axis": zero, "Controls, not drawn": list(controls.values())}
    return "".join(f" {what}: {', '.join(labels)}." for what, labels in named.items() if labels)


def _controls(run: Run, cells: list[Cell]) -> dict[str, str]:
    """Cells that are there to test the instrument: bypassed, or expected to fail."""
    must_fail = [gate for gate in run.gates if gate.expect == "fail"]
    return {
        cell.key: label(run, cell)
        for cell in cells
        if cell.scheme and (cell.scheme.get("bypass") or any(gate.covers(cell.label) for gate in must_fail) or _destroys(cell.scheme))
    }


def _destroys(scheme: dict[str, Any]) -> bool:
    """Whether a codec is declared to ruin the model; one that is not installed here is not known to."""
    try:
        known = read(scheme)
    except ConfigError:
        return False
    return any(side.codec.tags.destructive for side in (known.k, known.v))


def _points(run: Run, cells: list[Cell], metric: str) -> list[Point]:
    found = []
    for cell in cells:
        record = run.record(cell)
        if record is None or record.outcome != "ok" or metric not in record.metrics:
            continue
        bits, estimate = bits_of(record).get("bits_resident") or 0.0, record.metrics[metric]
        if bits > 0 and all(map(math.isfinite, (estimate.value, *estimate.ends))):
            found.append(Point(label(run, cell), _codecs(cell.scheme), bits, estimate, run.floor(record)))
    return found


def _codecs(scheme: dict[str, Any] | None) -> tuple[str, str]:
    if scheme is None:
        return "own", "own"
    sides = (scheme.get(side) for side in ("k", "v"))
    k, v = (plain(str(side.get("codec", "other"))) if isinstance(side, dict) else "other" for side in sides)
    return k, v


def _contexts(run: Run) -> Iterable[Chart]:
    """Quality against context where the settings differ in nothing else."""
    families: dict[tuple[str, ...], list[Cell]] = {}
    for cell in run.cells:
        if "context" in cell.params:
            families.setdefault((*cell.group, cell.task, str(cell.corpus), str(cell.params.get("recipe"))), []).append(cell)
    for index, cells in enumerate(families.values(), 1):
        metric, name, title, axis, caption = CONTEXTS[cells[0].task]
        lines = _lines(run, cells, metric)
        if len({context for line in lines.values() for context in line}) > 1:
            drawn = draw.by_context(lines, title, axis, heading(cells[0]).rpartition(" · ")[0])
            yield Chart(f"{name}-context-{index}", None, f"{title}: {caption}", drawn)


def _lines(run: Run, cells: list[Cell], metric: str) -> dict[str, dict[int, Point]]:
    """A line per scheme, of the points that a logarithmic axis can show. Speed and memory are the baseline's too."""
    controls = _controls(run, cells)
    lines: dict[str, dict[int, Point]] = {}
    for cell in cells:
        for point in _points(run, [cell] if cell.key not in controls else [], metric):
            if point.y.value > 0 and cell.params["context"]:
                lines.setdefault(point.label, {})[cell.params["context"]] = point
    return lines


def _stages(run: Run, cells: list[Cell], index: int) -> Iterable[Chart]:
    """Where the time of a step goes in one setting."""
    found = [(label(run, cell), record) for cell in cells if (record := run.record(cell)) and record.outcome == "ok" and record.stages]
    bars = [(f"{title} !" if disturbed_stages(record) else title, per_move(record, "cell")) for title, record in found][: draw.CROWD]
    if bars:
        names = [name for name in STAGES if any(name in spent for _, spent in bars)]
        caption = "Where the time of a step goes, in milliseconds; the table says what the stages are. ! marks disturbed repetitions."
        yield Chart(f"stages-{index}", cells[0].setting, caption, waterfall.stages(bars, names, heading(cells[0])))
