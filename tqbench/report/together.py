"""Several runs on one page: what is comparable shares tables and figures, what is not stands apart, and says why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tqbench.core.record import Cell, Record
from tqbench.report import figures
from tqbench.report.chart import Chart
from tqbench.report.knobs import weights
from tqbench.report.run import Run
from tqbench.report.text import number

TIMED = ("decode", "prefill", "storage", "breakdown")


@dataclass
class View:
    """Cells that may stand in the same tables and figures, as one run; `notes` say what came from where, and what was kept apart."""

    run: Run
    charts: list[Chart] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def views(runs: Sequence[Run]) -> list[View]:
    """The runs, each setting in the first view that it is comparable with, or in one of its own run. Figures have names of their own."""
    found: list[View] = []
    for run in runs:
        rest, apart = [], []
        for setting, cells in run.settings().items():
            fitting = [view for view in found if setting in view.run.settings()]
            problems = [_differs(view.run, run, setting) for view in fitting]
            if None in problems:
                _add(fitting[problems.index(None)], run, cells)
            else:
                rest += cells
                apart += [problem for problem in problems if problem]
        if rest or not found:
            found.append(View(run.only(rest), notes=list(dict.fromkeys(apart))))
    for index, view in enumerate(found, 1):
        drawn = figures.charts(view.run)
        view.charts = [replace(chart, name=f"{chart.name}-of-{index}") for chart in drawn] if len(found) > 1 else drawn
    return found


def _differs(one: Run, other: Run, setting: str) -> str | None:
    """Why cells of the same setting are not comparable all the same."""
    a, b = (_example(run, setting) for run in (one, other))
    if a is None or b is None:
        return None
    who = f"{other.suite} {other.name} stands apart from {one.suite} {one.name}"
    if a.cell.task in TIMED:
        return f"{who} in speed: they were not timed in turn."
    for what, x, y in (
        ("the weights differ", weights(a), weights(b)),
        ("the tokens differ", a.text.get("ids_sha256"), b.text.get("ids_sha256")),
        ("other windows were scored", a.text.get("scored"), b.text.get("scored")),
    ):
        if x != y:
            return f"{who}: {what} ({x}, {y})."
    return _baselines(one, other, setting, who)


def _baselines(one: Run, other: Run, setting: str, who: str) -> str | None:
    """The same tokens through the same model must cost the same before anything is quantized."""
    bases = [
        next((r for r in run.records if r.cell.setting == setting and r.cell.scheme is None and r.outcome == "ok"), None)
        for run in (one, other)
    ]
    known = [base for base in bases if base and "ppl" in base.metrics]
    if len(known) < 2:
        return None
    ppl = [base.metrics["ppl"].value for base in known]
    floor = max(base.floors.get("instrument") or 0.0 for base in known)
    if abs(ppl[0] - ppl[1]) <= floor:
        return None
    return f"{who}: the baselines' ppl differ by more than their floor ({number(ppl[0], 7)}, {number(ppl[1], 7)})."


def _example(run: Run, setting: str) -> Record | None:
    return next((record for record in run.records if record.cell.setting == setting and record.outcome == "ok"), None)


def _add(view: View, run: Run, cells: list[Cell]) -> None:
    """Take another run's cells in. What both measured is shown twice, unless every score is the same; the baseline once."""
    own, added = view.run, []
    for cell in cells:
        record, twin = run.record(cell), own.record(cell)
        if record and twin and (cell.scheme is None or (twin.fingerprint and twin.fingerprint == record.fingerprint)):
            continue
        taken = any(known.label == cell.label and known.setting == cell.setting for known in own.cells)
        named = _named(cell, run.name) if taken else cell
        added.append((named, replace(record, cell=named) if record else None))
    if added:
        view.notes.append(f"From {run.suite} {run.name}: {', '.join(dict.fromkeys(cell.label for cell, _ in added))}.")
    view.run = replace(
        own,
        cells=(*own.cells, *(cell for cell, _ in added)),
        records=(*own.records, *(record for _, record in added if record)),
        gates=tuple(dict.fromkeys((*own.gates, *run.gates))),
    )


def _named(cell: Cell, run: str) -> Cell:
    return replace(cell, scheme={**cell.scheme, "name": f"{cell.scheme['name']} ({run})"}) if cell.scheme else cell
