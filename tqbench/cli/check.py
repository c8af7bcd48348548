"""`tqbench check scheme`: the shipped conformance checks on schemes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tqbench.cli import complete

if TYPE_CHECKING:
    from tqbench.testing import Case

FAILED = 4  # as an audit that failed

EXAMPLES = """Examples:

tqbench check scheme turbo3

tqbench check scheme q8_0/turbo3 kivi2
"""

app = typer.Typer(help="Run the shipped conformance checks.", epilog=EXAMPLES, no_args_is_help=True)


@app.callback()
def check() -> None:
    """Run the shipped conformance checks."""


@app.command(epilog=EXAMPLES)
def scheme(
    names: Annotated[
        list[str],
        typer.Argument(
            help="Schemes, as `tqbench schemes` lists them, or K/V.", metavar="NAME", show_default=False, autocompletion=complete.schemes
        ),
    ],
) -> None:
    """Check schemes, their codecs and the kernels that run them: what each owes the rest of tqbench. One line per check."""
    from tqbench.core.presets import preset

    wanted = [preset(name) for name in names]  # all names are known before any check runs
    from tqbench.testing import cases

    found = [_passes(case) for case in cases(wanted)]
    failed = found.count(False)
    typer.echo(f"\n{', '.join(names)}: {len(found)} checks, {f'{failed} failed' if failed else 'all passed'}")
    raise typer.Exit(FAILED if failed else 0)


def _passes(case: Case) -> bool:
    """Run one check and print its line."""
    from tqbench.report.text import plain

    try:
        case.run()
    except AssertionError as error:
        reason = str(error)
    except Exception as error:  # noqa: BLE001 - a check that ends in any other error has failed as well
        reason = f"{type(error).__name__}: {error}"
    else:
        typer.echo(f"ok      {case}")
        return True
    typer.echo(f"FAILED  {case}: {plain(reason)}")
    return False
