"""`tqbench schemes`: every scheme there is, and `tqbench schemes show NAME`: one of them, down to its bytes."""

from __future__ import annotations

from typing import Annotated

import typer

from tqbench.cli import complete, options, table

EXAMPLES = """Examples:

tqbench schemes --head-dim 128

tqbench schemes show q8_0/turbo3
"""

app = typer.Typer(help="List the schemes, or explain one.", epilog=EXAMPLES, invoke_without_command=True)


@app.callback()
def schemes(
    context: typer.Context,
    head_dim: options.HeadDim = 64,
    markdown: Annotated[bool, typer.Option("--markdown", help="The page docs/schemes.md.")] = False,
) -> None:
    """List the schemes: presets, and those of installed packages. `show NAME` explains one."""
    if context.invoked_subcommand is not None:
        return
    from tqbench.cli import catalog

    if markdown:
        typer.echo(catalog.markdown(), nl=False)
    else:
        table.show("", catalog.COLUMNS, catalog.rows(head_dim))


@app.command(epilog=EXAMPLES)
def show(
    name: Annotated[
        str,
        typer.Argument(
            help="A scheme of the list, or K/V: keys as in the first, values as in the second.", autocompletion=complete.schemes
        ),
    ],
    head_dim: options.HeadDim = 64,
) -> None:
    """What a scheme does, what it stores to the byte, and how a suite writes it."""
    from tqbench.cli import describe
    from tqbench.core.presets import preset

    typer.echo(describe.show(preset(name), head_dim))
