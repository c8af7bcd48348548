"""The Python face: `tqbench.run("suites/quickstart.yaml")`, `tqbench.load("quickstart").frame()`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from tqbench.report.run import Run, find
from tqbench.report.run import load as load_run
from tqbench.runner.folder import Folder
from tqbench.runner.run import RESULTS, run_plan
from tqbench.suite import load as suites
from tqbench.suite.budget import Limits, trim
from tqbench.suite.history import History
from tqbench.suite.plan import plan
from tqbench.suite.schema import Overrides


def run(
    suite: str | Path,
    *,
    results: str | Path = RESULTS,
    fresh: bool = False,
    sets: Sequence[str] = (),
    budget: str | None = None,
    memory: str | None = None,
    **overrides: str,
) -> Run:
    """Run a suite file, or continue it, and return its records. The arguments are the options of the command line: `sets` is `--set`, as
    ("tasks.0.perplexity.tokens=2k",), and `overrides` are those that replace a value (model=…, bypass=…)."""
    limits, results = Limits(budget, memory), Path(results)
    given = {**overrides, **limits.given()}
    options = [*(f"--set={text}" for text in sets), *(f"--{key}={value}" for key, value in given.items())]
    (loaded,) = suites.load([suite], Overrides(sets=tuple(sets), **overrides))
    planned = plan(loaded, History.read(results))
    folder = Folder.of(planned, results, fresh=fresh)
    (planned,) = trim([planned], limits, {cell.key for cell in planned.cells if folder.finished(cell)})
    return run_plan(planned, results, fresh=fresh, command=shlex.join(["tqbench", "run", str(suite), *options])).run


def load(run: str | Path, results: str | Path = RESULTS) -> Run:
    """A finished run: a folder, a suite's name (its latest run), or a record."""
    return load_run(find(str(run), Path(results)))
