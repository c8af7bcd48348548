"""Everything a run leaves behind for people: pages and figures in `reports/`, `summary.csv` and `junit.xml` beside its records."""

from __future__ import annotations

from pathlib import Path

from tqbench.report.gate import Verdict
from tqbench.report.run import Run


def write(run: Run, verdicts: list[Verdict], reports: Path) -> Path:
    """Write the page, the Markdown and the figures; the path of the page."""
    raise NotImplementedError


def write_results(run: Run, verdicts: list[Verdict]) -> None:
    """Write `summary.csv` and `junit.xml` into the run's folder."""
    raise NotImplementedError
