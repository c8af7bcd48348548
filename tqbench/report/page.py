"""The report as one HTML file that needs nothing else: no network, no fonts, no second file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from urllib.parse import quote

from tqbench.report import about, across, answers, details, devices, draw, foreign, probes
from tqbench.report.chart import Chart
from tqbench.report.conclusion import Conclusion, Judged
from tqbench.report.foreign import Foreign
from tqbench.report.gate import Verdict
from tqbench.report.run import Run
from tqbench.report.table import MARKS, Table, short_headings, tables
from tqbench.report.text import plain
from tqbench.report.together import View


@dataclass(frozen=True)
class Section:
    """One setting: its result table, its figures, and what lies behind them."""

    title: str
    model: str
    table: Table
    first: list[Chart]
    rest: list[Chart]
    grids: list[details.Grid]
    evidence: list[details.Evidence]


@dataclass(frozen=True)
class Verdicts:
    """What the gates of a run came to, in words."""

    run: Run
    code: int
    tone: str
    says: str
    cells: str
    found: list[Verdict]
    where: dict[str, str]


def render(run: Run, found: Conclusion, charts: list[Chart]) -> str:
    """The page of a run."""
    return several([(run, found)], [View(run, charts)])


def several(judged: Sequence[Judged], views: Sequence[View], others: Sequence[Foreign] = ()) -> str:
    """The page of several runs: all verdicts, then what may stand together, then what other tools measured."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (files("tqbench.report") / name).read_text("utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) or not isinstance(value, str) else plain(value),
    )
    environment.filters["inline"] = lambda chart: Markup(inline(chart))  # noqa: S704 - matplotlib escapes the names in it
    environment.filters["link"] = lambda chart: f"data:text/csv;charset=utf-8,{quote(chart.csv())}"
    runs = [run for run, _ in judged]
    shown = [table for view in views for table in tables(view.run)]
    return environment.get_template("page.html.j2").render(
        title=" + ".join(dict.fromkeys(run.suite for run in runs)) or foreign.TITLE,
        runs=runs,
        verdicts=[_judged(run, found) for run, found in judged],
        judged=any(found.verdicts for _, found in judged),
        known=about.facts(runs),
        columns=list({(column.title, column.meaning): column for table in shown for column in table.columns}.values()),
        marks=MARKS,
        foreign=foreign,
        others=others,
        views=[(view, across.overview(view.run), across.grids(view.run), devices.grids(view.run), _sections(view)) for view in views],
        outcomes=sorted({row.outcome for table in shown for row in table.rows}),
        machines=about.machines(runs),
        texts=[(run, about.texts(run)) for run in runs],
    )


def _judged(run: Run, found: Conclusion) -> Verdicts:
    counts = Counter(verdict.status for verdict in found.verdicts)
    ok = sum(run.outcome(cell) == "ok" for cell in run.cells)
    says = f"{found.says[0].upper()}{found.says[1:]}"
    if counts:
        says += f": {', '.join(f'{count} {status}' for status, count in sorted(counts.items()))}"
    tone = "open" if found.code == 5 else "bad" if found.code else "good" if counts else "none"
    return Verdicts(run, found.code, tone, says, f"{ok} of {len(run.cells)} cells measured", found.verdicts, short_headings(run))


def inline(chart: Chart) -> str:
    """A figure as part of the page: its colours for ink and paper become the page's, its ids its own."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", chart.svg[chart.svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r"<[^>]*>", lambda tag: _as_own(tag.group(), chart.name), svg)
    return re.sub(r'width="[^"]*" height="[^"]*"|height="[^"]*"(?= viewBox)', 'role="img"', svg, count=1)


def _as_own(tag: str, name: str) -> str:
    tag = tag.replace(draw.INK, "currentColor").replace(draw.PAPER, "none")
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", tag)


def _sections(view: View) -> list[Section]:
    run, titles = view.run, about.titles(view.run)
    found = []
    for table, (setting, cells) in zip(tables(run), run.settings().items(), strict=True):
        own = [chart for chart in view.charts if chart.setting == setting]
        first = [chart for chart in own if "-bits-" in chart.name]
        grids = [grid for grid in (details.ledger(run, cells), details.positions(run, cells)) if grid]
        grids += [*details.stored(run, cells), *details.stages(run, cells), *probes.grids(run, cells), *answers.grids(run, cells)]
        rest = [chart for chart in own if chart not in first]
        found.append(Section(titles[setting], " ".join(cells[0].group), table, first, rest, grids, details.evidence(run, cells)))
    return found
