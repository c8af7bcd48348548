"""What of a run can be drawn: points of cells with numbers, without the controls, and how fast a scheme decodes where that was measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tqbench.core.errors import ConfigError
from tqbench.core.presets import read
from tqbench.core.record import Cell, Estimate, Record
from tqbench.metrics.verdict import paid
from tqbench.report.draw import Point
from tqbench.report.grounds import disturbed
from tqbench.report.run import Run, bits_of
from tqbench.report.table import label
from tqbench.report.text import plain


@dataclass(frozen=True)
class Speeds:
    """How fast schemes decode, by label, against the model's own cache; at which depth, and whether others used the machine."""

    ratios: dict[str, float]
    depth: int = 0
    disturbed: bool = False

    @property
    def says(self) -> str:
        """The same in a caption."""
        meanwhile = ", while others used the machine" if self.disturbed else ""
        named = f" Colour: how fast it decodes against the model's own cache at depth {self.depth:,}{meanwhile}; hollow: not timed."
        return named if self.ratios else ""

    @property
    def title(self) -> str:
        """What the colours mean."""
        return f"decode, × own cache @ {self.depth:,}{' !' if self.disturbed else ''}" if self.ratios else ""


def controls(run: Run, cells: list[Cell]) -> dict[str, str]:
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


def measured(run: Run, cells: list[Cell]) -> list[tuple[str, Record]]:
    """Label and record of the cells that have numbers."""
    return [(label(run, cell), record) for cell in cells if (record := run.record(cell)) and record.outcome == "ok"]


def points(run: Run, cells: list[Cell], metric: str, speeds: Speeds | None = None) -> list[Point]:
    """The cells of which both bits and the metric are known."""
    found = []
    for name, record in measured(run, cells):
        bits, estimate = bits_of(record).get("bits_resident") or 0.0, record.metrics.get(metric)
        if estimate and bits > 0 and all(map(math.isfinite, (estimate.value, *estimate.ends))):
            estimate = paid(record, metric, estimate)
            speed = speeds.ratios.get(name) if speeds else None
            found.append(Point(name, codecs(record.cell.scheme), bits, estimate, run.floor(record), speed))
    return found


def codecs(scheme: dict[str, Any] | None) -> tuple[str, str]:
    """The codecs of K and of V, by which marks are coloured."""
    if scheme is None:
        return "own", "own"
    sides = (scheme.get(side) for side in ("k", "v"))
    k, v = (plain(str(side.get("codec", "other"))) if isinstance(side, dict) else "other" for side in sides)
    return k, v


def speeds(run: Run, cells: list[Cell]) -> Speeds:
    """Decoding at the greatest depth that this run has measured with the same model, backend, device and dtype."""
    timed = [
        record
        for cell in run.cells
        if cell.task == "decode" and cell.scheme and cell.group == cells[0].group
        if (record := run.record(cell)) and record.outcome == "ok" and record.metrics.get("decode_ratio", Estimate(0)).value > 0
    ]
    depth = max((record.cell.params["context"] for record in timed), default=0)
    deepest = [record for record in timed if record.cell.params["context"] == depth]
    ratios = {label(run, record.cell): record.metrics["decode_ratio"].value for record in deepest}
    return Speeds(ratios, depth, any(disturbed(record, "decode_ratio") for record in deepest))
