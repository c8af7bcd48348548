"""`tqbench import`: results of other tools, as rows that a report shows apart from ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tqbench.cli import complete, table

EXAMPLES = """Examples:

tqbench import perplexity.log

tqbench import bench.jsonl results_2026-08-01.json -o results/imported/august

tqbench report quickstart imported/august
"""


def take_in(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="llama-perplexity's log, llama-bench's JSON, JSONL, CSV or Markdown, lm-eval's results, REFRACT's report.", metavar="FILE"
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FOLDER", help="Where the rows go; results/imported/NAME if not said.")
    ] = None,
    tool: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="TOOL",
            help="llama-perplexity, llama-bench, lm-eval or refract, where it cannot be seen.",
            autocompletion=complete.tools,
        ),
    ] = None,
) -> None:
    """Read what other tools measured, for `tqbench report` to show in tables of their own.

    Nothing of it becomes comparable with what tqbench measured, and no gate judges it. A damaged file is refused, with its line.
    """
    from tqbench.importers import folder
    from tqbench.report import foreign, terminal
    from tqbench.report.write import safe

    imports = folder.take_in(files, tool)
    target = output or Path("results/imported", safe(files[0].stem))
    path = folder.write(imports, target)
    out = table.console()
    for part in terminal.measured_elsewhere(foreign.tables([imports])):
        out.print(part)
    rows = "1 row" if len(imports.rows) == 1 else f"{len(imports.rows)} rows"
    out.print(f"\n{path}: {rows}. `tqbench report RUN {target}` shows them beside a run", soft_wrap=True)
