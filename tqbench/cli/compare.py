"""`tqbench compare`: runs held against each other, token by token where they scored the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tqbench.cli import named, options, table

if TYPE_CHECKING:
    from tqbench.report.run import Run

NOTHING_COMPARED = 5
EXAMPLES = """Examples:

tqbench compare results/reference/quickstart-cpu quickstart

tqbench compare quickstart:turbo3 quickstart:turbo4

tqbench compare before after --markdown comparison.md

Exit codes: 0 something was compared · 2 usage · 5 nothing was comparable. Use `tqbench gate RUN --against OTHER` for a verdict."""


def compare(
    refs: Annotated[
        list[str],
        typer.Argument(
            help="Two or more runs, each a folder or a suite's name, or RUN:SCHEME. All are held against the first.", metavar="RUN"
        ),
    ],
    allow: Annotated[
        list[str] | None, typer.Option("--allow", metavar="KEY", help="A key that may differ though it is fatal, as 'dtype'. Repeatable.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", metavar="FILE", help="Write the tables as Markdown, too.")] = None,
    results: options.Results = Path("results"),
) -> None:
    """Compare runs on the same tokens, and say what differs between them. Measures nothing."""
    from tqbench.core.errors import ConfigError
    from tqbench.core.files import write_atomic
    from tqbench.report import compare as report
    from tqbench.report.knobs import permitted

    if len(refs) < 2:
        raise ConfigError(f"compare takes two runs or more, got {refs[0]!r} alone; `tqbench runs` lists them")
    allowed = permitted(allow or [])
    first, *others = [_find(ref, results) for ref in refs]
    found = report.compare(first, others, allowed)
    for one in found:
        typer.echo(f"\n{report.heading(one)}")
        for section in one.sections():
            typer.echo()
            table.show(section.title, section.columns or ("",), section.rows, section.widest)
            for note in section.notes:
                typer.echo(note)
    if markdown:
        write_atomic(markdown, report.render(found).encode())
        typer.echo(f"\n{markdown}")
    raise typer.Exit(0 if any(one.compared for one in found) else NOTHING_COMPARED)


def _find(ref: str, results: Path) -> tuple[Run, str | None]:
    """A run, and the scheme of it that is meant; names of schemes may hold colons, too."""
    from tqbench.core.errors import ConfigError, unknown

    try:
        return named.load(ref, results), None
    except ConfigError:
        name, _, scheme = ref.partition(":")
        if not scheme:
            raise
    run = named.load(name, results)
    labels = {cell.label for cell in run.cells}
    if scheme not in labels:
        raise ConfigError(f"{ref!r}: {unknown('scheme of this run', scheme, labels)}")
    return run, scheme
