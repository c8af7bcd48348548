"""All that a run leaves behind: the page and its figures in `reports/`; `summary.csv`, `junit.xml`, `benchmark.json` beside its records."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tqbench.core.files import write_atomic
from tqbench.report import github, markdown, page, summary, together
from tqbench.report.conclusion import Conclusion, Judged
from tqbench.report.draw import Form
from tqbench.report.foreign import Foreign
from tqbench.report.run import Run
from tqbench.report.together import View

FORMS: tuple[Form, ...] = ("svg", "pdf", "png")


def write(run: Run, found: Conclusion, reports: Path) -> Path:
    """Write the page, the Markdown and the figures of a run; the path of the page."""
    return write_pages([(run, found)], together.views([run]), reports / safe(run.suite) / safe(run.name))


def folder(runs: Sequence[Run], imports: Sequence[str] = ()) -> Path:
    """Where a page of these runs, and of what was imported under these names, lies in `reports/`. Of what was changed after it was measured
    apart: an edited copy has the name of its original, whose page it must not replace."""
    named = [*((run.suite, f"{run.name}{_altered(run)}") for run in runs), *(("imported", name) for name in imports)]
    suites, names = (dict.fromkeys(map(safe, part)) for part in zip(*named, strict=True))
    return Path("+".join(suites), "+".join(names))


def _altered(run: Run) -> str:
    return "-altered" if any(record.outcome == "altered" for record in run.records) else ""


def write_pages(judged: Sequence[Judged], views: Sequence[View], to: Path, others: Sequence[Foreign] = ()) -> Path:
    """Write `index.html`, `report.md` and the figures that it shows; the path of the page."""
    for view in views:
        for chart in view.charts:
            write_atomic(to / f"{chart.name}.svg", chart.svg.encode())
    write_atomic(to / "report.md", markdown.several(judged, views, others).encode())
    write_atomic(to / "index.html", page.several(judged, views, others).encode())
    return to / "index.html"


def write_figures(views: Sequence[View], to: Path) -> list[Path]:
    """Write every figure as SVG, PDF and PNG with its numbers as CSV; their paths."""
    written: list[Path] = []
    for chart in (chart for view in views for chart in view.charts):
        files = {form: chart.drawing.write(form) for form in FORMS[1:]} | {"svg": chart.svg.encode(), "csv": chart.csv().encode()}
        for form, content in files.items():
            write_atomic(to / f"{chart.name}.{form}", content)
            written.append(to / f"{chart.name}.{form}")
    return written


def write_results(run: Run, found: Conclusion) -> None:
    """Write `summary.csv`, `junit.xml` and `benchmark.json` into the run's folder."""
    write_atomic(run.folder / "summary.csv", summary.render(run).encode())
    github.write(run, found, run.folder)


def safe(name: str) -> str:
    """A name as one part of a path."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "unnamed"
