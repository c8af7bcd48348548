"""What a run tells GitHub, where it runs there: annotations among the output, and the step's summary."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from tqbench.report.conclusion import Conclusion
    from tqbench.report.run import Run


def tell(run: Run, found: Conclusion, *, wanted: bool = False) -> None:
    """In Actions, or if wanted, print the annotations; where the step has a summary, add to it."""
    if not (wanted or os.environ.get("GITHUB_ACTIONS") == "true"):
        return
    from tqbench.report import github

    for line in github.notices(run, found):
        typer.echo(line)
    if path := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(github.summary(run, found))
