"""`tqbench report`: the tables of a run, and its page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tqbench.cli import complete, table

EXAMPLES = """Examples:

tqbench report quickstart

tqbench report results/reference/quickstart-cpu -o pages
"""


def report(
    ref: Annotated[
        str,
        typer.Argument(
            help="A run's folder, a record.json, or a suite's name (its latest run).", metavar="RUN", autocompletion=complete.runs
        ),
    ],
    results: Annotated[Path, typer.Option("--results", metavar="FOLDER", help="Where runs are.")] = Path("results"),
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Where pages go.")] = Path("reports"),
) -> None:
    """Show a run's tables, and write its page."""
    from tqbench.report import gate, terminal
    from tqbench.report.run import find, load
    from tqbench.report.write import write

    run = load(find(ref, results))
    verdicts = gate.judge(run)
    out = table.console()
    for part in (*terminal.render(run), terminal.verdicts(run, verdicts)):
        out.print(part)
    out.print(f"\n{write(run, verdicts, output)}", soft_wrap=True)
