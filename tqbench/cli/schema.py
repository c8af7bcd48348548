"""`tqbench schema`: the JSON Schemas of suites and of the files of a run."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from tqbench.cli import complete

EXAMPLES = """Examples:

tqbench schema > .tqbench.schema.json

tqbench schema record

In an editor with a YAML language server, this first line of a suite completes and checks what follows:

# yaml-language-server: $schema=.tqbench.schema.json
"""


def schema(
    kind: Annotated[
        str, typer.Argument(help="suite, plan, environment, record, bench or imported.", metavar="[KIND]", autocompletion=complete.kinds)
    ] = "suite",
) -> None:
    """Print the JSON Schema of a suite, or of a file that a run leaves. It knows the schemes and codecs that are installed here."""
    from tqbench.core.errors import ConfigError, unknown
    from tqbench.suite.published import KINDS

    if kind not in KINDS:
        raise ConfigError(unknown("schema", kind, KINDS))
    typer.echo(json.dumps(KINDS[kind](), indent=1, ensure_ascii=False))
