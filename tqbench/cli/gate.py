"""`tqbench gate`: the verdicts of runs, and the exit code that says them all."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tqbench.cli import ci, complete, named, options, table

EXAMPLES = """Examples:

tqbench gate quickstart

tqbench gate quickstart --fail-on 'q8_0:dppl>0.1' --fail-on '*turbo*:top1<0.8'

tqbench gate gate --against results/reference/gate-cpu -o verdicts

A limit holds as a suite's does: a metric passes or fails only if its whole 95 % interval does, and a perplexity that falls by more than the
limit fails as one that rises."""


def gate(
    refs: Annotated[
        list[str],
        typer.Argument(
            help="Runs: folders, record.json files, or suites' names (the latest run).", metavar="RUN", autocompletion=complete.runs
        ),
    ],
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-on",
            metavar="LIMIT",
            help="One more gate, [SCHEME:]METRIC>NUMBER, or < where high is good: 'dppl>0.01' fails what rose or fell by more. Repeatable.",
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Hold each limit on dppl or ln_ratio against the difference to this run's perplexities, too."),
    ] = None,
    github: Annotated[bool, typer.Option("--github", help="Print annotations for GitHub, as in Actions.")] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FOLDER", help="Where SUITE/RUN/junit.xml and benchmark.json go, if at all.")
    ] = None,
    results: options.Results = Path("results"),
) -> None:
    """Judge runs by their suites' gates. Measures nothing."""
    from tqbench.core.errors import worst
    from tqbench.report import against as reference
    from tqbench.report import fail_on as limits
    from tqbench.report import github as machine
    from tqbench.report import terminal
    from tqbench.report.conclusion import conclude

    out = table.console()
    runs = [named.load(ref, results) for ref in refs]  # all are found before any is judged
    old = named.load(against, results) if against else None
    more = limits.gates(fail_on or [], runs)
    beside = [reference.judgements(run, old, extra) if old else [] for run, extra in zip(runs, more, strict=True)]
    judged = [conclude(run, extra, rest, gated=True) for run, extra, rest in zip(runs, more, beside, strict=True)]
    for run, found in zip(runs, judged, strict=True):
        for part in (terminal.verdicts(run, found), *terminal.lost(run, found)):
            out.print(part)
        ci.tell(run, found, wanted=github)
        if output:
            machine.write(run, found, output / run.folder.absolute().parent.name / run.folder.absolute().name)
    raise typer.Exit(worst(found.code for found in judged))
