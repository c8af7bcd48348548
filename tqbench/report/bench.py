"""What a benchmark leaves behind: `bench.json` with every sample, `bench.csv`, `bench.md` and the figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqbench.bench.result import Bench, Group, Row
from tqbench.core.files import write_atomic, write_json
from tqbench.report import bench_figure
from tqbench.report.bench_table import cells, columns, facts, heading, notes, words
from tqbench.report.markdown import escape, grid


def write(bench: Bench, folder: Path) -> None:
    """Write all of it."""
    write_json(folder / "bench.json", bench.to_data())
    write_atomic(folder / "bench.csv", table(bench).encode())
    write_atomic(folder / "bench.md", page(bench).encode())
    for kind, picture in bench_figure.render(bench).items():
        write_atomic(folder / f"bench.{kind}", picture)


def table(bench: Bench) -> str:
    """One line for each row, an empty field where there is no figure."""
    text = io.StringIO()
    lines = [_flat(bench, row) for row in bench.rows]
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def page(bench: Bench) -> str:
    """The tables as Markdown, what their columns and rows mean, and what did not run."""
    parts = [
        f"# {escape(bench.op)}",
        *(escape(line) for line in facts(bench)),
        f"![Time against tokens: {escape(bench.op)}](bench.svg)",
        *(part for group in bench.groups for part in _group(bench, group)),
        "## Columns",
        "\n".join(f"- **{escape(column.title)}**: {escape(column.meaning)}" for column in columns(bench)),
        "## Rows",
        "\n".join(f"- **{escape(name)}**: {escape(text)}" for name, text in words(bench).items()),
    ]
    return "\n\n".join(parts) + "\n"


def _group(bench: Bench, group: Group) -> Iterator[str]:
    yield f"## {escape(heading(group))}"
    head = ("row", *(escape(column.title) for column in columns(bench)))
    yield grid(head, [tuple(map(escape, cells(bench, row))) for row in group.rows if row.outcome == "ok"])
    if found := list(notes(group)):
        yield "\n".join(f"- {escape(line)}" for line in found)


def _flat(bench: Bench, row: Row) -> dict[str, Any]:
    timing = row.timing
    figures: dict[str, Any] = dict.fromkeys(("median_ms", "min_ms", "p90_ms", "spread", "samples", "quiet", "gbps", "share"))
    if timing:
        s = timing.spread
        found = (s.median, s.least, s.p90, s.spread, len(timing.samples), timing.quiet, timing.gbps, timing.share)
        figures = dict(zip(figures, found, strict=True))
    ratios = {
        f"times_{title.replace(' ', '_')}": timing and (r := timing.ratios.get(rival.format(scheme=row.scheme))) and r.median
        for title, rival in bench.comparisons.items()
    }
    plain = (
        "tokens",
        "scheme",
        "form",
        "role",
        "outcome",
        "reason",
        "implementation_error",
        "quantization_error",
        "bytes_moved",
        "limit_ms",
    )
    values = {"op": bench.op, **{name: getattr(row, name) for name in plain}, **figures, **ratios}
    return {name: f"{value:.5g}" if isinstance(value, float) else value for name, value in values.items()}
