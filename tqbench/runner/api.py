"""The Python face: `tqbench.run("suites/quickstart.yaml")`, `tqbench.load("quickstart").frame()`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tqbench.report.run import Run, find
from tqbench.report.run import load as load_run
from tqbench.suite.load import load as load_suites
from tqbench.suite.plan import plan

from tqbench.runner.run import RESULTS, run_plan


def run(suite: str | Path, *, results: str | Path = RESULTS, fresh: bool = False, **overrides: Any) -> Run:
    """Run a suite file, or continue it, and return its records; `overrides` are those of the command line (model=…, bypass=…)."""
    (loaded,) = load_suites([Path(suite)])
    return run_plan(plan(loaded, **overrides), Path(results), fresh=fresh, command=f"tqbench run {suite}").run


def load(run: str | Path, results: str | Path = RESULTS) -> Run:
    """A finished run: a folder, a suite's name (its latest run), or a record."""
    return load_run(find(str(run), Path(results)))
