"""A run's tables inside a document: between markers that name its suite, written anew whenever they are asked for."""

from __future__ import annotations

import re

from tqbench.core.errors import ConfigError
from tqbench.report.markdown import brief
from tqbench.report.run import Run


def embed(text: str, run: Run) -> str:
    """The document with what stands between this suite's markers replaced by the run's tables."""
    start, end = markers(run.suite)
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise ConfigError(
            f"the document has no place for {run.suite!r}: put one line {start} and, below it, one line {end} where its tables belong"
        )
    return re.sub(f"{re.escape(start)}.*?{re.escape(end)}", lambda _: f"{start}\n\n{brief(run)}\n\n{end}", text, flags=re.DOTALL)


def markers(suite: str) -> tuple[str, str]:
    """The lines around a suite's tables."""
    return f"<!-- tqbench report {suite} -->", f"<!-- end of tqbench report {suite} -->"
