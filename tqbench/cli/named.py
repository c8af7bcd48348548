"""A run by the name that a user gives it, and one line on standard error where that name left something open."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from tqbench.report.run import Run


def load(ref: str, results: Path) -> Run:
    """The run, loaded. Of a suite's name: which of its runs that is, if it has others, and whether part of it is missing."""
    from tqbench.report import run as runs

    found = runs.load(runs.find(ref, results))
    if said := runs.taken(ref, found, results):
        _say(said)
    return found


@functools.cache
def _say(line: str) -> None:
    """Once, however often a command names the run."""
    typer.echo(line, err=True)
