"""`tqbench plan`: what a run would measure, and a first guess of what it costs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from tqbench.cli import options, table

if TYPE_CHECKING:
    from tqbench.core.record import Cell
    from tqbench.suite.cost import Cost
    from tqbench.suite.plan import Plan
    from tqbench.suite.schema import Overrides

UNKNOWN = "?"  # the model's configuration, or the device's speed, is not known before it is loaded


@options.overriding
def plan(suites: options.Suites, only: options.Only = None, *, overrides: Overrides) -> None:
    """Show what a run would measure, and about what it costs."""
    show(read(suites, only, overrides))


def read(suites: Sequence[str], only: str | None, overrides: Overrides) -> list[Plan]:
    """The plans of some suite files under the options of the command line."""
    from tqbench.suite.load import load
    from tqbench.suite.plan import plan, select

    return select([plan(suite) for suite in load(suites, overrides)], only)


def show(plans: Sequence[Plan]) -> None:
    """Print plans, one table for cells that differ in scheme and context only."""
    for planned in plans:
        pairs = [(cell, planned.cost(cell)) for cell in planned.chosen]
        for heading, members in itertools.groupby(pairs, key=lambda pair: _heading(pair[0])):
            table.show(f"{planned.suite} · {heading}", COLUMNS, [_row(cell, cost) for cell, cost in members])
            typer.echo()
        typer.echo(_total(planned))


def _heading(cell: Cell) -> str:
    protocol = " deploy" if cell.params["protocol"] == "deploy" else ""
    task = " ".join(part for part in (cell.task, cell.params.get("recipe")) if part)
    return " · ".join((*cell.group, " ".join(map(str, cell.corpus.values())), f"{task}{protocol}"))


COLUMNS = ("scheme", "kernel", "context>", "tokens run>", "about>", "memory>", "note")


def _row(cell: Cell, cost: Cost) -> tuple[str, ...]:
    from tqbench.report.text import size

    return (
        cell.label,
        cell.kernel,
        str(cell.params["context"]),
        f"{cost.tokens:,}",
        UNKNOWN if cost.seconds is None else duration(cost.seconds),
        UNKNOWN if cost.peak_bytes is None else size(cost.peak_bytes),
        f"unsupported: {cost.unsupported}" if cost.unsupported else _calibration(cell),
    )


def _calibration(cell: Cell) -> str:
    """What the scheme learns from before it is measured."""
    found = cell.params.get("calibration")
    return f"calibrated on {found['tokens']:,} tokens of {' '.join(map(str, found['corpus'].values()))}" if found else ""


def _total(planned: Plan) -> str:
    from tqbench.measure.environment import describe
    from tqbench.report.text import size

    costs = [planned.cost(cell) for cell in planned.chosen]
    seconds = [cost.seconds for cost in costs]
    needed = [cost.peak_bytes for cost in costs if cost.peak_bytes is not None]
    here = describe()["memory_bytes"]
    parts = [
        f"{len(planned.chosen)} cells",
        f"{sum(cost.tokens for cost in costs):,} tokens",
        *([f"about {duration(sum(s for s in seconds if s is not None))}"] if None not in seconds else ["time not known"]),
        *([f"up to {size(max(needed))} of the {size(here)} of memory here"] if needed else []),
        f"run {planned.identity()}",
    ]
    too_much = "\nThis needs more memory than this machine has." if needed and max(needed) > here else ""
    return f"{planned.suite}: {' · '.join(parts)}{too_much}"


def duration(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
