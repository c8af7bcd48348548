"""All that a run leaves behind: the page and its figures in `reports/`; `summary.csv`, `junit.xml`, `benchmark.json` beside its records."""

from __future__ import annotations

import re
from pathlib import Path

from tqbench.core.files import write_atomic
from tqbench.report import figures, github, markdown, page, summary
from tqbench.report.gate import Verdict
from tqbench.report.run import Run


def write(run: Run, verdicts: list[Verdict], reports: Path) -> Path:
    """Write the page, the Markdown and the figures; the path of the page."""
    folder = reports / _safe(run.suite) / _safe(run.name)
    charts = figures.charts(run)
    for chart in charts:
        write_atomic(folder / f"{chart.name}.svg", chart.svg.encode())
    write_atomic(folder / "report.md", markdown.render(run, verdicts, charts).encode())
    write_atomic(folder / "index.html", page.render(run, verdicts, charts).encode())
    return folder / "index.html"


def write_results(run: Run, verdicts: list[Verdict]) -> None:
    """Write `summary.csv`, `junit.xml` and `benchmark.json` into the run's folder."""
    write_atomic(run.folder / "summary.csv", summary.render(run).encode())
    github.write(run, verdicts, run.folder)


def _safe(name: str) -> str:
    """A name as one part of a path."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "unnamed"
