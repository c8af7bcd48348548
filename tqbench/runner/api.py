"""The Python face: `tqbench.run("suites/quickstart.yaml")`, `tqbench.load("quickstart").frame()`."""

from __future__ import annotations

from pathlib import Path

from tqbench.report.run import Run, find
from tqbench.report.run import load as load_run
from tqbench.runner.run import RESULTS, run_plan
from tqbench.suite import load as suites
from tqbench.suite.plan import plan
from tqbench.suite.schema import Overrides


def run(suite: str | Path, *, results: str | Path = RESULTS, fresh: bool = False, **overrides: str) -> Run:
    """Run a suite file, or continue it, and return its records; `overrides` are those of the command line (model=…, bypass=…)."""
    options = [f"--{key} {value}" for key, value in overrides.items()]
    (loaded,) = suites.load([suite], Overrides(**overrides))
    return run_plan(plan(loaded), Path(results), fresh=fresh, command=" ".join(["tqbench run", str(suite), *options])).run


def load(run: str | Path, results: str | Path = RESULTS) -> Run:
    """A finished run: a folder, a suite's name (its latest run), or a record."""
    return load_run(find(str(run), Path(results)))
