"""`tqbench tune`: the cheapest mix of a suite's schemes under a limit on Δppl."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tqbench.cli import complete, options, table

if TYPE_CHECKING:
    from tqbench.core.record import Record
    from tqbench.runner.tune import Sided, Trial, Tuned
    from tqbench.suite.schema import Overrides, Suite

EXAMPLES = """Examples:

tqbench tune suites/tune.yaml --max-dppl 0.3

tqbench tune suites/tune.yaml --max-dppl 0.3 --sided one --to tuned.yaml

tqbench tune suites/tune.yaml --max-dppl 0.1 --model org/name --confirm notes.txt --thorough
"""
OTHER = {"wikitext-2": "python-docs"}  # the text that confirms where none is named: wikitext-2, unless that is searched


@options.overriding
def tune(  # noqa: PLR0913 - each is an option
    suite: Annotated[str, typer.Argument(help="A suite file.", metavar="SUITE", show_default=False, autocompletion=complete.suites)],
    *,
    max_dppl: Annotated[
        float,
        typer.Option("--max-dppl", metavar="X", min=0.0, help="The limit, with all of the interval of Δppl.", show_default=False),
    ],
    confirm: Annotated[
        str | None,
        typer.Option(
            metavar="CORPUS",
            help="The text that confirms: a known corpus or a text file, not the suite's, which is searched.",
            autocompletion=complete.corpora,
        ),
    ] = None,
    sided: Annotated[
        str, typer.Option(metavar="one|two", help="two: within ±X; one: at most X.", autocompletion=complete.of("one", "two"))
    ] = "two",
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="Where the mix goes; results/tuned/NAME.yaml if not said.")
    ] = None,
    thorough: Annotated[bool, typer.Option("--thorough", help="Probe the layers of every scheme, not of the smallest alone.")] = False,
    overrides: Overrides,
    output: options.Runs = Path("results"),
) -> None:
    """Find the cheapest mix of the suite's schemes, layer by layer and side by side, that keeps a limit on Δppl.

    It is searched by KLD on the suite's text and confirmed by Δppl on another, with its interval. The mix is written as a suite of its own,
    whose scheme any suite can take. The same command again continues what was interrupted.
    """
    from tqbench.cli.run import interruptible
    from tqbench.runner import tune as search
    from tqbench.runner.tuned import story, write
    from tqbench.suite.load import load

    (loaded,) = load([suite], overrides)
    goal = search.Goal(max_dppl, _confirm(loaded, confirm), _sided(sided), thorough)
    command = f"tqbench {shlex.join(sys.argv[1:])}"
    try:
        with interruptible():
            found = search.tune(loaded, goal, results=output, command=command, note=lambda text: typer.echo(text, err=True))
    except KeyboardInterrupt:
        typer.echo(f"\ninterrupted; what was measured is kept. To continue:\n  {command}", err=True)
        raise
    path = to or output / "tuned" / f"{loaded.settings.name}-{max_dppl:g}.yaml"
    show(found)
    typer.echo("\n" + "\n".join(story(found, loaded, command)))
    if found.best:
        write(found, loaded, path, command)
        typer.echo(f"\nmix      {path}\nrun it   tqbench run {path}")
    raise typer.Exit(found.code)


def _sided(sided: str) -> Sided:
    """One of the two, as a gate has them."""
    from tqbench.core.errors import ConfigError, unknown

    if sided == "one":
        return "one"
    if sided == "two":
        return "two"
    raise ConfigError(f"--sided: {unknown('choice', sided, ('one', 'two'))}")


def _confirm(suite: Suite, wanted: str | None) -> dict[str, Any]:
    """The other text, which must be another."""
    from tqbench.core.errors import ConfigError
    from tqbench.suite.check import corpus
    from tqbench.suite.load import named_corpus

    searched, problems = suite.settings.corpus, list[str]()
    found: dict[str, Any] = named_corpus(wanted or OTHER.get(str(searched["name"]), "wikitext-2"))
    corpus(found, Path(), lambda _, text: problems.append(f"--confirm: {text}"))
    if found == searched:
        problems.append(f"--confirm: {wanted} is the text that is searched; what it confirms must be other text")
    if problems:
        raise ConfigError(problems)
    return found


def show(found: Tuned) -> None:
    """What was measured on the searched text, what on the other, and what it comes to."""
    from tqbench.runner.mixing import per_token

    head = ("scheme", "bytes/token>", "KLD, searched>", "Δppl, confirmed>", "verdict")
    trials = {trial.name: trial for trial in found.rivals}
    rows = [_row(scheme.label, per_token(record), record, trials.get(scheme.label)) for scheme, record in found.uniform]
    rows += [_row(trial.name, trial.bytes, mix.record, trial) for mix, trial in found.trials]
    table.show("", head, rows)


def _row(name: str, size: float, searched: Record, trial: Trial | None) -> tuple[str, ...]:
    from tqbench.report.text import interval

    confirmed = interval(trial.verdict.estimate or trial.record.metrics["dppl"], "dppl") if trial else ""
    return name, f"{size:,.0f}", interval(searched.metrics["kld"], "kld"), confirmed, trial.verdict.status if trial else ""
