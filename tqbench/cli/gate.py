"""`tqbench gate`: the verdicts of runs, and the exit code that says them all."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tqbench.cli import complete, table

NOTHING_JUDGED = 5  # a run without gates is not green
EXAMPLES = """Examples:

tqbench gate quickstart

tqbench gate results/quickstart/915af63cc5
"""


def gate(
    refs: Annotated[
        list[str],
        typer.Argument(
            help="Runs: folders, record.json files, or suites' names (the latest run).", metavar="RUN", autocompletion=complete.runs
        ),
    ],
    results: Annotated[Path, typer.Option("--results", metavar="FOLDER", help="Where runs are.")] = Path("results"),
) -> None:
    """Judge runs by their suites' gates. Measures nothing."""
    from tqbench.core.errors import worst
    from tqbench.report import gate, terminal
    from tqbench.report.run import find, load

    out, codes = table.console(), []
    for run in [load(find(ref, results)) for ref in refs]:  # all are found before any is judged
        verdicts = gate.judge(run)
        codes += [gate.exit_code(run, verdicts), *([] if verdicts else [NOTHING_JUDGED])]
        out.print(terminal.verdicts(run, verdicts))
    raise typer.Exit(worst(codes))
