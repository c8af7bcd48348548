"""`tqbench plan`: what a run would measure, and what it costs."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tqbench.cli import options, table
from tqbench.core.errors import worst
from tqbench.core.quantity import duration, size

if TYPE_CHECKING:
    from tqbench.core.record import Cell
    from tqbench.report.conclusion import Conclusion
    from tqbench.suite.budget import Limits
    from tqbench.suite.cost import Cost
    from tqbench.suite.plan import Plan
    from tqbench.suite.schema import Overrides

UNKNOWN = "?"  # the model's configuration, or the device's speed, is not known before it is loaded
GUESS = "first guess"
EXAMPLES = """Examples:

tqbench plan suites/long_ctx.yaml

tqbench plan suites/long_ctx.yaml --budget 20m --memory 16g

tqbench plan suites/quickstart.yaml --set tasks.0.perplexity.tokens=8k
"""


@dataclass(frozen=True)
class Wanted:
    """What a command line asks for: plans without what its limits leave out, and what of them is measured already, by key."""

    plans: list[Plan]
    done: frozenset[str] = field(default_factory=frozenset)


@options.overriding
def plan(
    suites: options.Suites,
    only: options.Only = None,
    *,
    overrides: Overrides,
    budget: options.Budget = None,
    memory: options.Memory = None,
    output: options.Runs = Path("results"),
) -> None:
    """Show what a run would measure, and what it takes: time, memory, disk and downloads. Measures nothing.

    Times are learned from earlier records of this machine where there are any; otherwise they are first guesses. Where no scheme of a suite
    can run here, the exit code is that of the run.
    """
    from tqbench.suite.budget import Limits

    raise typer.Exit(show(read(suites, only, overrides, limits=Limits(budget, memory), output=output)))


def read(suites: Sequence[str], only: str | None, overrides: Overrides, *, limits: Limits, output: Path, fresh: bool = False) -> Wanted:
    """The plans of some suite files under the options of the command line."""
    from tqbench.runner.folder import Folder
    from tqbench.suite.budget import trim
    from tqbench.suite.history import History
    from tqbench.suite.load import load
    from tqbench.suite.plan import plan, select

    limits.read()  # a budget that cannot be read is said before anything else is
    loaded = load(suites, overrides)
    history = History.read(output)
    plans = select([plan(suite, history) for suite in loaded], only)
    folders = [(found, Folder.of(found, output, fresh=fresh)) for found in plans]
    done = frozenset(cell.key for found, folder in folders for cell in found.chosen if folder.finished(cell))
    return Wanted(trim(plans, limits, done), done)


def show(wanted: Wanted) -> int:
    """Print plans, one table for cells that differ in scheme and context only. The exit code: 0 unless nothing of a plan can run."""
    codes = []
    for planned in wanted.plans:
        pairs = [(cell, planned.cost(cell)) for cell in planned.chosen]
        for heading, members in itertools.groupby(pairs, key=lambda pair: _heading(pair[0])):
            table.show(f"{planned.suite} · {heading}", COLUMNS, [_row(cell, cost, wanted.done) for cell, cost in members])
            typer.echo()
        if planned.chosen:
            typer.echo("\n".join(_total(planned, wanted.done)))
        for line in dropped(planned):
            typer.echo(line)
        if doomed := _doomed(planned, wanted.done):
            typer.echo("\n".join(_why(planned, doomed)))
            codes.append(doomed.code)
    return worst(codes)


def _doomed(planned: Plan, done: Collection[str]) -> Conclusion | None:
    """What the run will come to if nothing can run that was asked for, no scheme or not even a baseline; else None."""
    from tqbench.core.record import Record
    from tqbench.report.conclusion import conclude
    from tqbench.report.run import Run

    refused = [cell for cell in planned.chosen if cell.key not in done and planned.cost(cell).unsupported]
    able = [cell for cell in planned.chosen if cell not in refused]
    if not refused or any(cell.scheme for cell in able) or (able and not any(cell.scheme for cell in refused)):
        return None
    records = (*(Record(cell, "unsupported", planned.cost(cell).unsupported) for cell in refused), *(Record(cell, "ok") for cell in able))
    run = Run(Path(), planned.suite, "", "", planned.cells, records, planned.gates, {}, dropped=dict(planned.dropped))
    return conclude(run, asked=planned.asked)


def _why(planned: Plan, doomed: Conclusion) -> list[str]:
    labels: dict[str, list[str]] = {}
    for cell in planned.chosen:
        if why := planned.cost(cell).unsupported:
            labels.setdefault(why, []).append(cell.label)
    reasons = [f"  {', '.join(dict.fromkeys(own))}: {why}" for why, own in labels.items()]
    return [f"{planned.suite}: {_nothing(planned)} can run here; `tqbench run` would end with: {doomed.sentence}", *reasons]


def _nothing(planned: Plan) -> str:
    """Of what nothing can run: of the suite, or only of what limits leave of it."""
    able = sum(cell.scheme is not None and not planned.cost(cell).unsupported for cell in planned.asked if cell.key in planned.dropped)
    return f"nothing that {_limits(planned)} leaves (it leaves out {_cells(able)} that could)" if able else "nothing of it"


def dropped(planned: Plan) -> list[str]:
    """What limits leave out of a plan, and why."""
    if not planned.dropped:
        return []
    alike: dict[tuple[str, int, str], list[str]] = {}
    for cell in planned.asked:
        if why := planned.dropped.get(cell.key):
            alike.setdefault((cell.task, cell.params["context"], why), []).append(cell.label)
    lines = [f"  {task} · context {context} · {', '.join(labels)}: {why}" for (task, context, why), labels in alike.items()]
    return [f"{planned.suite}: {_limits(planned)} leaves out {len(planned.dropped)} of {len(planned.asked)} cells:", *lines]


def _limits(planned: Plan) -> str:
    return " ".join(f"--{name} {value}" for name, value in planned.limits.items())


def _heading(cell: Cell) -> str:
    protocol = " deploy" if cell.params["protocol"] == "deploy" else ""
    task = " ".join(str(cell.params[key]) if key else cell.task for key in ("", "recipe", "form", "task") if not key or key in cell.params)
    return " · ".join((*cell.group, " ".join(map(str, cell.corpus.values())), f"{task}{protocol}"))


COLUMNS = ("scheme", "kernel", "context>", "tokens run>", "about>", "memory>", "disk>", "from", "note")


def _row(cell: Cell, cost: Cost, done: Collection[str]) -> tuple[str, ...]:
    return (
        cell.label,
        cell.kernel,
        str(cell.params["context"]),
        f"{cost.tokens:,}",
        UNKNOWN if cost.seconds is None else duration(cost.seconds),
        *(UNKNOWN if count is None else size(count) for count in (cost.peak_bytes, cost.disk_bytes)),
        "measured" if cell.key in done else _cells(cost.learned) if cost.learned else GUESS,
        "; ".join(_notes(cell, cost)),
    )


def _cells(count: int) -> str:
    return f"{count} cell{'s' * (count != 1)}"


def _notes(cell: Cell, cost: Cost) -> list[str]:
    """Why it cannot run or fit, what comes first, and what the scheme learns from."""
    found = cell.params.get("calibration")
    return [
        *([f"unsupported: {cost.unsupported}"] if cost.unsupported else []),
        *([_until(cost)] if "judging" in cell.params else []),
        *(["does not fit the memory here"] if _too_large(cell, cost) else []),
        *([f"downloads {_download(cost)} first"] if cost.download_bytes != 0 else []),
        *([f"calibrated on {found['tokens']:,} tokens of {' '.join(map(str, found['corpus'].values()))}"] if found else []),
    ]


def _until(cost: Cost) -> str:
    """How far a cell will go that ends when it is decided, as far as an earlier one of its scheme tells."""
    found = cost.expected
    if found is None:
        return "at most: until it is decided; how many tokens that takes is not known before the scheme has been scored here"
    basis = f"by {found.earlier.scored:,} tokens of {' '.join(map(str, found.earlier.cell.corpus.values()))} scored before"
    if found.share is None:
        return f"at most; {basis} it lies on the limit, where no number of tokens decides"
    if found.share > 1:
        return f"at most; {basis} it stays open, and about {found.tokens:,} tokens of text would decide"
    took = "" if cost.seconds is None else f" and {duration(found.share * cost.seconds)}"
    return f"at most; {basis} it is decided after {found.tokens:,} tokens of text{took}"


def _too_large(cell: Cell, cost: Cost) -> bool:
    """Whether it needs more than this machine has; what a device holds is not known here."""
    from tqbench.measure.environment import describe

    return cell.device == "cpu" and (cost.peak_bytes or 0) > describe()["memory_bytes"]


def _download(cost: Cost) -> str:
    return "the model, of unknown size," if cost.download_bytes is None else size(cost.download_bytes)


def _total(planned: Plan, done: Collection[str]) -> list[str]:
    """All together, without what is measured already and what cannot run."""
    from tqbench.measure.environment import describe

    rest = [cell for cell in planned.chosen if cell.key not in done]
    cells = [cell for cell in rest if not planned.cost(cell).unsupported]
    costs = [planned.cost(cell) for cell in cells]
    needed = [cost.peak_bytes for cost in costs if cost.peak_bytes is not None]
    fetched = [_download(cost) for cost in costs if cost.download_bytes != 0]
    parts = [
        f"{len(planned.chosen)} cells",
        *([f"{measured} of them measured"] if (measured := len(planned.chosen) - len(rest)) else []),
        *([f"{refused} unsupported"] if (refused := len(rest) - len(cells)) else []),
        f"{sum(cost.tokens for cost in costs):,} tokens",
        _time(planned, cells),
        *([f"up to {size(max(needed))} of the {size(describe()['memory_bytes'])} of memory here"] if needed else []),
        *([f"{size(sum(cost.disk_bytes or 0 for cost in costs))} on disk"] if costs else []),
        *(f"downloads {what}" for what in fetched),
        f"run {planned.identity()}",
    ]
    large = sum(_too_large(cell, cost) for cell, cost in zip(cells, costs, strict=True))
    fits = [f"{_cells(large)} need more memory than this machine has; --memory leaves such cells out."] if large else []
    return [f"{planned.suite}: {' · '.join(parts)}", *fits]


def _time(planned: Plan, cells: Sequence[Cell]) -> str:
    costs = [planned.cost(cell) for cell in cells]
    if any(cost.seconds is None for cost in costs):
        return "time not known before something has been measured here"
    learned = [cost for cost in costs if cost.learned]
    basis = (
        "learned from earlier cells"
        if len(learned) == len(costs)
        else f"{GUESS} for {len(costs) - len(learned)} cells"
        if learned
        else GUESS
    )
    total = sum(cost.seconds or 0.0 for cost in costs) + planned.startup(cells)
    return f"about {duration(total)} ({basis})" if costs else "nothing left to measure"
