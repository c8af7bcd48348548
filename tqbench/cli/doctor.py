"""`tqbench doctor`: what this machine can run, what is missing, and the command that helps."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer

from tqbench.cli import table

SCHEMA = "tqbench.doctor/1"
MARKS = {"ready": "✓", "missing": "–", "wrong": "!"}
EXAMPLES = """Examples:

tqbench doctor

tqbench doctor --json
"""


def doctor(as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False) -> None:
    """Show what this machine can run, what is missing, and the command that helps. ✓ is there, – may be had, ! will fail.

    Asks whether the hub answers, unless HF_HUB_OFFLINE is set.
    """
    from tqbench.cli.diagnosis import facts

    found = list(facts())
    if as_json:
        data = {"schema": SCHEMA, "facts": [dataclasses.asdict(fact) for fact in found]}
        typer.echo(json.dumps(data, indent=1, ensure_ascii=False))
        return
    for topic in dict.fromkeys(fact.topic for fact in found):
        table.show(topic, ("", "", "", ""), [(f.name, MARKS[f.state], f.value, f.next) for f in found if f.topic == topic])
