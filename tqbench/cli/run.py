"""`tqbench run`: measure suites, or continue where an earlier run stopped."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tqbench.cli import ci, options
from tqbench.cli.plan import read, show
from tqbench.core.errors import worst

if TYPE_CHECKING:
    from tqbench.suite.plan import Plan
    from tqbench.suite.schema import Overrides


@options.overriding
def run(
    suites: options.Suites,
    only: options.Only = None,
    *,
    overrides: Overrides,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure everything anew, beside earlier runs.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Where results go.")] = Path("results"),
) -> None:
    """Measure suites. The same command again continues: what is measured stays."""
    plans = read(suites, only, overrides)
    if dry_run:
        show(plans)
        return
    codes = [_run(planned, output, fresh=fresh) for planned in plans]
    raise typer.Exit(worst(codes))


def _run(planned: Plan, output: Path, *, fresh: bool) -> int:
    """One suite: measure, print its table, its verdicts and where its page is."""
    from tqbench.cli import table
    from tqbench.report import terminal
    from tqbench.runner.run import run_plan

    try:
        done = run_plan(planned, output, fresh=fresh, command=f"tqbench {shlex.join(sys.argv[1:])}")
    except KeyboardInterrupt:
        typer.echo(f"\ninterrupted; the same command again, without --fresh, continues {planned.suite}", err=True)
        raise
    console = table.console()
    for part in terminal.render(done.run):
        console.print(part)
    if done.verdicts:
        console.print(terminal.verdicts(done.run, done.verdicts))
    ci.tell(done.run, done.verdicts)
    typer.echo(f"\n{planned.suite}: {done.measured} of {len(planned.chosen)} cells measured now")
    typer.echo(f"results  {done.run.folder}\npage     {done.page}")
    return done.exit_code
