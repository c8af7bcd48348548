"""Tables for people. Cells are rich text, never markup, so that names stay what they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 1000  # columns, where there is no terminal to wrap for


def console() -> Console:
    """Standard output. Into a file or pipe no line is wrapped."""
    from rich.console import Console

    found = Console(highlight=False, markup=False, emoji=False)
    return found if found.is_terminal else Console(highlight=False, markup=False, emoji=False, width=WIDE)


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], widest: int | None = None) -> None:
    """Print a table; a column whose title ends in `>` is aligned to the right. The first column is never wrapped, unless none may be wider
    than `widest`, as where all hold sentences."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from tqbench.report.text import plain

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True, show_header=any(columns))
    for i, column in enumerate(columns):
        side: Literal["left", "right"] = "right" if column.endswith(">") else "left"
        grid.add_column(column.rstrip(">"), justify=side, overflow="fold", no_wrap=not widest and i == 0, max_width=widest)
    for row in rows:
        grid.add_row(*(Text(plain(value)) for value in row))
    out = console()
    if title:
        out.print(Text(plain(title), style="bold"))
    with out.capture() as printed:
        out.print(grid)
    typer.echo("".join(f"{line.rstrip()}\n" for line in printed.get().splitlines()), nl=False)
