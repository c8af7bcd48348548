"""`tqbench runs`: what has been measured here."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from tqbench.cli import table

EXAMPLES = """Examples:

tqbench runs

tqbench runs -o elsewhere/results
"""


def runs(
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Where results are.")] = Path("results"),
) -> None:
    """List the runs in the results folder, the latest last, and what was imported from other tools."""
    rows = sorted((_row(plan.parent) for plan in output.glob("*/*/plan.json")), key=lambda row: row[2])
    rows += [_imported(path.parent) for path in sorted(output.glob("imported/*/imported.json"))]
    if rows:
        table.show("", ("suite", "run", "when", "cells"), rows)
    else:
        typer.echo(f"There are no runs in {output} yet; `tqbench run SUITE` makes one.")


def _row(folder: Path) -> tuple[str, str, str, str]:
    from tqbench.core.errors import TqbenchError
    from tqbench.report.run import load

    try:
        run = load(folder)
    except TqbenchError as error:
        return folder.parent.name, folder.name, "", f"unreadable: {error}"
    counts = Counter(run.outcome(cell) for cell in run.cells)
    when = max((record.started for record in run.records if record.started), default="")
    return run.suite, run.name, when, ", ".join(f"{count} {outcome}" for outcome, count in counts.items())


def _imported(folder: Path) -> tuple[str, str, str, str]:
    from tqbench.core.errors import TqbenchError
    from tqbench.importers.folder import load

    try:
        rows = load(folder).rows
    except TqbenchError as error:
        return "imported", folder.name, "", f"unreadable: {error}"
    counts = Counter(row.tool for row in rows)
    return "imported", folder.name, "", ", ".join(f"{count} of {tool}" for tool, count in counts.items())
