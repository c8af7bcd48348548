"""`tqbench run`: measure suites, or continue where an earlier run stopped."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from tqbench.cli import ci, options
from tqbench.cli.plan import dropped, read, show
from tqbench.core.errors import worst

if TYPE_CHECKING:
    from tqbench.suite.plan import Plan
    from tqbench.suite.schema import Overrides

EXAMPLES = """Examples:

tqbench run suites/quickstart.yaml

tqbench run suites/long_ctx.yaml -k 'q8_0,turbo*' --budget 20m

tqbench run suites/quickstart.yaml --model org/name --set tasks.0.perplexity.tokens=8k --dry-run
"""


@options.overriding
def run(  # noqa: PLR0913 - each is an option
    suites: options.Suites,
    only: options.Only = None,
    *,
    overrides: Overrides,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure everything anew, beside earlier runs.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    budget: options.Budget = None,
    memory: options.Memory = None,
    output: options.Runs = Path("results"),
) -> None:
    """Measure suites. The same command again continues: what is measured stays."""
    from tqbench.suite.budget import Limits

    wanted = read(suites, only, overrides, limits=Limits(budget, memory), output=output, fresh=fresh)
    if dry_run:
        raise typer.Exit(show(wanted))
    for line in [line for planned in wanted.plans for line in dropped(planned)]:
        typer.echo(line, err=True)
    with interruptible():
        codes = [_run(planned, output, fresh=fresh) for planned in wanted.plans]
    raise typer.Exit(worst(codes))


def _run(planned: Plan, output: Path, *, fresh: bool) -> int:
    """One suite: measure, print its table, its verdicts and where its page is."""
    from tqbench.cli import table
    from tqbench.report import terminal
    from tqbench.runner.run import run_plan

    try:
        done = run_plan(planned, output, fresh=fresh, command=f"tqbench {shlex.join(sys.argv[1:])}")
    except KeyboardInterrupt:
        typer.echo(_how_to_go_on(planned, output), err=True)
        raise
    console = table.console()
    for part in terminal.render(done.run):
        console.print(part)
    if done.conclusion.verdicts or done.conclusion.code:
        console.print(terminal.verdicts(done.run, done.conclusion))
    ci.tell(done.run, done.conclusion)
    typer.echo(f"\n{planned.suite}: {done.count}")
    typer.echo(f"results  {done.run.folder}\npage     {done.page}")
    return done.conclusion.code


@contextmanager
def interruptible() -> Iterator[None]:
    """The first interrupt ends the run cleanly, a second one at once: workers end with this process, whatever they do. Where interrupts
    are ignored, as in the background of a shell, they stay ignored."""
    before = signal.getsignal(signal.SIGINT)

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.default_int_handler(number, frame)

    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        if before is signal.default_int_handler and sys.exc_info()[0] is None:
            signal.signal(signal.SIGINT, before)


def _how_to_go_on(planned: Plan, output: Path) -> str:
    """What is kept of an interrupted run, and the command that continues it."""
    from tqbench.runner.folder import Folder

    folder = Folder.of(planned, output, fresh=False)
    kept = sum(folder.finished(cell) is not None for cell in planned.chosen)
    again = shlex.join(["tqbench", *(arg for arg in sys.argv[1:] if arg != "--fresh")])
    where = f" in {folder.path}" if kept else ""
    return f"\ninterrupted: {kept} of {len(planned.chosen)} cells of {planned.suite} are measured and kept{where}. To continue:\n  {again}"
