"""The report as Markdown, for pull requests and notes."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from tqbench.report import answers, devices, foreign, probes
from tqbench.report.across import grids
from tqbench.report.chart import Chart
from tqbench.report.column import Figure
from tqbench.report.conclusion import Conclusion, Judged
from tqbench.report.details import Grid
from tqbench.report.foreign import Foreign
from tqbench.report.run import Run
from tqbench.report.table import Row, Table, short_headings, tables
from tqbench.report.text import plain
from tqbench.report.together import View

BRIEF = (
    "bits",
    "coverage %",
    "ppl",
    "Δppl",
    "KLD",
    "top-1 %",
    "tok/s",
    "× own",
    "p50 ms",
    "B/token",
    "tokens/GiB",
    "file",
    "× f16",
    "× anew",
    "found %",
    "own %",
    "kept %",
    "NLL",
    "agree %",
    "half after",
    "score %",
    "Δ %",
    "same %",
    "active",
)


def render(run: Run, found: Conclusion, charts: Sequence[Chart] = ()) -> str:
    """Verdicts, then one table per setting with its figures, which lie beside it as SVG files."""
    return several([(run, found)], [View(run, list(charts))])


def several(judged: Sequence[Judged], views: Sequence[View], others: Sequence[Foreign] = ()) -> str:
    """The same of several runs: all verdicts, then what may stand together, then what other tools measured."""
    parts = [*(part for run, found in judged for part in _judged(run, found)), *(part for view in views for part in _view(view))]
    return "\n\n".join((*parts, *measured_elsewhere(others), *(f"Command: {escape(run.command)}" for run, _ in judged))) + "\n"


def measured_elsewhere(others: Sequence[Foreign]) -> list[str]:
    """What other tools measured, apart from the rest."""
    return [f"## {foreign.TITLE}", escape(foreign.INTRODUCTION), *(part for one in others for part in _foreign(one))] if others else []


def _foreign(one: Foreign) -> list[str]:
    caveat = f"Not comparable with tables of tqbench: {one.caveat}."
    below = [escape(line) for line in (caveat, *(f"{name}: {why}" for name, why in one.unknown))]
    rows = [(escape(title), *map(_figure, figures)) for title, figures in one.grid.rows]
    return [
        f"### {escape(one.title)}",
        escape(one.said),
        grid((one.grid.corner, *map(escape, one.grid.head)), rows),
        "  \n".join(below),
    ]


def _judged(run: Run, found: Conclusion) -> list[str]:
    return [f"# {escape(run.suite)}", f"Run {escape(run.name)}: {found.reported}.", *([verdicts(run, found)] if found.verdicts else [])]


def _view(view: View) -> list[str]:
    run, charts = view.run, view.charts
    return [
        *map(escape, view.notes),
        *map(_across, (*devices.grids(run), *grids(run))),
        *_figures(charts, None),
        *(
            part
            for table in tables(run)
            for part in (*_table(table), *map(_across, _behind(run, table)), *_figures(charts, table.rows[0].cell.setting))
        ),
    ]


def _behind(run: Run, table: Table) -> list[Grid]:
    """What was probed, by layer, and what was asked, by depth, token or score: the answer itself, and so in Markdown, too."""
    cells = [row.cell for row in table.rows]
    return [*probes.grids(run, cells), *answers.grids(run, cells)]


def brief(run: Run) -> str:
    """The tables alone, without tails and kernels: what a README shows."""
    parts = []
    for table in tables(run):
        keep = [i for i, column in enumerate(table.columns) if column.title in BRIEF]
        rows = [(cells[0], *(cells[1 + i] for i in keep)) for cells in (_row(row, len(table.columns)) for row in table.rows)]
        below = [escape(line) for line in (*table.marks(), *table.notes())]
        parts += [
            f"**{escape(table.heading)}**",
            escape(" · ".join(table.facts)),
            grid(("scheme", *(table.columns[i].title for i in keep)), rows),
            "  \n".join(below),
        ]
    return "\n\n".join(part for part in parts if part)


def escape(text: str) -> str:
    """Text that Markdown and HTML show as it is, also inside a table."""
    marked = re.sub(r"([\\`|*\[\]~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", plain(text))
    return html.escape(marked, quote=False)


def grid(head: tuple[str, ...], lines: Sequence[tuple[str, ...]]) -> str:
    """A table; its cells are Markdown already."""
    rule = ("---",) * len(head)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))


def verdicts(run: Run, found: Conclusion) -> str:
    """A row per verdict."""
    short = short_headings(run)
    rows = [(f"**{v.status}**", escape(v.who), escape(short[v.cell.setting] if v.cell else ""), escape(v.reason)) for v in found.verdicts]
    if not any(short.values()):
        return grid(("verdict", "scheme", "reason"), [(status, who, reason) for status, who, _, reason in rows])
    return grid(("verdict", "scheme", "setting", "reason"), rows)


def _table(table: Table) -> list[str]:
    head = ("scheme", *(column.title for column in table.columns))
    below = [escape(line) for line in (*table.marks(), *table.notes())]
    return [
        f"## {escape(table.heading)}",
        *([escape(" · ".join(table.facts))] if table.facts else []),
        grid(head, [_row(row, len(table.columns)) for row in table.rows]),
        *(["  \n".join(below)] if below else []),
    ]


def _across(one: Grid) -> str:
    rows = [(escape(title), *map(_figure, figures)) for title, figures in one.rows]
    return f"**{escape(one.title)}** {escape(one.caption)}\n\n{grid((one.corner, *map(escape, one.head)), rows)}"


def _figures(charts: Sequence[Chart], setting: str | None) -> list[str]:
    return [f"![{escape(chart.caption)}]({chart.name}.svg)" for chart in charts if chart.setting == setting]


def _row(row: Row, columns: int) -> tuple[str, ...]:
    """A cell without figures says in the place of the first what became of it; the reason stands below the table."""
    figures = [_figure(figure) for figure in row.figures] or [f"*{escape(row.outcome)}*", *[""] * (columns - 1)]
    return (escape(row.label), *figures)


def _figure(figure: Figure) -> str:
    return escape(f"{figure.text} {figure.detail}".strip())
