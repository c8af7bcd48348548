"""`tqbench runs`: what has been measured here."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import typer

from tqbench.cli import options, table

EXAMPLES = """Examples:

tqbench runs

tqbench runs --results elsewhere/results
"""


def runs(
    results: options.Results = Path("results"),
) -> None:
    """List the runs in the results folder, the latest last, and what was imported from other tools."""
    rows = sorted((_row(plan.parent) for plan in results.glob("*/*/plan.json")), key=lambda row: row[2])
    rows += [_imported(path.parent) for path in sorted(results.glob("imported/*/imported.json"))]
    if rows:
        table.show("", ("suite", "run", "when", "cells"), rows)
    else:
        typer.echo(f"There are no runs in {results} yet; `tqbench run SUITE` makes one.")


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
