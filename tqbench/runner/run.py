"""A plan, measured: continue what is there, measure the rest, write results and report, and say it in an exit code."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqbench import corpora
from tqbench.core.errors import ConfigError
from tqbench.core.files import short_hash
from tqbench.core.record import Cell
from tqbench.models import resolve
from tqbench.report.conclusion import Conclusion, conclude
from tqbench.report.run import Run
from tqbench.report.run import load as load_run
from tqbench.report.write import write, write_results
from tqbench.runner import group
from tqbench.runner.folder import Folder
from tqbench.runner.progress import Progress
from tqbench.suite.plan import Plan

RESULTS = Path("results")
REPORTS = Path("reports")


@dataclass(frozen=True)
class Finished:
    """A run that has ended: its records, what they came to, and its page."""

    run: Run
    conclusion: Conclusion
    page: Path
    tried: tuple[Cell, ...]  # now; the other cells that were wanted had been measured before
    wanted: tuple[Cell, ...]

    @property
    def measured(self) -> int:
        """How many cells have been measured now: those that failed have not."""
        return sum(self.run.outcome(cell) == "ok" for cell in self.tried)

    @property
    def count(self) -> str:
        """What came of the cells that were wanted, by outcome."""
        outcomes = Counter(self.run.outcome(cell) for cell in self.wanted)
        before = outcomes.pop("ok", 0) - self.measured
        rest = [*([f"{before} before"] if before else []), *(f"{count} {outcome}" for outcome, count in outcomes.items())]
        return ", ".join([f"{self.measured} of {len(self.wanted)} cells measured now", *rest])


def run_plan(plan: Plan, results: Path = RESULTS, reports: Path = REPORTS, *, fresh: bool = False, command: str = "") -> Finished:
    """Measure what is missing of a plan and render the whole."""
    _bring(plan)
    folder = Folder.of(plan, results, fresh=fresh)
    _read_texts(plan, [cell for cell in plan.chosen if folder.finished(cell) is None])
    with folder.lock():
        folder.describe(plan, command)
        pending = [cell for cell in plan.chosen if folder.finished(cell) is None]
        done = frozenset(cell.key for cell in plan.chosen if cell not in pending)
        with Progress(replace(plan, done=done), pending) as progress:
            for _, cells in itertools.groupby(pending, key=lambda cell: cell.group):
                group.measure(plan, list(cells), folder, progress)
        folder.settle(plan)
        run = load_run(folder.path)
        conclusion = conclude(run, asked=plan.asked)
        write_results(run, conclusion)
        page = write(run, conclusion, reports)
    return Finished(run, conclusion, page, tuple(pending), tuple(plan.chosen))


def _bring(plan: Plan) -> None:
    """A run is named by the commits of its models, so those that are not here yet come first."""
    wanted = {cell.model for cell in plan.chosen}
    for name in plan.hub:
        if name in wanted and resolve.hub_commit(name) is None:
            resolve.fetch(name, code=plan.trust_remote_code)


def _read_texts(plan: Plan, cells: Sequence[Cell]) -> None:
    """Every text must be there before anything is measured; without it all cells would fail, one by one, for the same reason."""
    wanted = [options for cell in cells for options in (cell.corpus, cell.params.get("calibration", {}).get("corpus")) if options]
    problems = []
    for options in {short_hash(options): options for options in wanted}.values():
        try:
            corpora.load(options, plan.root)
        except ConfigError as error:
            problems += [f"{plan.suite}: {line}" for line in error.problems]
    if problems:
        raise ConfigError(problems)
