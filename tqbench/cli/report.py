"""`tqbench report`: the tables of runs, their page, and everything for publishing them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tqbench.cli import complete, named, options, table

EXAMPLES = """Examples:

tqbench report quickstart

tqbench report results/reference/quickstart-cpu -o pages

tqbench report quickstart --format latex

tqbench report quickstart --bundle quickstart.zip

tqbench report quickstart imported/wiki
"""

if TYPE_CHECKING:
    from tqbench.importers.folder import Imports
    from tqbench.report.run import Run


class Format(StrEnum):
    """How tables are printed."""

    TABLE = "table"
    MD = "md"
    LATEX = "latex"
    CSV = "csv"


def report(  # noqa: PLR0913 - an option each
    refs: Annotated[
        list[str],
        typer.Argument(
            help="Runs: folders, record.json files, or suites' names (the latest run). Imports: imported/NAME, on tables of their own.",
            metavar="RUN...",
            autocompletion=complete.reported,
        ),
    ],
    results: options.Results = Path("results"),
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Where pages go.")] = Path("reports"),
    form: Annotated[Format, typer.Option("--format", help="Anything but table: print the tables so, and write no page.")] = Format.TABLE,
    figures: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Each figure as SVG, PDF and PNG with its CSV.")] = None,
    bundle: Annotated[Path | None, typer.Option(metavar="OUT.zip", help="Page, figures, tables and records in one archive.")] = None,
    into: Annotated[Path | None, typer.Option(metavar="FILE.md", help="Put the tables between this suite's markers in a document.")] = None,
    page: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write the page here, instead of a folder for each run.")] = None,
) -> None:
    """Show the tables of runs, and write their page.

    Several runs share tables and figures where they are comparable; where not, the page says why.

    Examples: tqbench report quickstart · tqbench report A B --bundle out.zip · tqbench report A --format latex > table.tex
    """
    from tqbench.importers import folder
    from tqbench.report import write

    found = {ref: folder.find(ref, results) for ref in refs}
    imports = [folder.load(path) for path in found.values() if path]
    runs = [named.load(ref, results) for ref in refs if not found[ref]]
    if form is not Format.TABLE:
        typer.echo("\n".join([*(_printed(run, form) for run in runs), *_elsewhere(imports, form)]), nl=False)
        return
    if into is not None:
        from tqbench.core.files import write_atomic
        from tqbench.report.embed import embed

        text = into.read_text("utf-8")
        for run in runs:
            text = embed(text, run)
        write_atomic(into, text.encode())
        typer.echo(f"{into}")
    _pages(runs, imports, page or output / write.folder(runs, [one.name for one in imports]), figures, bundle)


def _elsewhere(imports: list[Imports], form: Format) -> list[str]:
    """What other tools measured, in the same form."""
    from tqbench.report import foreign, latex, markdown

    if not imports:
        return []
    if form is Format.CSV:
        return [foreign.render_csv(imports)]
    tables = foreign.tables(imports)
    return ["\n\n".join(markdown.measured_elsewhere(tables)) + "\n" if form is Format.MD else latex.measured_elsewhere(tables)]


def _printed(run: Run, form: Format) -> str:
    from tqbench.report import latex, markdown, summary

    if form is Format.MD:
        return markdown.brief(run) + "\n"
    return latex.render(run) if form is Format.LATEX else summary.render(run)


def _pages(runs: list[Run], imports: list[Imports], page: Path, figures: Path | None, bundle: Path | None) -> None:
    """Everything that has figures."""
    from tqbench.report import foreign, terminal, together, write
    from tqbench.report.bundle import write_bundle
    from tqbench.report.conclusion import conclude

    judged, views, out = [(run, conclude(run)) for run in runs], together.views(runs), table.console()
    for view in views:
        for part in (*terminal.render(view.run), *view.notes):
            out.print(part)
    for run, found in judged:
        out.print(terminal.verdicts(run, found, found.reported))
    others = foreign.tables(imports)
    for part in terminal.measured_elsewhere(others):
        out.print(part)
    out.print(f"\n{write.write_pages(judged, views, page, others)}", soft_wrap=True)
    if figures:
        out.print(f"{len(write.write_figures(views, figures))} files in {figures}", soft_wrap=True)
    if bundle:
        out.print(f"{bundle}: {write_bundle(judged, views, bundle, imports)} files", soft_wrap=True)
