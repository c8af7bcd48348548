"""A plan, measured: continue what is there, measure the rest, write results and report, and say it in an exit code."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from tqbench.report import gate
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
    """A run that has ended: its records, verdicts, page, and the code to exit with."""

    run: Run
    verdicts: list[gate.Verdict]
    page: Path
    exit_code: int
    measured: int  # cells measured now; the others were there


def run_plan(plan: Plan, results: Path = RESULTS, reports: Path = REPORTS, *, fresh: bool = False, command: str = "") -> Finished:
    """Measure what is missing of a plan and render the whole."""
    folder = Folder.of(plan, results, fresh=fresh)
    with folder.lock():
        folder.describe(plan, command)
        pending = [cell for cell in plan.chosen if folder.finished(cell) is None]
        with Progress(plan, pending) as progress:
            for _, cells in itertools.groupby(pending, key=lambda cell: cell.group):
                group.measure(plan, list(cells), folder, progress)
        folder.settle(plan)
        run = load_run(folder.path)
        verdicts = gate.judge(run)
        write_results(run, verdicts)
        page = write(run, verdicts, reports)
    return Finished(run, verdicts, page, _exit_code(run, plan), len(pending))


def _exit_code(run: Run, plan: Plan) -> int:
    """What the cells that were asked for came to."""
    asked = run.only(plan.chosen)
    return gate.exit_code(asked, gate.judge(asked))
