"""Tables and verdicts for a terminal. Everything is rich text, never markup, so that names stay what they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tqbench.report import devices, foreign
from tqbench.report.conclusion import Conclusion
from tqbench.report.details import Grid
from tqbench.report.foreign import Foreign
from tqbench.report.run import Run
from tqbench.report.table import Row, Table, short_headings, tables
from tqbench.report.text import plain

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

COLOURS = {"pass": "green", "fail": "bold red", "inconclusive": "yellow", "skipped": "dim"}

WIDTHS = "± half the width of the 95 % interval; the report page has its ends"


def render(run: Run) -> list[RenderableType]:
    """The tables of a run, each with its heading, marks and notes."""
    return [part for parts in (*map(_table, tables(run)), *map(_across, devices.grids(run))) for part in parts]


def measured_elsewhere(others: Sequence[Foreign]) -> list[RenderableType]:
    """What other tools measured, apart from the rest."""
    from rich.text import Text

    head = [Text(f"\n{foreign.TITLE}", style="bold magenta"), Text(foreign.INTRODUCTION)] if others else []
    return [*head, *(part for one in others for part in _foreign(one))]


def _foreign(one: Foreign) -> list[RenderableType]:
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=0)
    for title in (one.grid.corner, *one.grid.head):
        grid.add_column(Text(plain(title)), overflow="fold", justify="left" if title in (one.grid.corner, "from") else "right")
    for label, figures in one.grid.rows:
        grid.add_row(Text(plain(label)), *(Text(plain(f"{figure.text} {figure.detail}".strip())) for figure in figures))
    notes = (f"Not comparable with tables of tqbench: {one.caveat}.", *(f"{name}: {why}" for name, why in one.unknown))
    head = [Text(f"\n{one.title}", style="bold cyan"), Text(one.said, style="dim"), Text()]
    return [*head, grid, *(Text(plain(line), style="dim") for line in notes)]


def verdicts(run: Run, found: Conclusion, sentence: str | None = None) -> RenderableType:
    """One line per verdict, and what they amount to: the conclusion's own sentence, or another."""
    from rich.console import Group
    from rich.table import Table as Grid
    from rich.text import Text

    short = short_headings(run)
    grid = Grid.grid("", "", "", padding=(0, 2, 0, 0))
    for v in found.verdicts:
        where = short[v.cell.setting] if v.cell else ""
        name = Text.assemble((plain(v.who), "bold"), f" {where}" if where else "", overflow="fold")
        grid.add_row(Text(v.status, COLOURS[v.status]), name, Text(plain(v.reason), overflow="fold"))
    amounts = Text(f"{plain(run.suite)}: {sentence or found.sentence}", "bold" if found.code else "bold green")
    return Group(Text(), *([grid] if found.verdicts else []), amounts)


def lost(run: Run, found: Conclusion) -> list[RenderableType]:
    """A line for each cell without numbers that no verdict is about, such as a baseline."""
    from rich.text import Text

    told, short, lines = {v.cell.key for v in found.verdicts if v.cell}, short_headings(run), []
    for cell in run.cells:
        if run.outcome(cell) != "ok" and cell.key not in told:
            record, who = run.record(cell), " · ".join(filter(None, (cell.label, short[cell.setting])))
            why = record.reason if record else found.aside.get(cell.key)
            reason = f": {why}" if why else ""
            lines.append(Text(plain(f"{run.outcome(cell)}: {who}{reason}"), "yellow", overflow="fold"))
    return list(lines)


def _table(table: Table) -> list[RenderableType]:
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=0)
    grid.add_column("scheme", overflow="fold", style="bold")
    for column in table.columns:
        narrow = column.title.replace(" %", "\n%") if column.title.endswith(" %") else column.title
        grid.add_column(Text(narrow), justify="right", overflow="fold", no_wrap=column.title != "kernels")  # names fold, numbers do not
    for row in table.rows:
        grid.add_row(
            Text.assemble(row.label, ("" if row.figures else f"\n{row.outcome}", "not bold yellow")), *_figures(row, len(table.columns))
        )
    head = Text(f"\n{table.heading}", style="bold cyan")
    facts = [Text(" · ".join(table.facts), style="dim")] if table.facts else []
    widths = [WIDTHS] if any((figure.brief or "").startswith("±") for row in table.rows for figure in row.figures) else []
    below = [Text(line, style="dim") for line in (*table.marks(), *widths)] + [Text(line, style="yellow") for line in table.notes()]
    return [head, *facts, Text(), grid, *below]


def _across(one: Grid) -> list[RenderableType]:
    """A table beside the results."""
    from rich import box
    from rich.table import Table as Lines
    from rich.text import Text

    lines = Lines(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=0)
    lines.add_column(one.corner, overflow="fold", style="bold")
    for title in one.head:
        lines.add_column(Text(title), justify="right", overflow="fold")
    for title, figures in one.rows:
        lines.add_row(Text(title), *(Text.assemble(f.text, (f"\n{f.detail}" if f.detail else "", "dim")) for f in figures))
    return [Text(f"\n{one.title}", style="bold cyan"), Text(one.caption, style="dim"), Text(), lines]


def _figures(row: Row, columns: int) -> list[Text]:
    from rich.text import Text

    if not row.figures:
        return [Text()] * columns
    below = [figure.detail if figure.brief is None else figure.brief for figure in row.figures]
    return [Text.assemble(figure.text, (f"\n{line}" if line else "", "dim")) for figure, line in zip(row.figures, below, strict=True)]
