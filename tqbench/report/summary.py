"""`summary.csv`: every planned cell as a row. The same results give the same bytes, so no times stand in it."""

from __future__ import annotations

import csv
import io

from tqbench.report.run import Run
from tqbench.report.text import plain


def render(run: Run) -> str:
    """The rows of `Run.rows`, an empty field where there is no figure."""
    text = io.StringIO()
    rows = run.rows()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: plain(value) if isinstance(value, str) else value for key, value in row.items()} for row in rows)
    return text.getvalue()
